"""What `kgraft report` says of runs' directories and comparisons: one page."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from kgraft.analysis import figures
from kgraft.analysis.records import Grafts
from kgraft.analysis.report import tables
from kgraft.analysis.report.page import Curves, Maps, Page, Part, Picture, drawing, render
from kgraft.backend import installed_version
from kgraft.errors import UserError
from kgraft.files import is_file
from kgraft.runs.analysis import filters_of
from kgraft.runs.comparisons.report import ComparisonRecords
from kgraft.runs.directory import read_json
from kgraft.runs.finished import best_peer, numbers_of, rows_of, told_lost
from kgraft.runs.graft_cache import cached_grafts
from kgraft.runs.methods import without_unread
from kgraft.runs.records import (
    RunRecords,
    is_comparison,
    read_records,
    short_names,
    unit_of_information,
)

_MOST_MAPS = 16  # of filters: of more runs, fewer peers each
_TOLD = ("settings", "resumed")  # of environment.json: told elsewhere, or once more


def report(runs: Sequence[Path], *, threshold: float = 0.1, weights: bool = True) -> str:
    """A page about runs.

    Args:
        runs: directories of runs, finished or not; or of comparisons.
        threshold: the l1 norm below which a filter is invalid.
        weights: whether the peers' weights of finished runs are looked into.

    Returns:
        HTML that needs nothing beside itself.

    Raises:
        UserError: a directory holds neither a run nor a comparison, a record is damaged, or bokeh
            is missing.
    """
    drawing()
    names = dict(zip(runs, short_names(runs), strict=True))
    several = [run for run in runs if is_comparison(run)]
    single = [run for run in runs if run not in several]
    for run in single:
        if not is_file(run / "run.toml"):
            raise UserError(
                f"{run}: neither a run's directory nor a comparison's, which has a comparison.json."
            )
    found = [read_records(own, names[own]) for own in single]
    compared = [ComparisonRecords(own, names[own]) for own in several]
    maps, unmapped = _maps(found)
    most = max(1, _MOST_MAPS // max(1, len(found)))
    seeds = {
        f"{own.name}, {first.name}, first seed": first
        for own in compared
        for first in own.first_seeds
    }
    whole = {own.name: own for own in found} | seeds
    return render(
        Page(
            title=", ".join([*(own.name for own in found), *(own.name for own in compared)]),
            made=f"Made by kgraft report {installed_version('kgraft')}, "
            f"{datetime.now():%Y-%m-%d %H:%M}.",
            summary=_summary(found) if found else None,
            findings=[own.sentence for own in compared],
            changes=_changes(found),
            comparisons=[own.part(number) for number, own in enumerate(compared)],
            results=[_results(own) for own in found],
            curves=_curves(found),
            maps=maps,
            unmapped=unmapped,
            filters=[_filters(own, threshold, weights, most) for own in found],
            settings={name: own.config.to_toml() for name, own in whole.items()},
            environment=_environment(whole),
        )
    )


def _summary(found: Sequence[RunRecords]) -> tables.Table:
    """A column a run: what it is, and what came out."""
    columns = []
    for own in found:
        config, chosen, summary = own.config, own.selected(), own.summary or {}
        columns.append(
            {
                "status": own.status,
                "method": config.run.method or summary.get("method", ""),
                "model": config.model.name,
                "data": config.data.name,
                "peers": str(config.peers.count),
                "teachers": str(config.teachers.count),
                "epochs": str(config.run.epochs),
                "seed": str(config.run.seed),
                "seconds": f"{summary['seconds']:.0f}" if summary else "",
                "best peer, on the test images": _best(own),
                "uniform soup": _share(chosen.get("uniform soup")),
                "greedy soup": _share(chosen.get("greedy soup")),
                "ensemble": _share(summary.get("ensemble") if config.peers.count > 1 else None),
            }
        )
    rows = tuple((key, *(own[key] for own in columns)) for key in columns[0])
    kept = tuple(row for row in rows if any(row[1:]))
    return tables.Table("Runs", ("", *(own.name for own in found)), kept, words=True)


def _best(own: RunRecords) -> str:
    """What the peer that is best by validation answers on the test images, and which one it is."""
    if own.summary is None:
        return ""
    number = best_peer(own.summary)
    return f"{_share(rows_of(own.summary)[number])} (peer {number})"


def _share(row: Mapping[str, Any] | None) -> str:
    """The figure of a network that counts."""
    if row is None:
        return ""
    searched = row.get("test_mAP")
    if isinstance(searched, float):
        return f"{100 * searched:.2f} % mAP"
    return f"{100 * row['test_accuracy']:.2f} %"


def _changes(found: Sequence[RunRecords]) -> tables.Table | None:
    if len(found) < 2:
        return None
    title = "Settings that are not the same in all runs"
    return tables.changes({own.name: without_unread(own.config).told() for own in found}, title)


def _results(own: RunRecords) -> Part:
    given, said = [], []
    if own.summary is None:
        said.append(f"The run is {own.status}; it has no test figures yet.")
    else:
        given.append(tables.measured(own.summary))
        said += [f"{_capital(sentence)}." for sentence in told_lost(own.summary)]
    if chosen := own.selected():
        given.append(tables.selected(chosen))
    if own.metrics:
        given.append(tables.last_epochs(own.metrics))
    sick = [
        tables.network(phase, number, len(metrics.models))
        for phase, metrics in own.metrics.items()
        for k, number in enumerate(metrics.models.tolist())
        if "loss" in metrics.values
        and not np.isfinite(metrics.values["loss"][metrics.is_there[:, k], k]).all()
    ]
    away = [
        f"{tables.network(phase, number, len(metrics.models))} ({missed} of {len(metrics.epochs)})"
        for phase, metrics in own.metrics.items()
        for number, missed in zip(
            metrics.models.tolist(), (~metrics.is_there).sum(axis=0).tolist(), strict=True
        )
        if missed
    ]
    if away:
        said.append(f"Lost, for some of the epochs: {', '.join(away)}.")
    if sick:
        said.append(f"The loss was no finite number in some epochs of: {', '.join(sick)}.")
    return Part(own.name, given, said)


def _curves(found: Sequence[RunRecords]) -> Curves | None:
    """Every network of some runs beside each other."""
    networks = []  # name on the page, its metrics, its column
    for own in found:
        for phase, metrics in sorted(own.metrics.items(), key=lambda kind: kind[0] != "peers"):
            for k, number in enumerate(metrics.models.tolist()):
                name = tables.network(phase, number, len(metrics.models))
                networks.append((f"{own.name}, {name}" if len(found) > 1 else name, metrics, k))
    if not networks:
        return None
    drawn = drawing()
    known = dict.fromkeys(drawn.TITLES)
    for _, metrics, _ in networks:
        known |= dict.fromkeys(metrics.values)
    plots: list[Any] = []
    for metric in known:
        lines = [
            drawn.Line(place, name, metrics.epochs, values[:, k])
            for place, (name, metrics, k) in enumerate(networks)
            if (values := metrics.comparable(metric)) is not None
            and np.isfinite(values[:, k]).any()
        ]
        if lines:
            plots.append(drawn.Plot.of(metric, f"curves-{len(plots)}", lines))
    names = [name for name, _, _ in networks]
    return Curves("Curves", names, plots) if plots else None


def _maps(found: Sequence[RunRecords]) -> tuple[list[Maps], list[str]]:
    """Those of the runs that were grafted, and why others have none."""
    maps, without = [], []
    for place, own in enumerate(found):
        grafts = cached_grafts(own.path)
        parts = [] if grafts is None else _maps_of(own, grafts, f"map-{place}")
        if grafts is not None and parts:
            maps.append(Maps(own.name, grafts, parts))
        else:
            without.append(f"{own.name}: no layer was grafted.")
    return maps, without


def _maps_of(own: RunRecords, grafts: Grafts, name: str) -> list[Any]:
    information = unit_of_information(own.config)
    shown = (
        (
            *("Coefficient: share of its own that a layer keeps", "coefficient"),
            *(grafts.coefficients, (0.5 - grafts.reach, 0.5 + grafts.reach)),
        ),
        (_capital(information), information, grafts.information, None),
    )
    return [
        drawing().Map(f"{name}-{k}", title, short, values, grafts.epochs, grafts.groups, limits)
        for k, (title, short, values, limits) in enumerate(shown)
        if np.isfinite(values).any()
    ]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _filters(own: RunRecords, threshold: float, weights: bool, most: int) -> Part:
    """Invalid filters of a run's peers, and maps of so many of them."""
    if not weights:
        return Part(own.name, notes=["The weights were left alone (--records-only)."])
    if own.summary is None:
        return Part(own.name, notes=["The run is not finished: there are no networks yet."])
    try:
        networks = filters_of([str(own.path)])
    except UserError as error:
        return Part(own.name, notes=[f"Not looked into: {error}"])
    numbers = numbers_of(own.summary)
    short = {f"peer {k}": layers for k, layers in zip(numbers, networks.values(), strict=True)}
    told = [tables.filters(short, threshold), tables.invalid_by_layer(short, threshold)]
    drawn = [
        Picture(
            f"Filters of {own.name}, {name}",
            figures.png(figures.filter_map(layers, threshold=threshold)),
        )
        for name, layers in [*short.items()][:most]
    ]
    return Part(own.name, told, pictures=drawn)


def _environment(runs: Mapping[str, RunRecords]) -> tables.Table | None:
    """Machines and versions, a column a run."""
    told: dict[str, dict[str, str]] = {}
    for name, own in runs.items():
        file = own.path / "environment.json"
        if is_file(file):
            given = {key: value for key, value in read_json(file).items() if key not in _TOLD}
            told[name] = tables.flat(given)
    if not told:
        return None
    rows = []
    for key in dict.fromkeys(key for own in told.values() for key in own):
        cells = [own.get(key, "") for own in told.values()]
        same = len(cells) > 1 and len(set(cells)) == 1
        rows.append((key, *([cells[0], *["the same"] * (len(cells) - 1)] if same else cells)))
    return tables.Table("Where the runs were trained", ("", *told), tuple(rows), words=True)
