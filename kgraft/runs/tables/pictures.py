"""Pictures of a paper's table: filters, thresholds, curves, coefficients."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kgraft.analysis import figures
from kgraft.analysis.records import mean_of_known, read_metrics
from kgraft.runs.analysis import baseline_of
from kgraft.runs.comparisons.runs import run_path
from kgraft.runs.config import read
from kgraft.runs.graft_cache import cached_grafts
from kgraft.runs.pictures import against_peers, save_pictures
from kgraft.runs.tables.file import PaperTable
from kgraft.runs.tables.results import place

Runs = dict[str, list[Path]]
Picture = Any  # a figure of matplotlib's, which only `kgraft.analysis` names


def draw(table: PaperTable, out: Path, folder: Path) -> list[Path]:
    """Draw what a table shows of its finished runs.

    Args:
        table: whose pictures.
        out: directory of all tables' runs.
        folder: where the pictures go.

    Returns:
        The files; none where the table has no pictures, or nothing was trained.

    Raises:
        UserError: matplotlib is missing, or a record is damaged.
        StorageError: a file cannot be written.
    """
    pictures: dict[str, Picture] = {}
    for images, network in dict.fromkeys((p.images, p.network) for p in table.panels):
        runs = _finished(table, images, network, out)
        for name in table.pictures if runs else ():
            for which, picture in _PICTURES[name](runs):
                pictures[f"{images}-{network}-{which}"] = picture
    return save_pictures(pictures, folder) if pictures else []


def _finished(table: PaperTable, images: str, network: str, out: Path) -> Runs:
    """By entry its finished runs, in the order of the seeds."""
    found: Runs = {}
    for panel in table.panels:
        if (panel.images, panel.network) != (images, network):
            continue
        path = place(table, panel, out)
        for entry in panel.comparison.entries:
            runs = [run_path(path, entry, seed) for seed in panel.comparison.seeds]
            done = [run for run in runs if (run / "summary.json").is_file()]
            if done and entry.runs_of == entry.name:
                found[entry.name] = done
    return found


def _curves(runs: Runs) -> Iterator[tuple[str, Picture]]:
    series: dict[str, list[np.ndarray]] = {}
    for name, own in runs.items():
        for run in own:
            metrics = read_metrics(run)
            series.setdefault(name, []).append(mean_of_known(metrics.values[metrics.accuracy]))
    note = "mean of the peers, over seeds; band: all seeds"
    what = "accuracy on held-out images"
    yield "curves", figures.curves(series, what=what, percent=True, note=note)


def _thresholds(runs: Runs) -> Iterator[tuple[str, Picture]]:
    yield (
        "thresholds",
        figures.threshold_curves({name: baseline_of(str(own[0])) for name, own in runs.items()}),
    )


def _filters(runs: Runs) -> Iterator[tuple[str, Picture]]:
    for name, own in runs.items():
        yield f"filters-{name}", figures.filter_map(baseline_of(str(own[0])))


def _coefficients(runs: Runs) -> Iterator[tuple[str, Picture]]:
    for name, own in runs.items():
        grafts = cached_grafts(own[0])
        settings = read(own[0] / "run.toml").flat()
        if grafts is None or settings.get("graft.criterion") != "entropy":
            continue
        curve = {key: settings[f"graft.{key}"] for key in ("amplitude", "sharpness")}
        if np.isfinite(grafts.gaps).any():
            picture = figures.coefficient_curve(grafts.gaps, grafts.coefficients, **curve)
            yield f"coefficients-{name}", picture


def _peers(runs: Runs) -> Iterator[tuple[str, Picture]]:
    yield from against_peers([run for own in runs.values() for run in own], True)


_PICTURES: dict[str, Callable[[Runs], Iterator[tuple[str, Picture]]]] = {
    "curves": _curves,
    "thresholds": _thresholds,
    "filters": _filters,
    "coefficients": _coefficients,
    "peers": _peers,
}
