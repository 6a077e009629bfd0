"""A run's directory: what it was told, what it did, what came out."""

import contextlib
import itertools
import json
import re
import shutil
from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import keras

from kgraft.errors import UserError
from kgraft.files import (
    Kept,
    append_text,
    read_text,
    storing,
    sweep,
    whole,
    write_text,
)
from kgraft.runs.config import Config
from kgraft.runs.keras_file import read_model
from kgraft.structure import fault

_ROW = {
    "test_accuracy": float,
    "validation_accuracy": (float, None),
    "best_test_accuracy": float,
    "best_validation_accuracy": (float, None),
}
SUMMARY = {"peers": [_ROW], "seconds": float}
_TEACHER = {"row": {**_ROW, "teacher": int, "best_epoch": int}, "lines": object}
_KEPT = {"size": int, "checksum": int}


def default_path(config: Config) -> Path:
    """Where a run goes when nobody says: `runs/<data>-<model>-<peers>p<teachers>t-<time>`."""
    data, numbers = config.data.name, f"{config.peers.count}p{config.teachers.count}t"
    name = Path(data).stem if data.endswith(".npz") else data
    words = (name, config.model.name, config.run.method, numbers, f"{datetime.now():%Y%m%d-%H%M%S}")
    return Path("runs") / "-".join(re.sub(r"[/:\\]", "-", word) for word in words if word)


def check_no_file(path: Path) -> None:
    """Refuse a place where no directory can be.

    Raises:
        UserError: it or what it lies in is a file.
    """
    try:
        files = [part for part in (path, *path.parents) if part.exists() and not part.is_dir()]
    except OSError as error:  # e.g. a name that is too long
        raise UserError(f"output {path} cannot be made: {error.strerror}.") from None
    if files:
        raise UserError(f"output {path}: {files[0]} is a file; expected a directory.")


def check_free(path: Path) -> None:
    """Refuse a directory that something else lives in.

    What is left of a run that ended in its first epoch, a mistake's say, is nothing to keep: a run
    may begin there anew.

    Raises:
        UserError: it or what it lies in is a file, or it is not empty.
    """
    check_no_file(path)
    names = {own.name for own in path.iterdir()} if path.is_dir() else set()
    left = {name for name in names if not name.startswith(".")}
    if not any(path.glob("checkpoints/*/epoch-*")):
        left.discard("checkpoints")
    if left and left != {"run.toml", "environment.json"}:
        if (path / "run.toml").exists() and not (path / "summary.json").exists():
            raise UserError(
                f"output directory {path} holds a run that did not finish: go on with kgraft fit "
                f"--resume {path}, choose another --out, or remove it."
            )
        what = "holds another run" if (path / "run.toml").exists() else "is not empty"
        raise UserError(f"output directory {path} {what}: choose another --out, or remove it.")


def make_free(path: Path) -> None:
    """Make a directory that nothing else lives in.

    Raises:
        UserError: it is not free.
        StorageError: it cannot be made.
    """
    check_free(path)
    with storing(path):
        path.mkdir(parents=True, exist_ok=True)


def make_new(path: Path) -> Path:
    """Make a directory that nobody else has, under a name with a number where that is taken.

    Args:
        path: the name that is wanted.

    Returns:
        The directory: `path`, or `path-2`, `path-3` and so on.

    Raises:
        StorageError: it cannot be made.
    """
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            own = path if number == 1 else path.with_name(f"{path.name}-{number}")
            with contextlib.suppress(FileExistsError):
                own.mkdir()
                break
    return own


class RunDirectory:
    """The files of one run, written as it goes.

    `run.toml` (the resolved run file), `environment.json`, `metrics.jsonl` (a line a model and
    epoch), `grafts.jsonl` (a line an epoch, peer and plan group), `peers/`, `teachers/`, and at the
    very end `summary.json`: a directory without it holds a run that did not finish, which goes on
    from `checkpoints/`.

    A line of `grafts.jsonl` has the epoch whose weights were blended, one of `metrics.jsonl` shows
    in `alpha` what was blended when its epoch was logged. With `evaluate="before"` an epoch's blend
    comes when the next one begins, so that its alpha stands in the next line of `metrics.jsonl`.

    Args:
        path: the directory; made where it is missing.
        config: the run's settings.
        environment: what `environment` gave.
        resumed: whether the run goes on in a directory of its own.

    Raises:
        UserError: the directory is not free.
        StorageError: it cannot be made.
    """

    def __init__(
        self,
        path: Path,
        config: Config,
        environment: dict[str, Any],
        *,
        resumed: bool = False,
    ) -> None:
        self.path = path
        self._lines = {"metrics.jsonl": Kept(), "grafts.jsonl": Kept()}
        self._resumed: dict[str, Any] | None = None
        if resumed:
            check_unfinished(path)
            sweep(path)
        else:
            make_free(path)
            write_text(path / "run.toml", config.resolved())
        file = path / "environment.json"
        if resumed and file.is_file():
            began = read_json(file)
            before = began.get("resumed")
            before = before if isinstance(before, list) else []
            self._resumed = {**began, "resumed": [*before, environment]}
        else:  # also one that was killed before it was written
            self._write_json("environment.json", {**environment, "settings": config.told()})

    def told_lines(self) -> dict[str, dict[str, int]]:
        """How far `metrics.jsonl` and `grafts.jsonl` are written, JSON-able."""
        return {name: asdict(kept) for name, kept in self._lines.items()}

    def keep_lines(self, told: Any) -> None:
        """Keep the lines of that time; those of epochs that are trained again are cut off then.

        Args:
            told: what `told_lines` gave.

        Raises:
            UserError: it is something else, or these lines were changed or cut off.
        """
        wrong = fault(told, dict.fromkeys(self._lines, _KEPT))
        sizes = {} if wrong else {name: told[name]["size"] for name in self._lines}
        wrong = wrong or next((f"{name}: {size}" for name, size in sizes.items() if size < 0), "")
        if wrong:
            raise UserError(f"{self.path} has no lengths of its files that could be: {wrong}.")
        lines = {name: Kept(told[name]["size"], told[name]["checksum"]) for name in self._lines}
        for name, kept in lines.items():
            kept.check(self.path / name)
        self._lines = lines

    def checkpoints(self, phase: str) -> Path:
        """Where a phase of the run, `"teacher 1"` or `"peers"`, is saved."""
        return checkpoints_of(self.path, phase)

    def end_teacher(self, number: int, row: dict[str, Any]) -> None:
        """Note that a teacher, counted from 1 and saved, is trained: it is not trained again.

        Args:
            number: which.
            row: what `summary.json` will say of it.
        """
        self._write_json(
            f"teachers/teacher-{number}.json", {"row": row, "lines": self.told_lines()}
        )

    def ended_teacher(self, number: int, teacher: keras.Model) -> dict[str, Any] | None:
        """Give a teacher that is trained its weights.

        Args:
            number: which, counted from 1.
            teacher: gets the weights.

        Returns:
            Its row, None for one that is not trained.

        Raises:
            UserError: its files are not what this run has written.
        """
        files = [self.path / "teachers" / f"teacher-{number}{kind}" for kind in (".keras", ".json")]
        if not all(file.is_file() for file in files):
            return None
        told = read_json(files[1], _TEACHER)
        self.keep_lines(told["lines"])
        teacher.set_weights(self._weights_of_teacher(number, files[0], teacher))
        row: dict[str, Any] = told["row"]
        return row

    def _weights_of_teacher(self, number: int, file: Path, teacher: keras.Model) -> list[Any]:
        saved = self.checkpoints(f"teacher {number}")
        way_out = f" Remove it: --resume makes it anew, from {saved}." if saved.is_dir() else ""
        try:
            trained: list[Any] = read_model(file, str(file)).get_weights()
            if [value.shape for value in trained] != [value.shape for value in teacher.weights]:
                raise UserError(f"{file} is another network than teacher {number} of this run.")
        except UserError as error:
            raise UserError(f"{error}{way_out}") from None
        return trained

    def has_metrics(self, phase: str) -> bool:
        """Whether `metrics.jsonl` has a line of a phase."""
        file, own = self.path / "metrics.jsonl", f'"phase": {json.dumps(phase)}'.encode()
        if not file.is_file():
            return False
        with storing(file), file.open("rb") as lines:
            return any(own in line for line in lines)

    def add_metrics(self, rows: Iterable[dict[str, Any]]) -> None:
        """Append lines to `metrics.jsonl`."""
        self._append("metrics.jsonl", rows)

    def add_grafts(self, rows: Iterable[dict[str, Any]]) -> None:
        """Append lines to `grafts.jsonl`."""
        self._append("grafts.jsonl", rows)

    def save_model(self, model: keras.Model, weights: list[Any] | None, name: str) -> None:
        """Save an uncompiled copy, which loads in plain Keras without kgraft.

        Args:
            model: whose architecture and, by default, weights are saved.
            weights: other weights, as from `get_weights`.
            name: file below the directory, without `.keras`.
        """
        save_uncompiled(model, self.path / f"{name}.keras", weights)

    def finish(self, summary: dict[str, Any]) -> None:
        """Write `summary.json`; from then on there is nothing to go on from."""
        self._note_resumed()
        self._write_json("summary.json", summary)
        shutil.rmtree(self.path / "checkpoints", ignore_errors=True)

    def _append(self, name: str, rows: Iterable[dict[str, Any]]) -> None:
        self._note_resumed()
        text = "".join(json.dumps(row) + "\n" for row in rows)
        self._lines[name] = append_text(self.path / name, text, self._lines[name])

    def _note_resumed(self) -> None:
        """Once it is sure that the run does go on."""
        if self._resumed is not None:
            self._write_json("environment.json", self._resumed)
            self._resumed = None

    def _write_json(self, name: str, content: dict[str, Any]) -> None:
        write_text(self.path / name, json.dumps(content, indent=2) + "\n")


def checkpoints_of(path: Path, phase: str) -> Path:
    """Where a phase of the run in a directory is saved."""
    return path / "checkpoints" / phase.replace(" ", "-")


def save_uncompiled(model: keras.Model, file: Path, weights: list[Any] | None = None) -> None:
    """Save a copy without compile settings, which loads in plain Keras without kgraft.

    Args:
        model: whose architecture and, by default, weights are saved.
        file: a `.keras` file.
        weights: other weights, as from `get_weights`.

    Raises:
        StorageError: the file cannot be written.
    """
    copy = type(model).from_config(model.get_config())  # clone_model would compile it too
    copy.set_weights(model.get_weights() if weights is None else weights)
    with storing(file):
        file.parent.mkdir(exist_ok=True)
    with whole(file) as partial:
        copy.save(partial)


def check_unfinished(path: Path) -> None:
    """Refuse to go on with a run that is finished.

    Args:
        path: its directory.

    Raises:
        UserError: it is, or its `summary.json` is cut off or was changed.
    """
    if (path / "summary.json").is_file():
        read_json(path / "summary.json", SUMMARY)
        raise UserError(f"--resume {path}: the run is finished, there is nothing to go on with.")


def read_json(file: Path, like: Any = None) -> dict[str, Any]:
    """What a file of a run's directory holds.

    Args:
        file: a `.json` file, there.
        like: what it has to look like, see `kgraft.structure.fault`; by default any object.

    Raises:
        UserError: it is cut off, longer than `MOST_TEXT`, or not what a run has written.
    """
    try:
        found = json.loads(read_text(file), parse_constant=_no_number)
    except (OSError, ValueError, RecursionError):  # of the machine; JSON, UTF-8; nested too deep
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{file} is cut off or was not written by kgraft: copy the run anew.")
    wrong = fault(found, {} if like is None else like)
    if wrong:
        raise UserError(f"{file}: {wrong}; it was changed, or not written by kgraft.")
    return found


def _no_number(name: str) -> None:
    raise ValueError(name)  # NaN, Infinity: a run writes none
