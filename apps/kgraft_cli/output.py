"""Where a command prints: a full disk or a closed pipe there ends it in one line."""

import contextlib
import errno
import os
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TextIO, cast

if TYPE_CHECKING:
    from kgraft.runs.stopping import Stopping


def prefix() -> str:
    """What errors and warnings begin with: of several processes, which one says so."""
    rank, ranks = (os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE"))
    return f"kgraft, rank {rank}" if rank and ranks not in ("", "1") else "kgraft"


class OutputError(OSError):
    """Something that could not be printed.

    It has no errno: click and rich take a closed pipe's for theirs, and end without a line.

    Attributes:
        closed: whether whoever has read it has gone, e.g. `head`.
        go_on: the command that goes on from there, empty where there is nothing to go on with.
    """

    def __init__(self, error: OSError) -> None:
        self.closed = error.errno == errno.EPIPE
        reason = f"output cannot be written: {error.strerror or error}"
        super().__init__("output was closed" if self.closed else reason)
        self.go_on = ""

    def __str__(self) -> str:
        return super().__str__() + (f": go on with {self.go_on}" if self.go_on else ".")


class _Checked:
    """A stream of text that says when it cannot be written to."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, or say in the main thread why not; other threads have nobody to tell."""
        with _checked():
            return self._stream.write(text)
        return 0

    def flush(self) -> None:
        """See `write`."""
        with _checked():
            self._stream.flush()


@contextlib.contextmanager
def checked_output() -> Iterator[None]:
    """A block whose stdout and stderr raise `OutputError` where they cannot be written to."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (own and cast(TextIO, _Checked(own)) for own in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


@contextlib.contextmanager
def going_on(stopping: "Stopping") -> Iterator[None]:
    """A block whose `OutputError` says how to go on.

    Args:
        stopping: knows how.
    """
    try:
        yield
    except OutputError as error:
        error.go_on = stopping.go_on()
        raise


def drop_unwritten() -> None:
    """Keep the interpreter's end from trying again to write what cannot be written."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:  # closed before the program began
                stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextlib.contextmanager
def _checked() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if threading.current_thread() is threading.main_thread():
            raise OutputError(error) from None
