"""Feeds of `grain` data sets, whose elements are known by their numbers."""

import sys
from collections.abc import Generator
from typing import Any

import keras

from kgraft.errors import UserError, told
from kgraft.training.batches import Batch

_OF_A_PEER = 2**20  # epochs: a peer's are counted from here on, far from any other's
_ENDLESS = 2**40  # batches: longer is what `repeat()` gives


class GrainFeed:
    """A `grain.MapDataset` of batches, of which each peer reads epochs of its own.

    A `MapDataset` that shuffles has another order in every epoch, which is known by its number:
    batch i of epoch e is its element e n + i. Peer k's epochs are counted from k 2^20, so that
    peers see orders of their own, and a training that goes on those that it would have seen.

    Args:
        data: batches `(x, y)` or `(x, y, sample_weight)`, by number.
        peer: number of the peer, counted from 0.
        limit: at most so many steps an epoch; needed where the data set never ends.

    Raises:
        UserError: it is empty, or endless without a limit.
    """

    def __init__(self, data: Any, *, peer: int = 0, limit: int | None = None) -> None:
        count = len(data)
        if not count:
            raise UserError("x is a grain.MapDataset of length 0: there is no batch in it.")
        if count > _ENDLESS and limit is None:
            raise UserError(
                "x is a grain.MapDataset without end: give steps_per_epoch, or take its repeat() "
                "out."
            )
        self._data, self._peer = data, peer
        self.steps = count if limit is None else min(count, limit)
        self._whole = self.steps if count > _ENDLESS else count

    kind = "MapDataset"

    def for_peer(self, peer: int) -> "GrainFeed":
        """The same data set in another peer's epochs."""
        return GrainFeed(self._data, peer=peer, limit=self.steps)

    def epoch(self, epoch: int) -> Generator[Batch, None, None]:
        """The batches of one epoch, the same ones whenever it is asked for."""
        first = (self._peer * _OF_A_PEER + epoch) * self._whole
        endless = self._data if len(self._data) > _ENDLESS else self._data.repeat()
        for batch in endless[first : first + self.steps].to_iter_dataset():
            if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
                raise UserError(
                    f"the grain.MapDataset gives {told(batch)}: expected batches (x, y) or "
                    "(x, y, sample_weight), e.g. after batch(64)."
                )
            converted = keras.tree.map_structure(keras.ops.convert_to_tensor, tuple(batch))
            if any(not part.shape for part in keras.tree.flatten(converted)):
                raise UserError(
                    "the grain.MapDataset gives single examples: expected batches, e.g. after "
                    "batch(64)."
                )
            yield converted


def is_map_dataset(data: Any) -> bool:
    """Whether data are a `grain.MapDataset`; grain is not imported for that.

    Args:
        data: anything.
    """
    grain = sys.modules.get("grain")
    return grain is not None and isinstance(data, grain.MapDataset)
