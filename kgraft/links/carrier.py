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


class LimitedWait:
    """A wait that looks after who is waited for.

    Args:
        look: raises where a rank, that has been waited for so many seconds, is lost.
        limit: seconds, for waits in which nothing can be asked.
    """

    def __init__(self, look: Callable[[int, float], None], limit: float) -> None:
        self._look, self.limit = look, limit
        self._began = time.monotonic()

    def __call__(self, done: Callable[[], bool], rank: int) -> None:
        """Return when `done()` is true.

        Args:
            done: asked again and again.
            rank: which one is waited for.
        """
        pause = Pause()
        while not done():
            self._look(rank, time.monotonic() - self._began)
            pause()


@dataclass(frozen=True, eq=False)
class Exchange:
    """What one rank sends to others and wants of them at some moment.

    Attributes:
        name: the same on all ranks, of no other exchange.
        together: who takes part.
        sent: by the rank that gets it, one-dimensional and contiguous.
        wanted: by the rank that it comes from, to be filled; of the size and dtype that it sends.
        wait: how to wait.
    """

    name: str
    together: Together
    sent: Mapping[int, NDArray[Any]]
    wanted: Mapping[int, NDArray[Any]]
    wait: LimitedWait

    def asks_for_the_same(self, other: "Exchange") -> bool:
        """Whether another one, of the same ranks, sends and wants just that."""
        return (
            self.together == other.together
            and self.sent.keys() == other.sent.keys()
            and all(np.array_equal(row, other.sent[rank]) for rank, row in self.sent.items())
            and _forms(self.wanted) == _forms(other.wanted)
        )


class Carrier(Protocol):
    """Moves arrays between ranks that have agreed on who sends what to whom."""

    def exchange(self, own: Exchange) -> None:
        """Send arrays, and fill others with what is received.

        Args:
            own: this rank's part.

        Raises:
            TornError: somebody is gone, or the limit is reached.
        """
        ...


class StoreCarrier:
    """Rows as values of the store.

    Args:
        store: where.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def exchange(self, own: Exchange) -> None:
        """See `Carrier`; the receiver clears away what it has got."""
        for other, row in own.sent.items():
            put(self._store, f"{own.name}/{own.together.rank}>{other}", row.tobytes())
        torn = f"{own.together.since}/torn"
        try:
            for other, row in own.wanted.items():
                self._receive(f"{own.name}/{other}>{own.together.rank}", other, row, own.wait, torn)
        except TornError as error:
            self._store.set(torn, str(error).encode())  # this rank sends nothing more
            raise

    def _receive(
        self, key: str, other: int, row: NDArray[Any], wait: LimitedWait, torn: str
    ) -> None:
        wait(lambda: self._store.has([key]) or self._store.has([torn]), other)
        if not self._store.has([key]):
            raise TornError((self._store.get(torn) or b"").decode())
        (content,) = taken(self._store, [key])
        if len(content) != row.nbytes:
            raise TornError(f"rank {other} sent {len(content)} of {row.nbytes} bytes")
        row[...] = np.frombuffer(content, row.dtype)
        drop(self._store, key)


def _forms(rows: Mapping[int, NDArray[Any]]) -> dict[int, Any]:
    return {rank: (row.shape, row.dtype) for rank, row in rows.items()}
