"""Lanes: rings side by side, one for each of the replicas that a peer has."""

from collections.abc import Callable
from typing import Any

from kgraft.errors import LostPeerError, line_of
from kgraft.links.torch_store import ReplicaGroup


class Lane:
    """What one of a peer's replicas has of the others.

    Args:
        block: a `RingLink` that joins them.
        number: which one this is, counted from 0.
        count: how many there are.
    """

    def __init__(self, block: Any, number: int, count: int) -> None:
        self._block, self._number, self._count = block, number, count
        self._group: ReplicaGroup | None = None

    def join(self, peers: int, here: range, check: Callable[[], None]) -> None:
        """Meet the others, when the rings have met.

        Args:
            peers: how many there are in this process.
            here: their places in the ring, the same for all replicas.
            check: see `Link`.
        """
        block = self._block
        block.check = check
        block.join(peers)
        block.holds.update(dict.fromkeys(block.holds, here))
        self._group = ReplicaGroup.over(
            block.store, f"{block.start}/group", self._number, self._count, block.timeout
        )

    def add(self, flat: Any) -> None:
        """Replace a flat tensor by its sum over the replicas.

        Raises:
            LostPeerError: one does not answer.
        """
        assert self._group is not None
        try:
            self._group.add(flat)
        except RuntimeError as error:
            self._block.check()
            others = [lane for lane in range(self._count) if lane != self._number]
            reason = line_of(error)
            raise LostPeerError(self._block.blamed(others, reason)) from None

    def end(self, words: str) -> None:
        """Leave."""
        self._block.end(words)
        if self._group is not None:
            self._group.close()
