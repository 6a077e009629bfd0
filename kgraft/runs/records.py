"""What directories of runs and of comparisons hold so far, finished or not."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kgraft.analysis.records import Metrics, phases, read_metrics
from kgraft.errors import UserError
from kgraft.files import is_directory, is_file
from kgraft.runs.config import Config, read
from kgraft.runs.directory import read_json
from kgraft.runs.finished import read_run

_FIGURES = {"test_accuracy": float}
_SUMMARY = {"ensemble": _FIGURES, "teachers": [_FIGURES], "peers": [_FIGURES], "seconds": float}


@dataclass(frozen=True, eq=False)
class RunRecords:
    """What a run has written down.

    Attributes:
        name: what it is called beside others.
        path: its directory.
        config: its settings.
        summary: None while it is not finished.
        metrics: by phase; nothing before its first epoch.
    """

    name: str
    path: Path
    config: Config
    summary: dict[str, Any] | None
    metrics: dict[str, Metrics]

    @property
    def status(self) -> str:
        """Whether it is finished, and else how far it is."""
        if self.summary is not None:
            return "finished"
        if not self.metrics:
            return "not finished: no epoch yet"
        phase, own = list(self.metrics.items())[-1]
        config = self.config
        epochs = config.run.epochs if phase == "peers" else config.teachers.epochs
        return f"not finished: {phase}, epoch {own.epochs[-1]} of {epochs or config.run.epochs}"

    def selected(self) -> dict[str, Any]:
        """What `kgraft select` has found, nothing where it was not called.

        Raises:
            UserError: the file is cut off or was changed.
        """
        file = self.path / "select.json"
        return read_json(file, {str: _FIGURES}) if is_file(file) else {}


def read_records(path: Path, name: str) -> RunRecords:
    """What a run has written down.

    Args:
        path: its directory, which has a `run.toml`.
        name: what it is called.

    Raises:
        UserError: a file is cut off or damaged.
    """
    config, summary = read(path / "run.toml"), None
    if is_file(path / "summary.json"):
        config, _ = read_run(path)
        summary = read_json(path / "summary.json", _SUMMARY)
    metrics = {}
    if is_file(path / "metrics.jsonl"):
        metrics = {phase: read_metrics(path, phase) for phase in phases(path)}
    return RunRecords(name, path, config, summary, metrics)


def short_names(places: Sequence[Path]) -> list[str]:
    """What places are called beside each other: as much of their paths' ends as sets them apart.

    Args:
        places: files and directories.

    Raises:
        UserError: one is named twice.
    """
    whole = [place.resolve().parts for place in places]
    for place, own in zip(places, whole, strict=True):
        if whole.count(own) > 1:
            raise UserError(f"{place}: named twice.")
    for count in range(1, max(map(len, whole), default=0) + 1):
        short = ["/".join(own[-count:]) for own in whole]
        if len(set(short)) == len(short):
            return short
    return [str(place) for place in places]


def is_comparison(path: Path) -> bool:
    """Whether it is the directory of a comparison that has a result."""
    return is_directory(path) and is_file(path / "comparison.json")


def runs_of_comparison(path: Path, entries: Sequence[str] = ()) -> dict[str, list[Path]]:
    """The runs that have begun, by entry, in the order of their seeds.

    Args:
        path: the comparison's directory.
        entries: names of its entries, in their order; those without runs of their own have none.
    """
    names = {name.replace("/", "-").replace(" ", "-"): name for name in entries}
    found: dict[str, list[Path]] = {}
    for folder in sorted(own for own in path.iterdir() if own.is_dir()):
        runs = sorted(folder.glob("seed-*"), key=lambda run: (len(run.name), run.name))
        runs = [run for run in runs if is_file(run / "metrics.jsonl")]
        if runs:
            found[names.get(folder.name, folder.name)] = runs
    ordered = [name for name in entries if name in found]
    return {name: found[name] for name in dict.fromkeys([*ordered, *found])}


def unit_of_information(config: Config) -> str:
    """What the information of a run's layers is, with its unit.

    Args:
        config: the run's settings.
    """
    criterion = config.flat().get("graft.criterion", "entropy")
    return "entropy, nats" if criterion == "entropy" else f"information ({criterion})"
