"""What `kgraft plot` draws of runs' directories and comparisons."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kgraft.analysis import figures
from kgraft.analysis.records import Grafts, Metrics, read_metrics
from kgraft.errors import UserError
from kgraft.files import check_place, is_file, storing, whole
from kgraft.runs.analysis import filters_of
from kgraft.runs.config import read
from kgraft.runs.directory import read_json
from kgraft.runs.graft_cache import cached_grafts
from kgraft.runs.records import is_comparison, runs_of_comparison, unit_of_information

Picture = Any  # a figure of matplotlib's, which only `kgraft.analysis` names
_METRICS = {"accuracy": ("accuracy", True), "loss": ("loss", False)}
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
    single = [run for run in runs if not is_comparison(run)]
    for run in runs:
        if is_comparison(run):
            pictures |= _named(_of_comparison(run), run.resolve().name, len(runs) > 1)
        elif not is_file(run / "metrics.jsonl"):
            raise UserError(f"{run}: neither a run's directory nor a comparison's.")
    if single:
        metrics = {run.resolve().name: read_metrics(run) for run in single}
        if len(metrics) < len(single):
            metrics = {str(run): read_metrics(run) for run in single}
        pictures |= dict(_of_metrics(metrics))
        for (name, _), run in zip(metrics.items(), single, strict=True):
            pictures |= _named(_of_run(run, threshold, weights), name, len(single) > 1)
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
    """Curves of every peer of some runs beside each other."""
    for name, (what, percent) in _METRICS.items():
        series = {}
        for run, own in runs.items():
            key = own.accuracy if name == "accuracy" else "loss"
            if key not in own.values:
                continue
            for k, number in enumerate(own.models.tolist()):
                peer = f"peer {number}" if len(own.models) > 1 or len(runs) == 1 else ""
                label = ", ".join(filter(None, (run if len(runs) > 1 else "", peer)))
                series[label] = [own.values[key][:, k]]
        if series:
            told = {own.accuracy for own in runs.values()}
            held_out = (
                " on held-out images" if name == "accuracy" and told == {"val_accuracy"} else ""
            )
            yield name, figures.curves(series, what=what + held_out, percent=percent)


def _of_run(run: Path, threshold: float, weights: bool) -> Iterator[tuple[str, Picture]]:
    grafts = cached_grafts(run)
    if grafts is not None:
        yield from _of_grafts(run, grafts)
    if not weights or not is_file(run / "summary.json"):
        return
    networks = filters_of([str(run)])
    for name, layers in networks.items():
        peer = name.rpartition(", peer ")[2]
        yield f"filters-peer-{peer}", figures.filter_map(layers, threshold=threshold)
    short = {f"peer {name.rpartition(', peer ')[2]}": own for name, own in networks.items()}
    yield "thresholds", figures.threshold_curves(short)


def _of_grafts(run: Path, grafts: Grafts) -> Iterator[tuple[str, Picture]]:
    config = read(run / "run.toml")
    unit = unit_of_information(config)
    for k, number in enumerate(grafts.peers.tolist()):
        if np.isfinite(grafts.coefficients[:, k]).any():
            yield (
                f"alpha-peer-{number}",
                figures.layer_map(
                    grafts.coefficients[:, k],
                    grafts.groups,
                    grafts.epochs,
                    what="coefficient (share of its own)",
                    limits=(0.0, 1.0),
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


def _of_comparison(path: Path) -> Iterator[tuple[str, Picture]]:
    """An entry's seeds as a band, and its differences to the baseline."""
    told = read_json(path / "comparison.json", {"entries": [{"entry": str, "against": {}}]})
    entries = [row["entry"] for row in told["entries"]]
    series: dict[str, dict[str, list[np.ndarray]]] = {"accuracy": {}, "loss": {}}
    for entry, runs in runs_of_comparison(path, entries).items():
        for run in runs:
            metrics = read_metrics(run)
            for name, found in series.items():
                key = metrics.accuracy if name == "accuracy" else "loss"
                if key in metrics.values:
                    mean = np.nanmean(metrics.values[key], axis=1)
                    found.setdefault(entry, []).append(mean)
    for name, found in series.items():
        if found:
            what, percent = _METRICS[name]
            mean = "mean of the peers; band: all seeds"
            yield name, figures.curves(found, what=f"{what}, {mean}", percent=percent)
    baseline = next((b for row in told["entries"] for b in row["against"]), None)
    if baseline is not None:
        yield "differences", figures.differences(told["entries"], baseline=baseline)
