"""What is said beside the progress: kgraft's logger, and all that libraries write to stderr."""

import contextlib
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Iterator

import click
from rich.console import Console

from kgraft_cli.output import prefix

_STDERR = 2
_OFTEN = 0.1  # seconds


class _Handler(logging.Handler):
    """Information beside the progress, warnings on stderr, where that is not the same terminal."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self._one_terminal = console.is_terminal and os.isatty(_STDERR)

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message."""
        warns = record.levelno >= logging.WARNING
        text = f"{prefix()}: {record.getMessage()}" if warns else record.getMessage()
        if warns and not self._one_terminal:
            click.echo(text, err=True)
        else:
            say(self._console, text)


@contextlib.contextmanager
def messages_on(console: Console, level: int = logging.INFO) -> Iterator[None]:
    """Show kgraft's log messages while the block runs.

    Args:
        console: where information goes.
        level: the least that is shown.
    """
    quiet_tensorflow()
    log, handler = logging.getLogger("kgraft"), _Handler(console)
    before = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(level)
    log.propagate = False  # libraries (absl) give the root a handler, which would say it again
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before[0])
        log.propagate = before[1]


def quiet_tensorflow() -> None:
    """Keep a TensorFlow that is not the backend from telling how it multiplies.

    Keras imports it, where it is installed, to seed it; what its C++ says then goes by no log
    level. Nothing of it is computed with, and errors are shown as ever.
    """
    if os.environ.get("KERAS_BACKEND") != "tensorflow":  # set by `import kgraft`
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")


@contextlib.contextmanager
def stderr_on(console: Console) -> Iterator[None]:
    """Show on a console what is written to stderr while the block runs.

    A table that is redrawn in place has to know of every line that the terminal gets, and C++
    libraries (TensorFlow, XLA) write past Python. They write to a file meanwhile, which never makes
    them wait, and what is new in it is printed ten times a second. A stderr that is not on the
    terminal is left alone.

    Args:
        console: on the terminal.
    """
    if sys.platform == "win32" or not os.isatty(_STDERR):  # Windows has no pread
        yield
        return
    done = threading.Event()
    with tempfile.TemporaryFile(buffering=0) as written:
        sys.stderr.flush()
        terminal = os.dup(_STDERR)
        os.dup2(written.fileno(), _STDERR)
        reader = threading.Thread(
            target=_print_new, args=(console, written.fileno(), done), daemon=True
        )
        reader.start()
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(terminal, _STDERR)
            os.close(terminal)
            done.set()
            reader.join()


def program(ranks: int | str) -> str:
    """How the command is started in so many processes.

    Args:
        ranks: how many on this machine.
    """
    return "kgraft" if ranks == 1 else f"torchrun --nproc-per-node {ranks} -m kgraft_cli"


def say(console: Console, text: str) -> None:
    """Print text as it is."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _print_new(console: Console, file: int, done: threading.Event) -> None:
    """Print the whole lines of a file that grows; at the end also one that is not whole."""
    position, line = 0, b""
    while True:
        last = done.wait(_OFTEN)
        while new := os.pread(file, 1 << 16, position):
            position += len(new)
            line += new
        whole, newline, line = line.rpartition(b"\n")
        if newline:
            say(console, whole.decode(errors="replace"))
        if last:
            if line:
                say(console, line.decode(errors="replace"))
            return
