"""The runs of a paper's table: those that are missing are done, finished ones are read."""

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import isnan
from pathlib import Path
from typing import Any

from kgraft import models
from kgraft.analysis.filters import LayerFilters, invalid_ratio, layer_filters, split_norms
from kgraft.analysis.paper_table import Wanted
from kgraft.data.load import data_directory, describe
from kgraft.errors import UserError
from kgraft.files import is_file, only_writer, read_text, sweep
from kgraft.models.registry import default_size
from kgraft.runs.comparisons.jobs import Watcher, side_by_side
from kgraft.runs.comparisons.runs import missing_jobs, read_results, run_path, train_missing
from kgraft.runs.directory import read_json
from kgraft.runs.finished import best_peer_file
from kgraft.runs.keras_file import read_model
from kgraft.runs.recorder import Observer
from kgraft.runs.stopping import Stopping
from kgraft.runs.tables.file import THRESHOLDS, Panel, PaperTable

INVALID = ("0.1", "0.01", "0.001")
"""Thresholds of the l1 norm at which invalid filters are counted."""

_VERSIONS = ("kgraft", "commit", "keras", "backend")


@dataclass(frozen=True)
class Ready:
    """What of a table can be trained.

    Attributes:
        table: it, without the sets that are not there.
        missing: names of sets that are not prepared, and by what they are.
    """

    table: PaperTable
    missing: dict[str, str]


def ready(table: PaperTable) -> Ready:
    """Leave out sets that are not prepared.

    Args:
        table: what is wanted.

    Raises:
        UserError: none of its sets is prepared.
    """
    missing, panels = {}, []
    for panel in table.panels:
        data = panel.comparison.entries[0].config.data
        known = {own.name: own.prepared for own in describe(data.directory)}
        if data.name in known and known[data.name] is None:
            missing[panel.images] = f"kgraft data prepare {data.name}"
        else:
            panels.append(panel)
    if not panels:
        told = ", ".join(f"{name}: {how}" for name, how in missing.items())
        where = data_directory(table.panels[0].comparison.entries[0].config.data.directory)
        raise UserError(f"{table.name}: none of its image sets is prepared in {where} ({told}).")
    return Ready(replace(table, panels=tuple(panels)), missing)


def train(
    table: PaperTable,
    out: Path,
    observer: Observer,
    tell: Callable[[str], None],
    stopping: Stopping,
) -> None:
    """Do the runs that are missing, one after the other; one that was broken off goes on.

    Args:
        table: whose runs.
        out: directory of all tables' runs; those of a panel are in `out/BUDGET/PANEL`.
        observer: who is told of every step and epoch.
        tell: called with a line of text when a run begins, goes on or is found.
        stopping: who may ask for an end.

    Raises:
        UserError: a run in `out` has other settings, or another process is at work there.
        Stopped: by `stopping`.
    """
    for panel in table.panels:

        def said(text: str, own: Panel = panel) -> None:
            tell(f"{_called(own)}: {text}")

        train_missing(panel.comparison, place(table, panel, out), observer, said, stopping)


def train_beside(
    table: PaperTable, out: Path, count: int, watcher: Watcher, stopping: Stopping
) -> None:
    """Do the runs that are missing, so many at a time, each in a process of its own.

    Args:
        table: see `train`.
        out: see `train`.
        count: how many at a time.
        watcher: who is told how far they are.
        stopping: who may ask for an end.

    Raises:
        UserError: see `train`.
        Stopped: by `stopping`, when every run that was on has saved its last whole epoch.
    """
    with contextlib.ExitStack() as locks:
        jobs = []
        for panel in table.panels:
            path = place(table, panel, out)
            locks.enter_context(only_writer(path))
            sweep(path)
            size = _flops(panel)
            own = missing_jobs(panel.comparison, path, within=f"{_called(panel)}: ", size=size)
            jobs += own
        side_by_side(jobs, count, watcher, stopping)


def with_all_seeds(table: PaperTable, out: Path) -> PaperTable:
    """The table with every seed that was ever trained for it.

    Args:
        table: it.
        out: see `train`.
    """
    panels = []
    for panel in table.panels:
        found = {
            int(run.name.removeprefix("seed-"))
            for run in place(table, panel, out).glob("*/seed-*")
            if run.name.removeprefix("seed-").isdecimal()
        }
        seeds = tuple(sorted({*panel.comparison.seeds, *found}))
        panels.append(replace(panel, comparison=replace(panel.comparison, seeds=seeds)))
    return replace(table, panels=tuple(panels))


def read_rows(table: PaperTable, out: Path) -> list[dict[str, Any]]:
    """What finished runs say, one row a panel, entry and seed.

    Args:
        table: whose runs.
        out: see `train`.

    Returns:
        Rows, JSON-able: `table`, `budget`, `set`, `network`, `model`, `part`, what `read_results`
        gives, versions, and where the table shows filters `filters` of the peer that is best on the
        held-out images: `count`, `invalid` (shares by threshold), `entropy` (nats, in all), `norms`
        (by threshold the mean l1 norms of filters that are valid and invalid in the baseline of the
        same seed; None for none).

    Raises:
        UserError: a run has other settings than the table.
    """
    return [row for panel in table.panels for row in _rows(table, panel, out)]


def with_kept(rows: list[dict[str, Any]], table: PaperTable, file: Path) -> list[dict[str, Any]]:
    """Rows, and those of a table's runs that were read before and whose directories are gone.

    Args:
        rows: what `read_rows` gave.
        table: whose.
        file: the lines of JSON that were written then, if there are any.

    Raises:
        UserError: a line is damaged.
    """
    if not is_file(file):
        return rows

    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(row.get(name) for name in ("set", "network", "part", "entry", "seed"))

    known = {key(row) for row in rows}
    entries = {(own.images, own.network, own.part, own.entry) for own in wanted(table)}
    found = list(rows)
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError:
            raise UserError(f"{file}, line {number}: no JSON; move the file away.") from None
        if isinstance(row, dict) and key(row) not in known and key(row)[:4] in entries:
            found.append(row)
    return found


def wanted(table: PaperTable) -> list[Wanted]:
    """The entries of a table, whether they were trained or not."""
    found = []
    for panel in table.panels:
        base = _baseline_figure(table, panel)
        for entry in panel.comparison.entries:
            own = panel.published.get(entry.name, {})
            found.append(
                Wanted(
                    images=panel.images,
                    network=panel.network,
                    model=panel.model,
                    entry=entry.name,
                    part=panel.part,
                    baseline=panel.comparison.baseline,
                    published=own,
                    published_baseline=None if entry.name == table.baseline else base,
                    seeds=len(panel.comparison.seeds),
                )
            )
    return found


def place(table: PaperTable, panel: Panel, out: Path) -> Path:
    """The directory of a panel's runs."""
    return out / table.budget / panel.place


def _rows(table: PaperTable, panel: Panel, out: Path) -> Iterator[dict[str, Any]]:
    path = place(table, panel, out)
    comparison = panel.comparison
    if not any(
        (run_path(path, comparison.entry(own.runs_of), seed) / "summary.json").is_file()
        for own in comparison.entries
        for seed in comparison.seeds
    ):
        return
    filters: dict[Path, tuple[LayerFilters, ...]] = {}

    def layers(run: Path) -> tuple[LayerFilters, ...]:
        if run not in filters:
            file = best_peer_file(run)
            filters[run] = layer_filters(read_model(file, str(file)))
        return filters[run]

    for row in read_results(comparison, path):
        entry, seed = comparison.entry(row["entry"]), row["seed"]
        run = run_path(path, comparison.entry(entry.runs_of), seed)
        machine = read_json(run / "environment.json")
        told = {
            "table": table.name,
            "budget": table.budget,
            "set": panel.images,
            "network": panel.network,
            "model": panel.model,
            "part": panel.part,
            **row,
            **{name: machine.get(name) for name in _VERSIONS},
        }
        base = run_path(path, comparison.entry(comparison.baseline), seed)
        if {*table.shows} - {"accuracy"} and (base / "summary.json").is_file():
            told["filters"] = _filters(layers(run), layers(base))
        yield told


def _filters(
    layers: tuple[LayerFilters, ...], baseline: tuple[LayerFilters, ...]
) -> dict[str, Any]:
    found = invalid_ratio(layers, [float(bound) for bound in INVALID]).tolist()
    shares = [None if isnan(share) else share for share in found]  # JSON has no nan
    norms = {}
    for bound in THRESHOLDS:
        own = split_norms(layers, baseline, float(bound))
        norms[bound] = {
            "valid": None if isnan(own.valid) else own.valid,
            "invalid": None if isnan(own.invalid) else own.invalid,
            "counts": [own.valid_count, own.invalid_count],
        }
    return {
        "count": sum(len(own.norms) for own in layers),
        "invalid": dict(zip(INVALID, shares, strict=True)),
        "entropy": None if isnan(entropy := sum(own.entropy for own in layers)) else entropy,
        "norms": norms,
    }


def _baseline_figure(table: PaperTable, panel: Panel) -> float | None:
    """The baseline's published accuracy on a panel's set and network, whatever part it is in."""
    for other in table.panels:
        if (other.images, other.network) == (panel.images, panel.network):
            if table.baseline in other.published:
                return other.published[table.baseline].get("accuracy")
    return None


def _called(panel: Panel) -> str:
    return f"{panel.images}, {panel.network}"


def _flops(panel: Panel) -> float:
    """Of one image's forward pass through a panel's network, for the time that is left."""
    data = panel.comparison.entries[0].config.data
    side = data.size if isinstance(data.size, int) else default_size(panel.model)
    return float(models.flops(models.build(panel.model, input_shape=(side, side, 3), classes=10)))
