"""Entropies and coefficients of layers over epochs, from a run's records alone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kgraft.analysis.records import Grafts, read_grafts
from kgraft.errors import UserError
from kgraft.files import is_file

Phases = dict[str, Grafts]
PHASES = ("teachers", "peers")


def graftings_of(path: Path) -> Phases:
    """All graftings of a run.

    Args:
        path: its directory; it need not be finished, and no weights are read. An epoch that it is
            about to write is left out.

    Returns:
        By phase, of those that had any.

    Raises:
        UserError: there is no run, a record is damaged, or nothing was grafted.
    """
    if not is_file(path / "run.toml"):
        raise UserError(f"{path} is no run's directory: it holds no run.toml.")
    found = {phase: grafts for phase in PHASES if (grafts := read_grafts(path, phase)) is not None}
    if not found:
        raise UserError(
            f"{path}: nothing was grafted, or not yet: no epoch stands in its grafts.jsonl."
        )
    return found


def told_graftings(grafts: Grafts) -> dict[str, Any]:
    """Every layer, epoch and peer, JSON-able.

    Args:
        grafts: of a phase.

    Returns:
        `"epochs"` (E), `"peers"` (K), `"layers"` (G), `"information"` and `"coefficients"` as lists
        E x K x G with None for what is not known, `"donors"` as lists E x K with None for nobody.
    """
    return {
        "epochs": grafts.epochs.tolist(),
        "peers": grafts.peers.tolist(),
        "layers": list(grafts.groups),
        "information": _numbers(grafts.information),
        "coefficients": _numbers(grafts.coefficients),
        "donors": [[donor or None for donor in row] for row in grafts.donors.tolist()],
    }


def every_grafting(
    runs: dict[str, Phases],
) -> Iterator[tuple[str, str, int, int, int | None, str, float | None, float | None]]:
    """Run, phase, epoch, peer, donor, layer, information and coefficient of every grafting.

    Args:
        runs: by name what `graftings_of` gave.
    """
    for run, phases in runs.items():
        for phase, grafts in phases.items():
            told = told_graftings(grafts)
            for e, epoch in enumerate(told["epochs"]):
                for k, peer in enumerate(told["peers"]):
                    own = told["information"][e][k], told["coefficients"][e][k]
                    for layer, *values in zip(told["layers"], *own, strict=True):
                        yield run, phase, epoch, peer, told["donors"][e][k], layer, *values


def _numbers(values: np.ndarray) -> Any:
    """JSON has no nan."""
    found = values.astype(object)
    found[~np.isfinite(values)] = None
    return found.tolist()
