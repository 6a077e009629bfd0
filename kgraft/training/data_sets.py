"""Feeds of the data sets that Keras reads: `PyDataset`, `tf.data`, `DataLoader`, generators."""

import random
from collections.abc import Generator, Sequence
from typing import Any

import keras
import numpy as np

from kgraft.data.order import epoch_order, steps_of
from kgraft.errors import UserError
from kgraft.keras_private import EpochIterator, GeneratorDataAdapter, TorchDataLoaderAdapter
from kgraft.training.batches import Batch

_GENERATORS = (
    *(random.Random, np.random.Generator, np.random.RandomState, keras.random.SeedGenerator),
)


class AdapterFeed:
    """Any data set whose batches come as it gives them: `tf.data`, `DataLoader`, a generator.

    Every peer iterates it for itself, so peers see different orders where the data set shuffles
    itself anew for every iterator.

    Args:
        data: what `Model.fit` takes as `x` without `y`.
        limit: so many steps an epoch; the next epoch goes on where the last one has ended.

    Raises:
        UserError: Keras cannot read it.
    """

    def __init__(self, data: Any, *, limit: int | None = None) -> None:
        self._data, self._limit = data, limit
        try:
            self._iterator = EpochIterator(data, steps_per_epoch=limit)
        except ValueError as error:
            raise UserError(
                f"x is a {type(data).__name__}, which Keras cannot read: expected arrays, a "
                "PyDataset, a tf.data.Dataset, a torch DataLoader or a generator."
            ) from error
        self._iterator.reset()

    @property
    def kind(self) -> str:
        """What it is that is read."""
        return type(self._data).__name__

    @property
    def steps(self) -> int | None:
        """Batches an epoch, None where the data set does not say."""
        return self._iterator.num_batches

    @property
    def own_chance(self) -> str:
        """See `own_chance_of`."""
        return own_chance_of(self._data)

    @property
    def reads_on(self) -> bool:
        """Whether an epoch begins where the last one has ended, and not at the beginning."""
        return self._limit is not None or self.once

    @property
    def once(self) -> bool:
        """Whether it can be read only once."""
        return isinstance(self._iterator.data_adapter, GeneratorDataAdapter)

    @property
    def in_one_order(self) -> bool:
        """Whether every iterator is known to see one order; False where nobody knows."""
        if isinstance(self._data, keras.utils.PyDataset):
            return True
        if not isinstance(self._iterator.data_adapter, TorchDataLoaderAdapter):
            return False
        return _goes_in_sequence(self._data)

    def for_peer(self, peer: int) -> "AdapterFeed":
        """An iterator of its own over the same data set; the first peer has this one."""
        if peer == 0:
            return self
        if self.once:
            raise UserError(
                "a Python generator can be read only once: give a list with one for every peer."
            )
        endless = isinstance(self._data, keras.utils.PyDataset)
        data = _Endless(self._data) if endless else self._data
        return AdapterFeed(data, limit=self._limit)

    def epoch(self, epoch: int) -> Generator[Batch, None, None]:
        """The batches of the next epoch; which one that is only the data set knows."""
        del epoch
        whole = False
        try:
            for _, _, batches in self._iterator.enumerate_epoch():
                yield _as_batch(batches[0])
            whole = True
        finally:
            if not whole:
                self._iterator.reset()


class PyDatasetFeed:
    """A `PyDataset` of a known length, whose batches each peer reads in a seeded order of its own.

    With `workers` or `use_multiprocessing`, Keras' queue fetches them, a pool for every peer and
    epoch. The data set's `on_epoch_begin` and `on_epoch_end` are called once an epoch for all peers
    that read it, before the first and after the last batch of anybody.

    Args:
        data: the data set.
        seed: with `peer` and the epoch it determines the order of the batches.
        peer: number of the peer, counted from 0.
        shuffle: False for the order in which they lie.
        limit: at most so many steps an epoch, see `steps_of`.
        epochs: where its epochs are told, of a feed that reads the same data set.

    Raises:
        UserError: there is no batch.
    """

    def __init__(
        self,
        data: keras.utils.PyDataset,
        *,
        seed: int = 0,
        peer: int = 0,
        shuffle: bool = True,
        limit: int | None = None,
        epochs: "_Epochs | None" = None,
    ) -> None:
        self._data, self._seed, self._peer, self._limit = data, seed, peer, limit
        self.shuffle = shuffle
        self._epochs = epochs or _Epochs(data)
        if not data.num_batches:
            raise UserError(f"x is a {type(data).__name__} of length 0: there is no batch in it.")

    @property
    def steps(self) -> int:
        """Batches an epoch; see `steps_of` for the epoch that ends with the data."""
        count = int(self._data.num_batches or 0)
        return count if self._limit is None else min(count, self._limit)

    @property
    def kind(self) -> str:
        """What it is that is read."""
        return type(self._data).__name__

    @property
    def own_chance(self) -> str:
        """See `own_chance_of`."""
        return own_chance_of(self._data)

    @property
    def changes(self) -> bool:
        """Whether the data set does something of its own at the end of an epoch."""
        return type(self._data).on_epoch_end is not keras.utils.PyDataset.on_epoch_end

    def for_peer(self, peer: int) -> "PyDatasetFeed":
        """The same data set in another peer's order."""
        return PyDatasetFeed(
            self._data,
            seed=self._seed,
            peer=peer,
            shuffle=self.shuffle,
            limit=self._limit,
            epochs=self._epochs,
        )

    def epoch(self, epoch: int) -> Generator[Batch, None, None]:
        """The batches of one epoch, in the same order whenever it is asked for."""
        self._epochs.enter(epoch)
        try:
            count = int(self._data.num_batches or 0)
            order = epoch_order(
                count, seed=self._seed, peer=self._peer, epoch=epoch, shuffle=self.shuffle
            )
            chosen = order[steps_of(epoch, count, self._limit, shuffle=self.shuffle)]
            yield from AdapterFeed(_InOrder(self._data, chosen.tolist())).epoch(epoch)
        finally:
            self._epochs.leave(epoch)


class _Epochs:
    """Tells a data set that several peers read where an epoch begins and ends, once for all."""

    def __init__(self, data: keras.utils.PyDataset) -> None:
        self._data, self._epoch, self._readers = data, -1, 0

    def enter(self, epoch: int) -> None:
        if epoch != self._epoch:
            self._end()  # its readers may have taken its last batch without asking for one more
            self._epoch = epoch
            self._data.on_epoch_begin()
        self._readers += 1

    def leave(self, epoch: int) -> None:
        if epoch == self._epoch:
            self._readers -= 1
            if not self._readers:
                self._end()

    def _end(self) -> None:
        if self._epoch >= 0:
            self._epoch, self._readers = -1, 0
            self._data.on_epoch_end()


class _InOrder(keras.utils.PyDataset):
    """Some batches of a data set, in some order, fetched as the data set wants them to be."""

    def __init__(self, data: keras.utils.PyDataset, order: Sequence[int]) -> None:
        super().__init__(data.workers, data.use_multiprocessing, data.max_queue_size)
        self._data, self._order = data, order

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> Any:
        return self._data[self._order[index]]


class _Endless(keras.utils.PyDataset):
    """An endless data set for another peer; where epochs begin and end the first peer tells it."""

    def __init__(self, data: keras.utils.PyDataset) -> None:
        super().__init__(data.workers, data.use_multiprocessing, data.max_queue_size)
        self._data = data

    @property
    def num_batches(self) -> None:
        """None: there is no end."""
        return None

    def __getitem__(self, index: int) -> Any:
        return self._data[index]


def is_indexed(data: Any) -> bool:
    """Whether these are batches that can be read in any order, and not endlessly many."""
    if not isinstance(data, keras.utils.PyDataset):
        return False
    try:
        return data.num_batches is not None
    except NotImplementedError as error:
        raise UserError(
            f"x is a {type(data).__name__} without a length: give it `__len__` or `num_batches`."
        ) from error


def own_chance_of(data: Any) -> str:
    """What a data set draws random numbers from that nobody else knows of.

    Args:
        data: a `PyDataset`, `tf.data.Dataset`, torch `DataLoader` or generator.

    Returns:
        In a few words; empty where nothing is known.
    """
    if isinstance(data, keras.utils.PyDataset):
        held = {name for name, own in vars(data).items() if isinstance(own, _GENERATORS)}
        return ", ".join(sorted(held))
    loader = data if hasattr(data, "sampler") else None
    if loader is not None:
        drawn = [loader.generator, getattr(loader.sampler, "generator", None)]
        return "" if drawn == [None, None] else "its generator"
    while data is not None:  # a tf.data.Dataset stands at the end of a chain of others
        if "Shuffle" in type(data).__name__:
            return "shuffle"
        data = getattr(data, "_input_dataset", None)
    return ""


def _as_batch(read: Any) -> Batch:
    """What a data set yields as a tuple; an array or a dict alone are inputs without targets."""
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(read)
    return (x, y) if sample_weight is None else (x, y, sample_weight)


def _goes_in_sequence(loader: Any) -> bool:
    """Whether a torch `DataLoader` reads its data set from its beginning to its end."""
    batches = loader.batch_sampler
    if batches is not None and type(batches).__name__ != "BatchSampler":
        return False
    sampler = loader.sampler if batches is None else batches.sampler
    return type(sampler).__name__ == "SequentialSampler"
