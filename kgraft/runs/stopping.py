"""SIGTERM and Ctrl-C: the first ends a run at a moment that suits, the second at once."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(BaseException):
    """Somebody has asked the run to end. No error: nobody who handles those is to handle it.

    Attributes:
        signal: by which signal.
        go_on: the command that goes on from there, empty where there is nothing yet.
        code: the exit code that says so, 143 or 130.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = signal.Signals(number)
        self.go_on = ""

    @property
    def code(self) -> int:
        """See the class."""
        return 128 + self.signal

    def __str__(self) -> str:
        name = "Ctrl-C" if self.signal == signal.SIGINT else self.signal.name
        return f"stopped by {name}" + (f": go on with {self.go_on}" if self.go_on else ".")


class Stopping:
    """Listens to the signals while its block runs; elsewhere than in the main thread to nothing."""

    def __init__(self) -> None:
        self._wanted: int | None = None
        self._held = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Stopping":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._heard) for number in _SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

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
            raise Stopped(self._wanted)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if self._wanted is not None:
            os._exit(128 + number)  # at once: whatever is being written has no final name yet
        self._wanted = number
        if not self._held:
            raise Stopped(number)
