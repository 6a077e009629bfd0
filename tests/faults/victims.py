"""Runs of the command line in a process of their own, that die where they are told to.

A victim is forked from a process that has imported everything, so that fifty of them take minutes;
jax and tensorflow do not survive a fork: their victims are started anew.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

PROGRAM = "from kgraft_cli.main import main; main()"
TINY = (
    *("fit", "--peers", "2", "--teachers", "1", "--teacher-model", "resnet8", "--epochs", "3"),
    *("--limit-train", "128", "--limit-test", "40", "--batch-size", "32"),
)
LEFT_OUT = ("seconds", "images_per_second", "waiting")  # of a summary: times


@dataclass(frozen=True)
class End:
    """How a victim ended.

    Attributes:
        code: its exit code, negative for the signal that killed it.
        said: what it wrote to stderr.
        seconds: how long it lived.
        told_after: seconds from the signal to its end, None without one.
    """

    code: int
    said: str
    seconds: float
    told_after: float | None = None

    @property
    def lines(self) -> list[str]:
        """What kgraft said on stderr; libraries' own chatter is left out."""
        return [line for line in self.said.splitlines() if line.startswith("kgraft: ")]


def forked(
    arguments: list[str],
    before: Callable[[], None] = lambda: None,
    *,
    after: float | None = None,
    by: tuple[int, ...] = (signal.SIGKILL,),
    meanwhile: Callable[[], None] | None = None,
) -> End:
    """Run the command line in a fork.

    Args:
        arguments: of `kgraft`.
        before: called in the fork first, e.g. to arrange for its death.
        after: seconds after which it gets signals; None for never.
        by: the signals, half a second apart.
        meanwhile: called while it runs, instead of a signal.
    """
    from kgraft_cli.main import main

    with tempfile.TemporaryFile("w+b") as said:
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            code = 70
            try:
                for number in (signal.SIGINT, signal.SIGTERM):
                    signal.signal(
                        number,
                        signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL,
                    )
                os.dup2(said.fileno(), 2)
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                sys.stdout, sys.stderr = (os.fdopen(os.dup(n), "w") for n in (1, 2))
                before()
                main(list(arguments))
            except SystemExit as left:
                code = int(left.code or 0)
            except BaseException:
                import traceback

                traceback.print_exc()
                code = 71
            finally:
                sys.stderr.flush()
                os._exit(code)
        told = None
        if meanwhile is not None:
            meanwhile()
            told = time.monotonic()
        if after is not None:
            time.sleep(after)
            told = time.monotonic()
            for place, number in enumerate(by):
                time.sleep(0.5 if place else 0.0)  # two of a kind at once are one
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, number)
        _, status = os.waitpid(child, 0)
        ended = time.monotonic()
        said.seek(0)
        return End(
            os.waitstatus_to_exitcode(status),
            said.read().decode(errors="replace"),
            ended - began,
            None if told is None else ended - told,
        )


def once_there(file: Path, then: Callable[[], None]) -> Callable[[], None]:
    """What is done when a victim has written a file, for `forked(meanwhile=)`.

    Args:
        file: the file.
        then: what is done.
    """

    def wait() -> None:
        began = time.monotonic()
        while not file.exists():
            assert time.monotonic() - began < 120, f"there is no {file}"
            time.sleep(0.01)
        then()

    return wait


def as_anybody() -> None:
    """Give up root's right to write to what is read-only, in a fork (Linux)."""
    import ctypes

    version, override = 0x20080522, 1 << 1  # of linux/capability.h: CAP_DAC_OVERRIDE
    header = (ctypes.c_uint32 * 2)(version, 0)
    held = (ctypes.c_uint32 * 6)()  # twice: effective, permitted, inheritable
    library = ctypes.CDLL(None, use_errno=True)
    assert library.capget(header, held) == 0
    for place in range(3):
        held[place] &= ~override
    assert library.capset(header, held) == 0, os.strerror(ctypes.get_errno())


def started(
    arguments: list[str],
    *,
    after: float | None = None,
    by: tuple[int, ...] = (signal.SIGKILL,),
    environment: dict[str, str] | None = None,
    program: str = PROGRAM,
) -> End:
    """Run the command line in a process that is started anew; see `forked`."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
    )
    told = None
    if after is not None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(after)
        told = time.monotonic()
        for place, number in enumerate(by):
            time.sleep(0.5 if place else 0.0)
            process.send_signal(number)
    said = process.communicate()[1].decode(errors="replace")
    ended = time.monotonic()
    return End(process.returncode, said, ended - began, None if told is None else ended - told)


def dies_at(place: str, count: int) -> Callable[[], None]:
    """Kill the process when it comes to a place for the n-th time.

    Args:
        place: one of `PLACES`.
        count: n, counted from 1.
    """

    def arrange() -> None:
        owner, name, moment = PLACES[place]()
        real = getattr(owner, name)
        seen = 0

        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen == count and moment == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            result = real(*arguments, **options)
            if seen == count:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(owner, name, call)

    return arrange


def _steps() -> tuple[Any, str, str]:
    from kgraft.engines.stepper import Stepper

    return Stepper, "step", "after"


def _grafting() -> tuple[Any, str, str]:
    from kgraft.links.host_matrix import HostMatrix

    return HostMatrix, "write", "before"


def _writing() -> tuple[Any, str, str]:
    from kgraft.training import checkpoint_files

    return checkpoint_files.safetensors.numpy, "save_file", "after"


def _state() -> tuple[Any, str, str]:
    from kgraft.training import checkpoint_files

    return checkpoint_files, "_checksum", "after"


def _renamed() -> tuple[Any, str, str]:
    from kgraft.training import checkpoint_files

    return checkpoint_files, "_flush", "before"


def _removing() -> tuple[Any, str, str]:
    from kgraft.training import checkpoint_files

    return checkpoint_files, "_remove", "before"


def _lines() -> tuple[Any, str, str]:
    from kgraft.runs import directory

    return directory, "append_text", "after"


def _saving() -> tuple[Any, str, str]:
    from kgraft.runs.directory import RunDirectory

    return RunDirectory, "save_model", "after"


def _noting() -> tuple[Any, str, str]:
    from kgraft.runs.directory import RunDirectory

    return RunDirectory, "_write_json", "before"


def _testing() -> tuple[Any, str, str]:
    from kgraft.runs import ending

    return ending, "answers", "after"


PLACES: dict[str, Callable[[], tuple[Any, str, str]]] = {
    "in a step": _steps,
    "in a grafting": _grafting,
    "in a checkpoint's writing": _writing,
    "between its two files": _state,
    "between flushing and renaming": _renamed,
    "between rename and clean-up": _removing,
    "between an epoch's lines and its checkpoint": _lines,
    "between two networks' files": _saving,
    "before a teacher is noted, or the summary written": _noting,
    "in the test at the end": _testing,
}


@contextlib.contextmanager
def calls_counted(fail_at: int | None) -> Iterator[list[int]]:
    """Count the calls that reach the disk, and let one fail as on a full disk.

    Args:
        fail_at: which, counted from 1; None for none.
    """
    import builtins
    import io

    import h5py
    import safetensors.numpy

    places = [
        *((os, name) for name in ("fsync", "replace", "rename", "mkdir", "truncate", "ftruncate")),
        (safetensors.numpy, "save_file"),
        (h5py, "File"),
        (zipfile.ZipFile, "writestr"),
    ]
    count = [0]

    def counted(function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            count[0] += 1
            if count[0] == fail_at:
                raise OSError(28, "No space left on device")
            return function(*arguments, **options)

        return call

    def opened(real: Any) -> Any:
        failing = counted(real)

        def call(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            writes = isinstance(mode, str) and set(mode) & set("wax+")
            return (failing if writes else real)(file, mode, *arguments, **options)

        return call

    real = [(owner, name, getattr(owner, name)) for owner, name in places]
    opens = [(io, "open", io.open), (builtins, "open", builtins.open)]
    for owner, name, function in real:
        if name != "File":
            setattr(owner, name, counted(function))
    for owner, name, function in opens:
        setattr(owner, name, opened(function))
    try:
        yield count
    finally:
        for owner, name, function in [*real, *opens]:
            setattr(owner, name, function)


def differences(one: Path, other: Path, homes: tuple[Path, Path] | None = None) -> list[str]:
    """What is not the same in two finished runs, times aside; nothing if they are one.

    Args:
        one: a run's directory.
        other: another's.
        homes: of their comparisons, by which they name their teachers.
    """
    import json

    def text(run: Path, name: str) -> str:
        own = (run / name).read_text()
        return own if homes is None else own.replace(str(homes[run == other]), "HOME")

    def summary(run: Path) -> dict[str, Any]:
        told = json.loads(text(run, "summary.json"))
        return {name: value for name, value in told.items() if name not in LEFT_OUT}

    def names(run: Path) -> set[str]:
        """Without checkpoints: a run that was killed after its summary has left the last ones."""
        files = {file.relative_to(run) for file in run.rglob("*") if file.is_file()}
        return {str(file) for file in files if file.parts[0] != "checkpoints"}

    if not (other / "summary.json").is_file():
        return ["there is no summary"]
    found = [] if summary(one) == summary(other) else ["summary.json"]
    found += sorted(names(one) ^ names(other))
    for name in ("metrics.jsonl", "grafts.jsonl", "run.toml"):
        there = (one / name).is_file() and (other / name).is_file()
        if there and text(one, name) != text(other, name):
            found.append(name)  # one that is missing stands among the names
    for file in sorted(one.rglob("*.keras")):
        here, theirs = (weights(run / file.relative_to(one)) for run in (one, other))
        alike = here.keys() == theirs.keys() and all(
            np.array_equal(value, theirs[name]) for name, value in here.items()
        )
        found += [] if alike else [file.name]
    return found


def weights(file: Path) -> dict[str, np.ndarray]:
    """The arrays in a `.keras` file."""
    import h5py

    found: dict[str, np.ndarray] = {}

    def take(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = np.asarray(item)

    with (
        zipfile.ZipFile(file) as opened,
        h5py.File(BytesIO(opened.read("model.weights.h5")), "r") as stored,
    ):
        stored.visititems(take)
    return found


def going_on(out: Path, arguments: tuple[str, ...] = TINY) -> list[str]:
    """The command that goes on with a run, or begins it where nothing is there yet."""
    if (out / "run.toml").is_file():
        return ["fit", "--resume", str(out)]
    return [*arguments, "--out", str(out)]
