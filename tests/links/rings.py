"""Rings whose ranks are threads of one process."""

import threading
from collections.abc import Callable
from typing import Any

from kgraft.links.ring_link import RingLink
from tests.links.memory_store import MemoryStore

LIMIT = 60.0  # seconds after which a rank hangs


class Ranks:
    """Threads that do one thing each, and what it came to."""

    def __init__(self, works: list[Callable[[], Any]]) -> None:
        self._came: list[Any] = [None] * len(works)
        self._threads = [
            threading.Thread(target=self._do, args=(place, work), daemon=True)
            for place, work in enumerate(works)
        ]
        for thread in self._threads:
            thread.start()

    def _do(self, place: int, work: Callable[[], Any]) -> None:
        try:
            self._came[place] = work()
        except BaseException as error:
            self._came[place] = error

    def ended(self) -> list[Any]:
        """What each returned, or raised."""
        for place, thread in enumerate(self._threads):
            thread.join(LIMIT)
            assert not thread.is_alive(), f"rank {place} hangs"
        return self._came


def links(ranks: int, store: Any = None, **options: Any) -> list[RingLink]:
    """One link a rank, on one store."""
    store = store or MemoryStore()
    options = {"timeout": 10.0, **options}
    return [RingLink(rank=rank, ranks=ranks, store=store, **options) for rank in range(ranks)]


def tried(own: list[RingLink], work: Callable[..., Any], *each: list[Any]) -> list[Any]:
    """What every rank returns, or raises."""
    given = zip(own, *each, strict=True)
    return Ranks([lambda own=own: work(*own) for own in given]).ended()


def together(own: list[RingLink], work: Callable[..., Any], *each: list[Any]) -> list[Any]:
    """What every rank returns; the first error is raised.

    Args:
        own: the links.
        work: what a rank does with its link and its own of `each`.
        each: one a rank.
    """
    came = tried(own, work, *each)
    for value in came:
        if isinstance(value, BaseException):
            raise value
    return came


def joined(peers: list[int], store: Any = None, **options: Any) -> list[RingLink]:
    """Links of ranks that have some peers each, joined."""
    own = links(len(peers), store, **options)
    together(own, RingLink.join, peers)
    return own


def ended(own: list[RingLink]) -> None:
    """Leave the ring, on all ranks."""
    for link in own:
        link.end()


def fall_silent(link: RingLink) -> None:
    """Beat no more, and say nothing: what a rank that hangs on another machine looks like."""
    link._roll._heartbeat.stop()
