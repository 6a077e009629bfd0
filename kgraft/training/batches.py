"""A peer's batches: what a feed is, and feeds made of other feeds."""

import contextlib
import itertools
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any, Protocol, runtime_checkable

import keras

from kgraft.engines.backends.lazy import LazyBatch
from kgraft.errors import UserError, told
from kgraft.keras_private import class_weight_to_sample_weights
from kgraft.links.link import Link
from kgraft.settings import argument

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
class Limited:
    """The first batches of every epoch of another feed.

    Attributes:
        feed: the other feed.
        limit: at most so many batches an epoch.
    """

    feed: Feed
    limit: int

    @property
    def steps(self) -> int:
        """Batches an epoch."""
        steps = self.feed.steps
        return self.limit if steps is None else min(steps, self.limit)

    def for_peer(self, peer: int) -> "Limited":
        """As many of another peer's batches."""
        return replace(self, feed=self.feed.for_peer(peer))

    def epoch(self, epoch: int) -> Generator[Batch, None, None]:
        """See `Feed`."""
        with contextlib.closing(self.feed.epoch(epoch)) as batches:
            yield from itertools.islice(batches, self.limit)

    def lazy_epoch(self, epoch: int) -> Iterator[LazyBatch] | None:
        """The same batches, to be gathered when somebody asks; None where the feed has none."""
        batches = lazy_epoch_of(self.feed, epoch)
        return None if batches is None else itertools.islice(batches, self.limit)


@dataclass(frozen=True, eq=False)
class Weighted:
    """Another feed's batches with a weight for every example, by its class.

    Attributes:
        feed: the other feed, which yields no sample weights.
        class_weight: class -> weight; 1 for a class that is not in it.
    """

    feed: Feed
    class_weight: Mapping[int, float]

    @property
    def steps(self) -> int | None:
        """Batches an epoch."""
        return self.feed.steps

    def for_peer(self, peer: int) -> "Weighted":
        """Another peer's batches, weighted as these are."""
        return replace(self, feed=self.feed.for_peer(peer))

    def epoch(self, epoch: int) -> Generator[Batch, None, None]:
        """See `Feed`."""
        with contextlib.closing(self.feed.epoch(epoch)) as batches:
            for batch in batches:
                x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
                yield x, y, sample_weights(y, sample_weight, self.class_weight)


@dataclass(frozen=True, eq=False)
class Kept:
    """The batches of the first epoch of a feed that can be read only once, for every epoch.

    Attributes:
        feed: the other feed.
    """

    feed: Feed
    _batches: list[Batch] = field(default_factory=list)

    @property
    def steps(self) -> int | None:
        """Batches an epoch."""
        return len(self._batches) or self.feed.steps

    def for_peer(self, peer: int) -> "Kept":
        """The same batches for everybody."""
        return self

    def epoch(self, epoch: int) -> Generator[Batch, None, None]:
        """See `Feed`."""
        if not self._batches:
            with contextlib.closing(self.feed.epoch(epoch)) as batches:
                read = list(batches)
            self._batches.extend(read)
        yield from self._batches


def sample_weights(y: Any, sample_weight: Any, class_weight: Mapping[int, float]) -> Any:
    """Weights of some examples by their classes.

    Args:
        y: class numbers `(n,)` or `(n, 1)`, or one-hot `(n, classes)`.
        sample_weight: weights that the examples have already; must be None, as in `Model.fit`.
        class_weight: class -> weight; 1 for a class that is not in it.

    Returns:
        Weights `(n,)`.

    Raises:
        UserError: there are sample weights already, no targets, or several of them.
    """
    if sample_weight is not None:
        raise UserError(
            "class_weight and sample_weight exclude each other, as in Model.fit: multiply them "
            "into one sample_weight."
        )
    if y is None or keras.tree.is_nested(y):
        raise UserError("class_weight needs targets of a single output.")
    return class_weight_to_sample_weights(y, class_weight)


def check_class_weight(class_weight: Any) -> None:
    """Refuse what is no weights of classes.

    Args:
        class_weight: what was given.

    Raises:
        UserError: it is no dict, or holds something else than class number -> weight.
    """
    if not isinstance(class_weight, Mapping):
        raise UserError(f"class_weight is {told(class_weight)}: expected a dict, class -> weight.")
    for number, weight in class_weight.items():
        # labels may be floats, and so may the classes of a dict that was made of them
        known = isinstance(number, Real) and not isinstance(number, bool)
        if not known or not float(number) >= 0 or float(number) % 1 != 0:
            raise UserError(
                f"class_weight holds the class {told(number)}: expected whole numbers, 0 or more."
            )
        argument(f"class_weight[{int(number)}]", weight, float, low=0)


def first_batch(feed: Feed) -> Batch:
    """One batch of a feed, which begins anew afterwards.

    Args:
        feed: any feed.

    Raises:
        UserError: it holds no batch.
    """
    with contextlib.closing(feed.epoch(0)) as batches:
        batch = next(batches, None)
    if batch is None:
        raise UserError("the data hold no batch: there is nothing to train on.")
    return batch


def as_short_as_any(feeds: Sequence[Feed], link: Link, epoch: int) -> list[Feed]:
    """Feeds of this process that end an epoch where the shortest of all processes' ends.

    Args:
        feeds: one a peer here.
        link: joins the processes.
        epoch: the first one that they are for.
    """
    least = own = min((feed.steps for feed in feeds if feed.steps is not None), default=None)
    if not link.returning:  # else the others are past this
        told = link.gather_small(own, opens=True).values()
        least = min((steps for steps in told if steps is not None), default=None)
    least = link.kept(f"steps/{epoch}", least)
    return list(feeds) if own in (None, least) else [Limited(feed, least) for feed in feeds]


def side_by_side(
    feeds: Sequence[Feed], epoch: int, *, lazy: bool = False
) -> Generator[list[Batch | LazyBatch], None, None]:
    """One batch of every peer at a time, until the first of them has no more.

    Peers with one feed in common get the very same batch.

    Args:
        feeds: one a peer.
        epoch: which one, counted from 0.
        lazy: whether batches may be such that are not gathered yet.
    """
    with contextlib.ExitStack() as opened:
        streams: dict[int, Iterator[Batch | LazyBatch]] = {}
        for feed in {id(feed): feed for feed in feeds}.values():
            ungathered = lazy_epoch_of(feed, epoch) if lazy else None
            if ungathered is None:
                batches = opened.enter_context(contextlib.closing(feed.epoch(epoch)))
                streams[id(feed)] = batches
            else:
                streams[id(feed)] = ungathered
        while True:
            drawn = {key: next(stream, None) for key, stream in streams.items()}
            found = [batch for feed in feeds if (batch := drawn[id(feed)]) is not None]
            if len(found) < len(feeds):
                return
            yield found


def view_of(feed: Feed, peer: int) -> Feed | None:
    """A feed with another peer's crops of the same examples in the same order.

    Args:
        feed: any feed.
        peer: whose crops.

    Returns:
        None where nothing is drawn for the examples.
    """
    if isinstance(feed, Limited | Weighted):
        inner = view_of(feed.feed, peer)
        return None if inner is None else replace(feed, feed=inner)
    view = getattr(feed, "view", None)
    seen: Feed | None = None if view is None else view(peer)
    return seen


def lazy_epoch_of(feed: Feed, epoch: int) -> Iterator[LazyBatch] | None:
    """A feed's batches before they are gathered, None where it has no such.

    Args:
        feed: any feed.
        epoch: which one, counted from 0.
    """
    lazy = getattr(feed, "lazy_epoch", None)
    batches: Iterator[LazyBatch] | None = None if lazy is None else lazy(epoch)
    return batches
