"""The part of every batch that one of a peer's replicas trains on."""

import contextlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

import keras

from kgraft.engines.backends.lazy import LazyBatch
from kgraft.engines.replicas import Replicas, examples_of
from kgraft.training.batches import Batch, Feed, lazy_epoch_of


@dataclass(frozen=True, eq=False)
class Shard:
    """One replica's part of every batch of another feed.

    Parts are contiguous, in the replicas' order, and differ by one example at most. A batch with
    fewer examples than there are replicas goes to all of them in full, which comes to the same
    mean. Every replica reads the other feed in full, which has to yield the same batches in each:
    crops are drawn as in one process.

    Attributes:
        feed: the other feed.
        replicas: whose part it is, and how many there are.
    """

    feed: Feed
    replicas: Replicas

    @property
    def steps(self) -> int | None:
        """Batches an epoch."""
        return self.feed.steps

    def for_peer(self, peer: int) -> "Shard":
        """The part of another peer's batches."""
        return replace(self, feed=self.feed.for_peer(peer))

    def epoch(self, epoch: int) -> Generator[Batch, None, None]:
        """See `Feed`; of batches that need not be gathered in full only the part is."""
        lazy = lazy_epoch_of(self.feed, epoch)
        if lazy is not None:
            for own in lazy:
                yield self._part_of_lazy(own).batch
            return
        with contextlib.closing(self.feed.epoch(epoch)) as batches:
            for batch in batches:
                yield self._part(batch)

    def _part(self, batch: Batch) -> Batch:
        own = self._range(examples_of(batch))
        part: Batch = keras.tree.map_structure(
            lambda leaf: None if leaf is None else leaf[own.start : own.stop], batch
        )
        return part

    def _part_of_lazy(self, batch: LazyBatch) -> LazyBatch:
        own = self._range(batch.size)
        return replace(batch, start=batch.start + own.start, size=len(own))

    def _range(self, examples: int) -> range:
        """Which of a batch's examples are this replica's."""
        number, count = self.replicas.number, self.replicas.count
        if examples < count:
            return range(examples)
        size, more = divmod(examples, count)
        start = number * size + min(number, more)
        return range(start, start + size + (number < more))


def shards(feeds: Sequence[Feed], replicas: Replicas) -> list[Feed]:
    """One replica's parts of some feeds; peers with one feed in common have one part in common.

    Args:
        feeds: one a peer.
        replicas: whose parts.
    """
    made: dict[int, Feed] = {id(feed): Shard(feed, replicas) for feed in feeds}
    return [made[id(feed)] for feed in feeds]
