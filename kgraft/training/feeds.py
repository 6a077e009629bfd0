"""Where a peer's batches come from: one feed a peer, from anything that `fit` takes."""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import keras
import numpy as np
from numpy.typing import NDArray

from kgraft.data import BatchStream
from kgraft.data.order import epoch_order, order_within_batches, steps_of
from kgraft.engines.backends import BACKEND
from kgraft.engines.backends.lazy import LazyBatch, lazy_batches
from kgraft.errors import UserError, told
from kgraft.keras_private import can_convert_arrays
from kgraft.settings import argument
from kgraft.training.batches import (
    Batch,
    Feed,
    Kept,
    Limited,
    Weighted,
    check_class_weight,
    sample_weights,
)
from kgraft.training.data_sets import AdapterFeed, PyDatasetFeed, is_indexed
from kgraft.training.grain_feed import GrainFeed, is_map_dataset

Shuffle = bool | Literal["batch"]


@dataclass(frozen=True, eq=False)
class ArrayFeed:
    """Arrays that lie on the device once and are gathered there in each peer's own order.

    Attributes:
        arrays: `(x, y, sample_weight)`, each an array, a nest of arrays or None, equal first axes.
        batch_size: examples a step; the last step of an epoch takes what is left.
        seed: with `peer` and the epoch it determines the order.
        peer: number of the peer, counted from 0.
        shuffle: False for the order in which the examples lie, `"batch"` for the same batches in
            that order, shuffled within.
        limit: at most so many steps an epoch, see `steps_of`.
    """

    arrays: Batch
    batch_size: int
    seed: int = 0
    peer: int = 0
    shuffle: Shuffle = True
    limit: int | None = None

    @property
    def count(self) -> int:
        """Number of examples."""
        return int(keras.tree.flatten(self.arrays)[0].shape[0])

    @property
    def steps(self) -> int:
        """Batches an epoch; see `steps_of` for the epoch that ends with the data."""
        return min(self._steps, self.limit or self._steps)

    @property
    def _steps(self) -> int:
        return -(-self.count // self.batch_size)

    def for_peer(self, peer: int) -> "ArrayFeed":
        """The same arrays, not copied, in another peer's order."""
        return replace(self, peer=peer)

    def in_order(self) -> "ArrayFeed":
        """All of the same arrays, as they lie."""
        return replace(self, shuffle=False, limit=None)

    def epoch(self, epoch: int) -> Generator[Batch, None, None]:
        """The batches of one epoch, the same ones whenever it is asked for."""
        for index in BACKEND.pieces(self._taken(epoch), self.batch_size):
            yield self._gather(index)

    def lazy_epoch(self, epoch: int) -> Iterator[LazyBatch]:
        """The same batches, each to be gathered when somebody asks."""
        numbers = BACKEND.upload(self._taken(epoch))
        return lazy_batches(numbers, self.batch_size, self._gather)

    def _gather(self, index: Any) -> Batch:
        taken: Batch = keras.tree.map_structure(
            lambda part: None if part is None else keras.ops.take(part, index, 0), self.arrays
        )
        return taken

    def _taken(self, epoch: int) -> NDArray[np.int32]:
        """Which examples an epoch shows, in order."""
        taken = steps_of(epoch, self._steps, self.limit, shuffle=self.shuffle is True).tolist()
        first, last = taken[0] * self.batch_size, (taken[-1] + 1) * self.batch_size
        return self._order(epoch)[first:last].astype(np.int32)

    def _order(self, epoch: int) -> np.ndarray:
        own = {"seed": self.seed, "peer": self.peer, "epoch": epoch}
        if self.shuffle == "batch":
            return order_within_batches(self.count, self.batch_size, **own)
        return epoch_order(self.count, shuffle=bool(self.shuffle), **own)


def feed_of(
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    *,
    batch_size: int | None = None,
    class_weight: dict[int, float] | None = None,
    seed: int = 0,
    peer: int = 0,
    shuffle: Shuffle = True,
    steps: int | None = None,
) -> Feed:
    """A peer's feed from whatever `fit` takes.

    Args:
        x: arrays, a `Feed`, or a data set that yields `(x, y)` or `(x, y, sample_weight)`.
        y: targets, with arrays.
        sample_weight: weights of the examples, with arrays.
        batch_size: examples a step, with arrays; by default 32, or what makes `steps` of all.
        class_weight: weight of every class, as in `fit`, with any data.
        seed: orders of arrays and of a `PyDataset`'s batches follow from it.
        peer: whose order that is; a `Feed` keeps its own.
        shuffle: whether they are read in a new order each epoch.
        steps: at most so many steps an epoch: the first ones of its order where arrays and a
            `PyDataset` are shuffled; without shuffling, and of other data sets, an epoch goes on
            where the last one has ended, and ends where the data end.

    Returns:
        The feed; `for_peer(k)` gives the others'.

    Raises:
        UserError: data that Keras cannot read, or arguments that do not go together.
    """
    if x is None:
        raise UserError("x is None: give arrays, x and y, or a data set.")
    _check_count("batch_size", batch_size)
    _check_count("steps", steps)
    if not isinstance(shuffle, bool) and not (isinstance(shuffle, str) and shuffle == "batch"):
        raise UserError(f"shuffle={told(shuffle)}: expected True, False or 'batch'.")
    if class_weight is not None:
        check_class_weight(class_weight)
    if is_arrays(x, y, sample_weight):
        return _array_feed(
            (x, y, sample_weight), batch_size, class_weight, seed, peer, shuffle, steps
        )
    for name, value in {"y": y, "sample_weight": sample_weight, "batch_size": batch_size}.items():
        if value is not None:
            raise UserError(f"{name} cannot be given with a {type(x).__name__}: it has batches.")
    feed: Feed
    if isinstance(x, Feed):
        feed = x if steps is None else Limited(x, steps)
    elif is_indexed(x):
        feed = PyDatasetFeed(x, seed=seed, peer=peer, shuffle=bool(shuffle), limit=steps)
    elif is_map_dataset(x):
        feed = GrainFeed(x, peer=peer, limit=steps)
    else:
        feed = AdapterFeed(x, limit=steps)
    return feed if class_weight is None else Weighted(feed, class_weight)


def feeds_of(
    count: int,
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    *,
    shared: bool = False,
    prepare: Callable[[Feed], Feed] = lambda feed: feed,
    places: Sequence[int] | None = None,
    **options: Any,
) -> list[Feed]:
    """One feed a peer of this process.

    Args:
        count: number of peers, K.
        x: what `feed_of` takes, for all peers, as `y` and `sample_weight`; or a list of K of these,
            arrays as tuples `(x, y)` or `(x, y, sample_weight)`.
        y: see `x`.
        sample_weight: see `x`.
        shared: whether all see the first one's batches.
        prepare: what is done to each feed that is made of data, before peers share it.
        places: which peers are in this process, counted from 0; all by default.
        **options: see `feed_of`.

    Raises:
        UserError: see `feed_of`; a list of another length, or a shared one.
    """
    places = range(count) if places is None else places
    if not is_listed(x, y, sample_weight):
        first = prepare(feed_of(x, y, sample_weight, **options))
        return [first if shared else first.for_peer(k) for k in places]
    if shared:
        raise UserError("shared batches, as Mutual's and Online's, need one data set, no list.")
    if isinstance(x[0], int | float | str | list):
        raise UserError(
            f"x is a list of {type(x[0]).__name__}: expected an array, or a list with one data set "
            "for every peer."
        )
    if len(x) != count:
        raise UserError(f"{len(x)} data sets for {count} peers: one for each of the ring.")
    made: dict[int, Feed] = {}
    feeds = []
    for k, data in [(k, x[k]) for k in places]:
        if id(data) in made and not isinstance(data, Feed):
            feeds.append(made[id(data)].for_peer(k))
            continue
        parts = data if isinstance(data, tuple) else (data, y, sample_weight)
        if not 1 <= len(parts) <= 3:
            raise UserError(
                f"data set {k + 1} is a tuple of {len(parts)}: expected (x, y) or "
                "(x, y, sample_weight)."
            )
        feeds.append(prepare(feed_of(*parts, peer=k, **options)))
        made[id(data)] = feeds[-1]
    return feeds


def validation_feed(
    data: Any,
    batch_size: int | None = None,
    steps: int | None = None,
    *,
    of_arrays: int | None = None,
) -> Feed:
    """A feed that is read in order, from what `fit` takes as `validation_data`.

    Args:
        data: `(x, y)` or `(x, y, sample_weight)`, a tuple or a list, or a data set. What can be
            read only once is read once and kept for all peers and epochs.
        batch_size: examples a step; with arrays only.
        steps: at most so many batches, the first ones.
        of_arrays: the default of `batch_size`, where there are arrays.

    Raises:
        UserError: see `feed_of`; a tuple of another length.
    """
    parts = parts_of(data)
    if is_arrays(*parts):
        wanted = of_arrays if batch_size is None else batch_size
        return feed_of(*parts, batch_size=wanted, shuffle=False, steps=steps)
    _check_count("steps", steps)
    feed = feed_of(*parts, batch_size=batch_size, shuffle=False)
    feed = feed if steps is None else Limited(feed, steps)
    inner = feed.feed if isinstance(feed, Limited) else feed
    return Kept(feed) if isinstance(inner, AdapterFeed) and inner.once else feed


def parts_of(data: Any) -> Batch:
    """`(x, y, sample_weight)`, or as many of these as there are, of `validation_data`.

    Args:
        data: arrays in a tuple or a list, or a data set, which is one part.

    Raises:
        UserError: there are more.
    """
    parts = tuple(data) if isinstance(data, list | tuple) else (data,)
    if not 1 <= len(parts) <= 3:
        raise UserError(
            f"validation_data holds {len(parts)} parts: expected (x, y), (x, y, sample_weight) or "
            "a data set."
        )
    return parts


def innermost(feed: Feed) -> Feed:
    """The feed that a limited or weighted one is made of.

    Args:
        feed: any feed.
    """
    while isinstance(feed, Limited | Weighted):
        feed = feed.feed
    return feed


def in_one_order(feed: Feed) -> bool:
    """Whether `for_peer` is known to give every peer one order of batches.

    Args:
        feed: any feed; of one of which nobody knows it is False.
    """
    feed = innermost(feed)
    if isinstance(feed, ArrayFeed | PyDatasetFeed | BatchStream):
        return feed.shuffle is not True
    return isinstance(feed, AdapterFeed) and feed.in_one_order


def is_arrays(*parts: Any) -> bool:
    """Whether these are arrays, nests of arrays or None, and no data set."""
    return bool(can_convert_arrays(parts))


def is_listed(x: Any, y: Any, sample_weight: Any) -> bool:
    """Whether `x` is a list of data sets, one for every peer, and no model's list of inputs.

    Args:
        x: what `fit` was given.
        y: see `x`; without it a list of tuples is one of `(x, y)`, not of inputs.
        sample_weight: see `x`.
    """
    if not isinstance(x, list):
        return False
    tuples = y is None and sample_weight is None and all(type(part) is tuple for part in x)
    return bool(x) and (tuples or not is_arrays(x, y, sample_weight))


def check_listed(x: Any, y: Any, sample_weight: Any) -> None:
    """Refuse a list of `(x, y)` beside targets or weights: it is no model's list of inputs.

    Args:
        x: what `fit` was given.
        y: see `x`.
        sample_weight: see `x`.

    Raises:
        UserError: names what is given twice.
    """
    if not isinstance(x, list) or not x or not all(type(part) is tuple for part in x):
        return
    for name, value in {"y": y, "sample_weight": sample_weight}.items():
        if value is not None:
            raise UserError(
                f"{name} cannot be given with a list of data sets, [(x1, y1), ...]: put each "
                "peer's into its tuple, (x, y, sample_weight)."
            )


def _array_feed(
    parts: Batch,
    batch_size: int | None,
    class_weight: dict[int, float] | None,
    seed: int,
    peer: int,
    shuffle: Shuffle,
    steps: int | None,
) -> ArrayFeed:
    x, y, sample_weight = parts
    for name, part in {"x": x, "y": y, "sample_weight": sample_weight}.items():
        if part is not None and not keras.tree.flatten(part):
            raise UserError(f"{name} is an empty {type(part).__name__}: expected arrays.")
    if class_weight is not None:
        sample_weight = sample_weights(y, sample_weight, class_weight)
    arrays = keras.tree.map_structure(
        lambda part: None if part is None else _on_device(part), (x, y, sample_weight)
    )
    given = [part for part in keras.tree.flatten(arrays) if part is not None]
    if not all(len(part.shape) for part in given):
        raise UserError("x, y or sample_weight holds a single number: expected arrays.")
    counts = {int(part.shape[0]) for part in given}
    if len(counts) != 1:
        raise UserError(f"x, y and sample_weight hold {sorted(counts)} examples: expected equal.")
    count = counts.pop()
    if not count:
        raise UserError("x holds no example: there is nothing to read.")
    x, y, sample_weight = arrays
    if sample_weight is not None and keras.tree.is_nested(y):
        if not keras.tree.is_nested(sample_weight):  # as in `Model.fit`: the same for every output
            sample_weight = keras.tree.map_structure(lambda _: sample_weight, y)
    wanted = batch_size or (-(-count // steps) if steps else 32)
    return ArrayFeed(
        (x, y, sample_weight),
        min(wanted, count),
        seed=seed,
        peer=peer,
        shuffle=shuffle,
        limit=steps,
    )


def _check_count(name: str, value: Any) -> None:
    argument(name, value, int | None, low=1)


def _on_device(part: Any) -> Any:
    """A tensor; floating point becomes `floatx`, as in `fit`."""
    array = part if _has_dtype(part) else np.asarray(part)
    if isinstance(array, np.ndarray) and array.dtype.kind in "OUS":
        raise UserError(
            f"x, y or sample_weight is a {type(part).__name__} of {array.dtype}: expected numbers."
        )
    tensor = keras.ops.convert_to_tensor(array)
    if keras.backend.is_float_dtype(keras.backend.standardize_dtype(tensor.dtype)):
        return keras.ops.cast(tensor, keras.config.floatx())
    return tensor


def _has_dtype(part: Any) -> bool:
    return isinstance(part, np.ndarray) or keras.ops.is_tensor(part)


__all__ = [
    "AdapterFeed",
    "ArrayFeed",
    "Batch",
    "Feed",
    "PyDatasetFeed",
    "check_listed",
    "feed_of",
    "feeds_of",
    "in_one_order",
    "is_arrays",
    "is_listed",
    "parts_of",
    "validation_feed",
]
