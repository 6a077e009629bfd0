"""Carriers: how large rows of weights get from one rank to another."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kgraft.links.presence import Pause
from kgraft.links.store import Store, drop, put, taken


class TornError(Exception):
    """An exchange that did not come to its end: says why."""


@dataclass(frozen=True)
class Together:
    """Ranks that have been together since some moment.

    Attributes:
        since: the moment, the same on all of them, and another one after every change.
        members: who they are, ascending.
        rank: which one this is.
    """

    since: str
    members: tuple[int, ...]
    rank: int


class Carrier(Protocol):
    """Moves arrays between ranks that have agreed on who sends what to whom."""

    def exchange(
        self,
        name: str,
        together: Together,
        sent: Mapping[int, NDArray[Any]],
        wanted: Mapping[int, NDArray[Any]],
        wait: "Wait",
    ) -> None:
        """Send arrays, and fill others with what is received.

        Args:
            name: of this exchange, the same on all ranks, of no other one.
            together: who takes part.
            sent: by the rank that gets it, one-dimensional and contiguous.
            wanted: by the rank that it comes from, of the size and dtype that it sends.
            wait: how to wait.

        Raises:
            TornError: somebody is gone, or the limit is reached.
        """
        ...


class Wait(Protocol):
    """A wait that has an end."""

    def __call__(self, done: Any, rank: int) -> None:
        """Return when `done()` is true.

        Raises:
            TornError: the rank that is waited for is lost.
        """
        ...

    @property
    def limit(self) -> float:
        """Seconds, for waits in which nothing can be asked."""
        ...


class LimitedWait:
    """A wait that looks after who is waited for.

    Args:
        look: raises where a rank, that has been waited for so many seconds, is lost.
        limit: seconds.
    """

    def __init__(self, look: Callable[[int, float], None], limit: float) -> None:
        self._look, self.limit = look, limit
        self._began = time.monotonic()

    def __call__(self, done: Callable[[], bool], rank: int) -> None:
        """See `Wait`."""
        pause = Pause()
        while not done():
            self._look(rank, time.monotonic() - self._began)
            pause()


class StoreCarrier:
    """Rows as values of the store.

    Args:
        store: where.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def exchange(
        self,
        name: str,
        together: Together,
        sent: Mapping[int, NDArray[Any]],
        wanted: Mapping[int, NDArray[Any]],
        wait: Wait,
    ) -> None:
        """See `Carrier`; the receiver clears away what it has got."""
        for other, row in sent.items():
            put(self._store, f"{name}/{together.rank}>{other}", row.tobytes())
        torn = f"{together.since}/torn"
        try:
            self._receive(name, together, wanted, wait, torn)
        except TornError as error:
            self._store.set(torn, str(error).encode())  # this rank sends nothing more
            raise

    def _receive(
        self,
        name: str,
        together: Together,
        wanted: Mapping[int, NDArray[Any]],
        wait: Wait,
        torn: str,
    ) -> None:
        for other, row in wanted.items():
            key = f"{name}/{other}>{together.rank}"
            wait(lambda key=key: self._store.has([key]) or self._store.has([torn]), other)
            if not self._store.has([key]):
                raise TornError((self._store.get(torn) or b"").decode())
            (content,) = taken(self._store, [key])
            if len(content) != row.nbytes:
                raise TornError(f"rank {other} sent {len(content)} of {row.nbytes} bytes")
            row[...] = np.frombuffer(content, row.dtype)
            drop(self._store, key)
