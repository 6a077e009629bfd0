"""What `kgraft plot` draws of runs' directories and comparisons."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kgraft.analysis import figures
from kgraft.analysis.peer_figures import accuracy_by_peers, entropy_by_peers
from kgraft.analysis.records import Grafts, Metrics, mean_of_known, read_metrics
from kgraft.errors import UserError
from kgraft.files import check_place, is_file, storing, whole
from kgraft.runs.analysis import baseline_of, filters_of
from kgraft.runs.config import read
from kgraft.runs.directory import read_json
from kgraft.runs.graft_cache import cached_grafts
from kgraft.runs.peer_counts import peer_counts
from kgraft.runs.records import (
    is_comparison,
    runs_of_comparison,
    short_names,
    unit_of_information,
)

Picture = Any  # a figure of matplotlib's, which only `kgraft.analysis` names
_METRICS = {"accuracy": True, "loss": False, "held-out-loss": False}  # and whether it is a share
_MOST_LINES = 14
_CURVE = ("graft.amplitude", "graft.sharpness")


def draw(
    runs: Sequence[Path],
    out: Path,
    *,
    kind: str = "png",
    threshold: float = 0.1,
    weights: bool = True,
) -> list[Path]:
    """Draw runs into a directory.

    Args:
        runs: directories of runs, finished or not; or of comparisons.
        out: where the pictures go; those of the same names are replaced.
        kind: of the files, `"png"`, `"svg"` or `"pdf"`.
        threshold: the l1 norm below which a filter is invalid.
        weights: whether the peers' weights of finished runs are looked into.

    Returns:
        The files.

    Raises:
        UserError: a directory holds neither a run nor a comparison, a record is damaged, or
            matplotlib is missing.
        StorageError: a file cannot be written.
    """
    pictures: dict[str, Picture] = {}
    names = dict(zip(runs, short_names(runs), strict=True))
    single = [run for run in runs if not is_comparison(run)]
    for run, name in names.items():
        if is_comparison(run):
            pictures |= _named(_of_comparison(run), name, len(runs) > 1)
        elif not is_file(run / "metrics.jsonl"):
            if is_file(run / "run.toml"):
                raise UserError(f"{run} has no metrics.jsonl: no epoch has ended yet.")
            raise UserError(f"{run}: neither a run's directory nor a comparison's.")
    if single:
        pictures |= dict(_of_metrics({names[run]: read_metrics(run) for run in single}))
        for run in single:
            pictures |= _named(_of_run(run, threshold, weights), names[run], len(single) > 1)
        finished = [run for run in single if weights and is_file(run / "summary.json")]
        if len(finished) > 1:
            best = {names[run]: baseline_of(str(run)) for run in finished}
            pictures["thresholds"] = figures.threshold_curves(best)
    whole_runs = [run for run in runs if is_comparison(run) or is_file(run / "run.toml")]
    pictures |= dict(against_peers(whole_runs, weights))
    return save_pictures(pictures, out, kind)


def save_pictures(pictures: Mapping[str, Picture], out: Path, kind: str = "png") -> list[Path]:
    """Write pictures into a directory.

    Args:
        pictures: by name.
        out: where they go; those of the same names are replaced.
        kind: of the files, `"png"`, `"svg"` or `"pdf"`.

    Returns:
        The files.

    Raises:
        StorageError: a file cannot be written.
    """
    with storing(out):
        out.mkdir(parents=True, exist_ok=True)
    files = []
    for name, picture in pictures.items():
        file = out / f"{re.sub(r'[^A-Za-z0-9.,=+-]+', '-', name)}.{kind}"
        check_place(file)
        with whole(file) as partial:
            picture.savefig(partial, format=kind, bbox_inches="tight")
        files.append(file)
    return files


def _named(pictures: Iterator[tuple[str, Picture]], run: str, several: bool) -> dict[str, Any]:
    return {f"{run}-{name}" if several else name: picture for name, picture in pictures}


def _of_metrics(runs: dict[str, Metrics]) -> Iterator[tuple[str, Picture]]:
    """Curves of some runs beside each other: of every peer, or where these are many their means."""
    many = len(runs) > 1 and sum(len(own.models) for own in runs.values()) > _MOST_LINES
    for name, percent in _METRICS.items():
        series: dict[str, list[np.ndarray]] = {}
        for run, own in runs.items():
            values = _values(name, own)
            if values is None:
                continue
            if many:
                series[run] = [*values.T]
                continue
            for k, number in enumerate(own.models.tolist()):
                peer = f"peer {number}" if len(own.models) > 1 or len(runs) == 1 else ""
                label = ", ".join(filter(None, (run if len(runs) > 1 else "", peer)))
                series[label] = [values[:, k]]
        if series:
            note = "mean of the peers; band: all of them" if many else ""
            what = _where(name, runs.values())
            yield name, figures.curves(series, what=what, percent=percent, note=note)


def _of_run(run: Path, threshold: float, weights: bool) -> Iterator[tuple[str, Picture]]:
    grafts = cached_grafts(run)
    if grafts is not None:
        yield from _of_grafts(run, grafts)
    if not weights or not is_file(run / "summary.json"):
        return
    try:
        networks = filters_of([str(run)])
    except UserError as error:
        raise UserError(f"{error} What its records give is drawn with --records-only.") from None
    for name, layers in networks.items():
        peer = name.rpartition(", peer ")[2]
        yield f"filters-peer-{peer}", figures.filter_map(layers, threshold=threshold)
    short = {f"peer {name.rpartition(', peer ')[2]}": own for name, own in networks.items()}
    yield "thresholds", figures.threshold_curves(short)


def against_peers(runs: Sequence[Path], weights: bool) -> Iterator[tuple[str, Picture]]:
    """What lines of runs that are alike but for their number of peers came to.

    Args:
        runs: directories of runs and comparisons.
        weights: see `peer_counts`.

    Returns:
        Pictures by name; none where no line has two numbers of peers.
    """
    found, figure, _ = peer_counts(runs, weights=weights)
    if found:
        what = "mAP" if figure == "mAP" else "accuracy on the test images"
        yield f"{figure}-by-peers", accuracy_by_peers(found, what=what)
    if any(point.entropy for point in found):
        yield "entropy-by-peers", entropy_by_peers(found)


def _of_grafts(run: Path, grafts: Grafts) -> Iterator[tuple[str, Picture]]:
    config = read(run / "run.toml")
    unit = unit_of_information(config)
    reach, known = grafts.reach, grafts.information[np.isfinite(grafts.information)]
    for k, number in enumerate(grafts.peers.tolist()):
        if np.isfinite(grafts.coefficients[:, k]).any():
            yield (
                f"alpha-peer-{number}",
                figures.layer_map(
                    grafts.coefficients[:, k],
                    grafts.groups,
                    grafts.epochs,
                    what="coefficient: share of its own that is kept",
                    limits=(0.5 - reach, 0.5 + reach),
                ),
            )
        if np.isfinite(grafts.information[:, k]).any():
            yield (
                f"information-peer-{number}",
                figures.layer_map(
                    grafts.information[:, k],
                    grafts.groups,
                    grafts.epochs,
                    what=unit,
                    limits=(float(known.min()), float(known.max())),
                ),
            )
    if np.isfinite(grafts.gaps).any() and unit.startswith("entropy"):
        settings = config.flat()
        given = [settings.get(key) for key in _CURVE]
        curve = dict(zip(("amplitude", "sharpness"), given, strict=True))
        known = {name: value for name, value in curve.items() if value is not None}
        yield (
            "coefficients",
            figures.coefficient_curve(grafts.gaps, grafts.coefficients, **known),
        )


def _values(name: str, own: Metrics) -> np.ndarray | None:
    """What is drawn of a run's metrics."""
    keys = {"accuracy": own.accuracy, "held-out-loss": "val_loss"}
    return own.comparable(keys.get(name, name))


def _where(name: str, runs: Iterable[Metrics]) -> str:
    """What a metric is, and on which images."""
    if name != "accuracy":
        return f"loss of the labels on {'training' if name == 'loss' else 'held-out'} images"
    images = {"val_accuracy": "held-out", "accuracy": "training"}
    return f"accuracy on {' or '.join(sorted({images[own.accuracy] for own in runs}))} images"


def _of_comparison(path: Path) -> Iterator[tuple[str, Picture]]:
    """An entry's seeds as a band, and its differences to the baseline."""
    told = read_json(path / "comparison.json", {"entries": [{"entry": str, "against": {}}]})
    entries = [row["entry"] for row in told["entries"]]
    series: dict[str, dict[str, list[np.ndarray]]] = {name: {} for name in _METRICS}
    every: list[Metrics] = []
    for entry, runs in runs_of_comparison(path, entries).items():
        for run in runs:
            metrics = read_metrics(run)
            every.append(metrics)
            for name, found in series.items():
                values = _values(name, metrics)
                if values is not None:
                    found.setdefault(entry, []).append(mean_of_known(values))
    for name, found in series.items():
        if found:
            what, note = _where(name, every), "mean of the peers, over seeds; band: all seeds"
            yield name, figures.curves(found, what=what, percent=_METRICS[name], note=note)
    baseline = next((b for row in told["entries"] for b in row["against"]), None)
    if baseline is not None:
        yield "differences", figures.differences(told["entries"], baseline=baseline)
