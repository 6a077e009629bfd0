"""Batches made ready by a thread while the device is at work on the one before."""

import queue
import threading
from collections.abc import Callable, Generator, Iterable
from typing import Any


def prefetched(
    batches: Iterable[Any], prepare: Callable[[Any], Any], depth: int = 2
) -> Generator[Any, None, None]:
    """The prepared batches, in order, up to `depth` of them ahead of the reader.

    Args:
        batches: read in a thread of its own, which ends when the generator is closed.
        prepare: done in that thread, e.g. the copy to the device.
        depth: batches that may wait, at least 1.

    Yields:
        What `prepare` gave; an error of either is raised where its batch would have come.

    Example:
        >>> list(prefetched(range(3), lambda number: 10 * number))
        [0, 10, 20]
    """
    waiting: queue.Queue[tuple[str, Any]] = queue.Queue(depth)
    closed = threading.Event()

    def put(kind: str, value: Any) -> bool:
        while not closed.is_set():
            try:
                waiting.put((kind, value), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for batch in batches:
                if not put("batch", prepare(batch)):
                    return
            put("end", None)
        except BaseException as error:  # whatever it is, the reader must hear of it
            put("error", error)

    thread = threading.Thread(target=work, name="kgraft-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = waiting.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        closed.set()
        thread.join()
