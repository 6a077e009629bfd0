"""Ctrl-C at a moment that suits: when a step is whole."""

import signal
import threading
from types import FrameType
from typing import Any


class InterruptHeld:
    """Puts a Ctrl-C off until the block has ended; a second one is not held.

    Python delivers it to the main thread only, so elsewhere there is nothing to hold.
    """

    def __enter__(self) -> None:
        self._held: tuple[int, FrameType | None] | None = None
        in_main = threading.current_thread() is threading.main_thread()
        self._handler = signal.getsignal(signal.SIGINT) if in_main else None
        if callable(self._handler):
            signal.signal(signal.SIGINT, self._hold)

    def __exit__(self, *error: Any) -> None:
        if callable(self._handler):
            signal.signal(signal.SIGINT, self._handler)
            if self._held is not None:
                self._handler(*self._held)

    def _hold(self, number: int, frame: FrameType | None) -> None:
        first, self._held = self._held, (number, frame)
        if first is not None and callable(self._handler):
            self._handler(*first)  # whoever counts them must hear of both
            self._handler(number, frame)
