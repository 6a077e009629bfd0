"""A run that another process trains, read from its files; nothing is written there."""

import contextlib
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kgraft.errors import UserError
from kgraft.files import has_writer, is_directory, is_file
from kgraft.runs.config import Config, read
from kgraft.runs.methods import taught_epochs
from kgraft.runs.recorder import Observer
from kgraft.structure import fault

_ROW = {"phase": str, "model": int, "epoch": int}
_OFTEN = 0.5  # seconds between two looks
_DEEP, _MANY = 4, 10_000  # folders below a directory in which runs are looked for
_NAMED = 4  # of those runs, and all that are on
_LEAVE = 5.0  # seconds that a run may be nobody's: whoever goes on takes it twice


@dataclass(frozen=True)
class Phase:
    """A part of a run whose networks are trained together.

    Attributes:
        name: `"teacher 1"`, `"teachers"` or `"peers"`.
        models: how many networks.
        epochs: how many they have.
    """

    name: str
    models: int
    epochs: int


Rows = list[dict[str, Any]]


def planned(config: Config) -> list[Phase]:
    """The phases of a run, in order.

    Args:
        config: its settings.
    """
    teachers, epochs = config.teachers, taught_epochs(config)
    numbers = range(len(teachers.files) + 1, teachers.count + 1)
    if teachers.grafted and len(numbers) > 1:
        found = [Phase("teachers", len(numbers), epochs)]
    else:
        found = [Phase(f"teacher {number}", 1, epochs) for number in numbers]
    return [*found, Phase("peers", config.peers.count, config.run.epochs)]


class Following:
    """A run's epochs as they are written down.

    Args:
        run: its directory.

    Attributes:
        written: when the newest epoch was, seconds since 1970.

    Raises:
        UserError: there is no run, or several.
    """

    def __init__(self, run: Path) -> None:
        self.run, self.written = run, time.time()
        if not is_file(run / "run.toml"):
            raise UserError(_no_run(run))
        self.config = read(run / "run.toml")
        self._phases = {phase.name: phase for phase in planned(self.config)}
        self._stamp: tuple[Any, ...] = ()
        self._known: list[tuple[str, int]] = []

    def tell(self, observer: Observer, wait: Callable[[float], None] = time.sleep) -> bool:
        """Tell of the newest epoch that there is, and of each that comes, until the run ends.

        Nobody can tell how many steps an epoch has: 0 are told.

        Args:
            observer: who is told.
            wait: waits so many seconds.

        Returns:
            Whether the run is finished; else nobody is training there any more.
        """
        told, seen = "", time.monotonic()
        while True:
            finished = is_file(self.run / "summary.json")  # what is read next was written before it
            now = time.monotonic()
            if has_writer(self.run) is not False:
                seen = now
            for (name, epoch), rows in self._news(finished)[0 if told else -1 :]:
                if told != name:
                    told = self._begin(observer, name)
                observer.epoch(name, epoch, rows)
                following = list(self._phases)[list(self._phases).index(name) + 1 :]
                if epoch == self._phases[name].epochs and following:
                    told = self._begin(observer, following[0])
            told = told or self._begin(observer, next(iter(self._phases)))
            if finished or now - seen > _LEAVE:
                return finished
            wait(_OFTEN)

    def _begin(self, observer: Observer, name: str) -> str:
        phase = self._phases[name]
        observer.begin(name, phase.models, phase.epochs, 0)
        return name

    def _news(self, finished: bool) -> list[tuple[tuple[str, int], Rows]]:
        """The epochs that are new; those after which the file was cut off are when they return."""
        try:
            found = (self.run / "metrics.jsonl").stat()
        except OSError:  # there is none yet
            return []
        stamp = (found.st_ino, found.st_size, found.st_mtime_ns, finished)
        if stamp == self._stamp:
            return []
        self._stamp, self.written = stamp, found.st_mtime
        epochs, before = list(self._epochs(finished).items()), self._known
        self._known = [key for key, _ in epochs]
        alike = (old == new for old, new in zip(before, self._known, strict=False))
        return epochs[sum(itertools.takewhile(bool, alike)) :]

    def _epochs(self, finished: bool) -> dict[tuple[str, int], Rows]:
        """The epochs that are there in order, the newest only with a row of each model.

        Of one before it, or of a run that is finished, a model has no row that was lost then.
        """
        found: dict[tuple[str, int], Rows] = {}
        for row in _rows(self.run / "metrics.jsonl"):
            if row["phase"] in self._phases:
                found.setdefault((row["phase"], row["epoch"]), []).append(row)
        if found and not finished:
            newest = next(reversed(found))
            if len(found[newest]) < self._phases[newest[0]].models:
                del found[newest]
        return found


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file that somebody is writing, up to one that is not whole."""
    with contextlib.suppress(OSError, ValueError, RecursionError), file.open(encoding="utf-8") as f:
        for line in f:
            row = json.loads(line) if line.endswith("\n") else {}
            if fault(row, _ROW):
                return
            yield {
                name: value
                for name, value in row.items()
                if name in _ROW or isinstance(value, float) or not fault(value, int)
            }


def is_on(path: Path) -> bool:
    """Whether there is a run that somebody trains, or has finished; where nobody can tell, any run.

    Args:
        path: its directory, which need not be there yet.

    Raises:
        UserError: it is a file, or holds several runs.
    """
    if is_file(path / "run.toml"):
        return is_file(path / "summary.json") or has_writer(path) is not False
    if is_file(path) or (is_directory(path) and _runs_below(path)):
        raise UserError(_no_run(path))
    return False


def _no_run(path: Path) -> str:
    """What a directory is instead of a run's."""
    if not is_directory(path):
        return f"{path}: {'it is a file' if is_file(path) else 'there is no such directory'}."
    runs = _runs_below(path)
    if not runs:
        return f"{path}: no run's directory, it holds no run.toml."
    on = [run for run in runs if has_writer(run) and not is_file(run / "summary.json")]
    rest = [run for run in runs if run not in on]
    shown = rest[: max(_NAMED - len(on), 0)]
    which = [f"on now: {', '.join(map(str, on))}"] if on else []
    which += [f"{'others' if on else 'e.g.'}: {', '.join(map(str, shown))}"] if shown else []
    which += [f"and {len(rest) - len(shown)} more"] if len(rest) > len(shown) else []
    count = "a run" if len(runs) == 1 else f"{len(runs)} runs"
    return f"{path} holds {count}: name one, {'; '.join(which)}."


def _runs_below(path: Path) -> list[Path]:
    """The runs in a directory, a comparison's or a table's, in the order of their names."""
    found = []
    for folder, folders, files in itertools.islice(os.walk(path), _MANY):
        here = Path(folder)
        if "run.toml" in files:
            found.append(here)
        if "run.toml" in files or len(here.relative_to(path).parts) == _DEEP:
            folders.clear()
        folders.sort()
    return found
