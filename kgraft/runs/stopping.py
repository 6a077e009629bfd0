"""SIGTERM, SIGHUP and Ctrl-C: the first ends a run at a moment that suits, the second at once."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = [own for own in signal.Signals if own.name in ("SIGTERM", "SIGINT", "SIGHUP")]
_STDERR = 2


class Stopped(BaseException):
    """Somebody has asked the run to end. No error: nobody who handles those is to handle it.

    Attributes:
        signal: by which signal.
        go_on: the command that goes on from there, empty where there is nothing yet.
        code: the exit code that says so: 143, 129 or 130.
    """

    def __init__(self, number: int, go_on: str = "") -> None:
        super().__init__(number)
        self.signal = signal.Signals(number)
        self.go_on = go_on

    @property
    def code(self) -> int:
        """See the class."""
        return 128 + self.signal

    def __str__(self) -> str:
        return _told("stopped by", self.signal, self.go_on)


class Stopping:
    """Listens to the signals while its block runs; elsewhere than in the main thread to nothing.

    A SIGHUP that is ignored when it begins, by `nohup`, stays so.

    Attributes:
        go_on: gives the command that would go on if the run ended now, empty where there is none.
    """

    def __init__(self, go_on: Callable[[], str] = str) -> None:
        self.go_on = go_on
        self._wanted: int | None = None
        self._held = False
        self._before: dict[int, Any] = {}
        self._stderr: int | None = None

    def __enter__(self) -> "Stopping":
        if threading.current_thread() is threading.main_thread():
            with contextlib.suppress(OSError):  # it is closed
                self._stderr = os.dup(_STDERR)  # a live display leads it elsewhere meanwhile
            self._before = {
                own: signal.signal(own, self._heard) for own in _SIGNALS if _counts(own)
            }
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._stderr is not None:
            os.close(self._stderr)
            self._stderr = None

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """A block that asks `check` itself, when that suits; it is not broken off elsewhere."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        self.check()

    def check(self) -> None:
        """End here, if somebody has asked for it.

        Raises:
            Stopped: so it is.
        """
        if self._wanted is not None:
            raise Stopped(self._wanted, self.go_on())

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if self._wanted is not None:
            signal.signal(number, signal.SIG_DFL)  # a third one does not wait for the line
            self._say(_told("ended at once by", signal.Signals(number), self.go_on()))
            os._exit(128 + number)  # at once: whatever is being written has no final name yet
        self._wanted = number
        if not self._held:
            raise Stopped(number, self.go_on())

    def _say(self, text: str) -> None:
        """One line past all buffers: whoever was interrupted may be writing to them."""
        if self._stderr is not None:
            behind = "\n" if os.isatty(self._stderr) else ""  # the terminal's ^C
            with contextlib.suppress(OSError):
                os.write(self._stderr, f"{behind}kgraft: {text}\n".encode())


def _counts(number: signal.Signals) -> bool:
    return number.name != "SIGHUP" or signal.getsignal(number) is not signal.SIG_IGN


def _told(what: str, number: signal.Signals, go_on: str) -> str:
    name = "Ctrl-C" if number == signal.SIGINT else number.name
    return f"{what} {name}" + (f": go on with {go_on}" if go_on else ".")
