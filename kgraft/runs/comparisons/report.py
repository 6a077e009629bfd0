"""A comparison's part of a report: its lines, its entries' settings, its entries over epochs."""

from pathlib import Path
from typing import Any

import numpy as np

from kgraft.analysis.records import mean_of_known
from kgraft.analysis.report import tables
from kgraft.analysis.report.page import Comparison, Curves, drawing
from kgraft.files import is_file
from kgraft.runs.directory import read_json
from kgraft.runs.records import RunRecords, read_records, runs_of_comparison

_ROW = {
    "entry": str,
    "seed": int,
    "networks": int,
    "trainings": float,
    "given_teachers": int,
    "last": float,
    "best": (float, None),
    "mean_peer": float,
    "uniform_soup": float,
    "ensemble": float,
}
_TOLD = {"runs": [_ROW], "entries": [{"entry": str, "against": {}}]}


class ComparisonRecords:
    """What the runs of a comparison have written down.

    Args:
        path: its directory, which has a `comparison.json`.
        name: what it is called.

    Raises:
        UserError: a file is cut off or damaged.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        self._told = read_json(path / "comparison.json", _TOLD)
        self._searched = None
        if "mAP" in self._told:
            self._searched = read_json(path / "comparison.json", {"mAP": _TOLD})["mAP"]
        entries = [row["entry"] for row in self._told["entries"]]
        self._runs = {
            entry: [read_records(run, entry) for run in runs if is_file(run / "run.toml")]
            for entry, runs in runs_of_comparison(path, entries).items()
        }

    @property
    def first_seeds(self) -> list[RunRecords]:
        """Of each entry that has runs, the first one."""
        return [runs[0] for runs in self._runs.values() if runs]

    @property
    def sentence(self) -> str:
        """What was compared, and what came out best."""
        table, *_ = self._compared(self._told)
        rows = self._told["runs"]
        means: dict[str, list[float]] = {}
        for row in rows:
            means.setdefault(row["entry"], []).append(row["last"])
        best = max(means, key=lambda entry: np.mean(means[entry]))
        share = next(row for row in table.rows if row[0] == best)[4]
        methods = _count(len(means), "method")
        seeds = _count(len({row["seed"] for row in rows}), "seed")
        return (
            f"{self.name}: {methods} on {seeds}; the highest on the test images: {best}, {share} %."
        )

    def part(self, number: int) -> Comparison:
        """The comparison's part of a page.

        Args:
            number: which comparison of the page it is.
        """
        given = {"Accuracy on the test images": self._told}
        if self._searched is not None:
            given = {"mAP": self._searched, "Rank-1": self._told}
        parts: list[tables.Table] = []
        forests: list[tables.Forest] = []
        said: list[str] = []
        for title, own in given.items():
            table, some, said = self._compared(own, title)
            parts.append(table)
            forests = forests or some
        settings = {own.name: own.config.told() for own in self.first_seeds}
        changed = tables.changes(settings, "Settings that are not the same in all entries")
        return Comparison(
            self.name,
            [*parts, changed] if changed else parts,
            forests,
            [*said, "Curves and maps of a run: kgraft report with that run's directory."],
            self._curves(number),
        )

    def _compared(
        self, told: dict[str, Any], title: str = ""
    ) -> tuple[tables.Table, list[tables.Forest], list[str]]:
        first = self.first_seeds
        return tables.compared(told, title, first[0].config.run.select if first else "validation")

    def _curves(self, number: int) -> Curves | None:
        """The mean over peers and seeds of each entry, between its lowest and highest seed."""
        peers = {
            entry: [run.metrics["peers"] for run in runs if "peers" in run.metrics]
            for entry, runs in self._runs.items()
        }
        peers = {entry: own for entry, own in peers.items() if own}
        drawn = drawing()
        found = (name for own in peers.values() for one in own for name in one.values)
        names = dict.fromkeys([*drawn.TITLES, *found])
        plots: list[Any] = []
        for metric in names:
            lines = []
            for place, (entry, runs) in enumerate(peers.items()):
                told = [(own, own.comparable(metric)) for own in runs]
                seeds = [values for _, values in told if values is not None]
                if seeds and (line := _mean(drawn, place, entry, seeds, told[0][0].epochs)):
                    lines.append(line)
            if lines:
                plots.append(drawn.Plot.of(metric, f"entries-{number}-{len(plots)}", lines))
        note = "Mean of the peers and seeds of each method; shaded: between the seeds."
        return Curves("Methods over epochs", list(peers), plots, note) if plots else None


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _mean(
    drawn: Any, place: int, entry: str, seeds: list[np.ndarray], epochs: np.ndarray
) -> Any | None:
    """An entry's line, as far as all of its seeds go; None where nothing was measured."""
    length = min(map(len, seeds))
    rows = [mean_of_known(own[:length]) for own in seeds]
    stacked = np.stack(rows)
    if not np.isfinite(stacked).any():
        return None
    band = (stacked.min(axis=0), stacked.max(axis=0)) if len(rows) > 1 else None
    return drawn.Line(place, entry, epochs[:length], stacked.mean(axis=0), band)
