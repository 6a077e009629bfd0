"""Where a peer's batches come from: one feed a peer, from anything that `fit` takes."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import keras
import numpy as np

from kgraft.data.order import epoch_order
from kgraft.errors import UserError
from kgraft.keras_private import (
    EpochIterator,
    GeneratorDataAdapter,
    can_convert_arrays,
    class_weight_to_sample_weights,
)

Batch = tuple[Any, ...]


@runtime_checkable
class Feed(Protocol):
    """The batches of one peer, epoch by epoch."""

    @property
    def steps(self) -> int | None:
        """Batches an epoch, None where nobody knows."""
        ...

    def for_peer(self, peer: int) -> "Feed":
        """The same data in another peer's order."""
        ...

    def epoch(self, epoch: int) -> Generator[Batch, None, None]:
        """The batches of one epoch: `(x, y)` or `(x, y, sample_weight)`."""
        ...


@dataclass(frozen=True, eq=False)
class ArrayFeed:
    """Arrays that lie on the device once and are gathered there in each peer's own order.

    Attributes:
        arrays: `(x, y, sample_weight)`, each an array, a nest of arrays or None, equal first axes.
        batch_size: examples a step; the last step of an epoch takes what is left.
        seed: with `peer` and the epoch it determines the order.
        peer: number of the peer, counted from 0.
        shuffle: False for the order in which the examples lie.
        limit: at most so many steps an epoch.
    """

    arrays: Batch
    batch_size: int
    seed: int = 0
    peer: int = 0
    shuffle: bool = True
    limit: int | None = None

    @property
    def count(self) -> int:
        """Number of examples."""
        return int(keras.tree.flatten(self.arrays)[0].shape[0])

    @property
    def steps(self) -> int:
        """Batches an epoch."""
        return min(-(-self.count // self.batch_size), self.limit or self.count)

    def for_peer(self, peer: int) -> "ArrayFeed":
        """The same arrays, not copied, in another peer's order."""
        return replace(self, peer=peer)

    def in_order(self) -> "ArrayFeed":
        """All of the same arrays, as they lie."""
        return replace(self, shuffle=False, limit=None)

    def epoch(self, epoch: int) -> Generator[Batch, None, None]:
        """The batches of one epoch, the same ones whenever it is asked for."""
        order = epoch_order(
            self.count, seed=self.seed, peer=self.peer, epoch=epoch, shuffle=self.shuffle
        )
        for step in range(self.steps):
            chosen = order[step * self.batch_size : (step + 1) * self.batch_size]
            index = keras.ops.convert_to_tensor(chosen, "int32")
            yield keras.tree.map_structure(
                lambda part, index=index: None if part is None else keras.ops.take(part, index, 0),
                self.arrays,
            )


class AdapterFeed:
    """Any other data set that Keras reads: `tf.data`, `PyDataset`, `DataLoader`, a generator.

    Every peer iterates it for itself, so peers see different orders where the data set shuffles
    itself anew for every iterator.
    """

    def __init__(self, data: Any, *, limit: int | None = None, class_weight: Any = None) -> None:
        self._data, self._limit, self._class_weight = data, limit, class_weight
        self._iterator = EpochIterator(data, steps_per_epoch=limit, class_weight=class_weight)
        self._iterator.reset()

    @property
    def steps(self) -> int | None:
        """Batches an epoch, None where the data set does not say."""
        return self._iterator.num_batches

    def for_peer(self, peer: int) -> "AdapterFeed":
        """An iterator of its own over the same data set; the first peer has this one."""
        if peer == 0:
            return self
        if isinstance(self._iterator.data_adapter, GeneratorDataAdapter):
            raise UserError(
                "a Python generator can be read only once: give a list with one for every peer."
            )
        return AdapterFeed(self._data, limit=self._limit, class_weight=self._class_weight)

    def epoch(self, epoch: int) -> Generator[Batch, None, None]:
        """The batches of the next epoch; which one that is only the data set knows."""
        del epoch
        whole = False
        try:
            for _, _, batches in self._iterator.enumerate_epoch():
                yield tuple(batches[0])
            whole = True
        finally:
            if not whole:
                self._iterator.reset()


def feed_of(
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    *,
    batch_size: int | None = None,
    class_weight: dict[int, float] | None = None,
    seed: int = 0,
    shuffle: bool = True,
    steps: int | None = None,
) -> Feed:
    """The first peer's feed from whatever `fit` takes.

    Args:
        x: arrays, a `Feed`, or a data set that yields `(x, y)` or `(x, y, sample_weight)`.
        y: targets, with arrays.
        sample_weight: weights of the examples, with arrays.
        batch_size: examples a step, with arrays; 32 by default.
        class_weight: weight of every class, as in `fit`.
        seed: orders of arrays follow from it.
        shuffle: whether arrays are read in a new order each epoch.
        steps: at most so many steps an epoch.

    Returns:
        The feed of peer 0; `for_peer(k)` gives the others'.

    Raises:
        UserError: a batch larger than the data, or arguments that do not go together.
    """
    if isinstance(x, Feed):
        _only_with_arrays("a feed", y=y, sample_weight=sample_weight, batch_size=batch_size)
        return x
    if not is_arrays(x, y, sample_weight):
        _only_with_arrays(
            f"a {type(x).__name__}", y=y, sample_weight=sample_weight, batch_size=batch_size
        )
        try:
            return AdapterFeed(x, limit=steps, class_weight=class_weight)
        except ValueError as error:
            raise UserError(
                f"x is a {type(x).__name__}, which Keras cannot read: expected arrays, a "
                "PyDataset, a tf.data.Dataset, a torch DataLoader or a generator."
            ) from error
    if class_weight is not None:
        sample_weight = class_weight_to_sample_weights(y, class_weight)
    arrays = keras.tree.map_structure(
        lambda part: None if part is None else _on_device(part), (x, y, sample_weight)
    )
    counts = {int(part.shape[0]) for part in keras.tree.flatten(arrays) if part is not None}
    if len(counts) != 1:
        raise UserError(f"x, y and sample_weight hold {sorted(counts)} examples: expected equal.")
    count = counts.pop()
    size = min(32, count) if batch_size is None else batch_size
    if not 1 <= size <= count:
        raise UserError(f"batch_size={size}: expected 1..{count}, the number of examples.")
    return ArrayFeed(arrays, size, seed=seed, shuffle=shuffle, limit=steps)


def is_arrays(*parts: Any) -> bool:
    """Whether these are arrays, nests of arrays or None, and no data set."""
    return bool(can_convert_arrays(parts))


def _on_device(part: Any) -> Any:
    """A tensor; floating point becomes `floatx`, as in `fit`."""
    tensor = keras.ops.convert_to_tensor(part if _has_dtype(part) else np.asarray(part))
    if keras.backend.is_float_dtype(keras.backend.standardize_dtype(tensor.dtype)):
        return keras.ops.cast(tensor, keras.config.floatx())
    return tensor


def _has_dtype(part: Any) -> bool:
    return isinstance(part, np.ndarray) or keras.ops.is_tensor(part)


def _only_with_arrays(what: str, **given: Any) -> None:
    for name, value in given.items():
        if value is not None:
            raise UserError(f"{name} cannot be given with {what}, which yields whole batches.")


__all__ = ["AdapterFeed", "ArrayFeed", "Batch", "Feed", "feed_of", "is_arrays"]


def validation_feed(data: Any, batch_size: int | None) -> Feed:
    """A feed that is read in order, from what `fit` takes as `validation_data`.

    Args:
        data: `(x, y)` or `(x, y, sample_weight)`, or a data set.
        batch_size: examples a step, with arrays.
    """
    if isinstance(data, tuple):
        count = len(keras.tree.flatten(data[0])[0])
        return feed_of(*data, batch_size=min(batch_size or 32, count), shuffle=False)
    return feed_of(data, shuffle=False)


def side_by_side(feeds: Sequence[Feed], epoch: int) -> Iterator[list[Batch]]:
    """One batch of every peer at a time, until the first of them has no more.

    Peers with one feed in common get the very same batch.

    Args:
        feeds: one a peer.
        epoch: which one, counted from 0.
    """
    streams = {id(feed): feed.epoch(epoch) for feed in feeds}
    while True:
        batches = {key: next(stream, None) for key, stream in streams.items()}
        found = [batch for feed in feeds if (batch := batches[id(feed)]) is not None]
        if len(found) < len(feeds):
            return
        yield found
