"""Peers that learn beside the model that `fit` trains: their batches and steps."""

import inspect
import itertools
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras

from kgraft.engines.engine import stepper_for
from kgraft.errors import UserError
from kgraft.training.feeds import AdapterFeed, ArrayFeed, Batch, Feed, feed_of, innermost
from kgraft.training.preflight import optimizers_of
from kgraft.training.teaching import Classrooms


@dataclass(frozen=True)
class Source:
    """What one peer learns from when `data=` is given.

    Attributes:
        feed: its batches.
        arrays: whether it is read in batches as large as those of `fit`.
        once: whether it cannot be begun anew.
    """

    feed: Feed
    arrays: bool = False
    once: bool = False

    def sized(self, batch_size: int) -> Feed:
        """The feed; arrays in batches of this size, or of all there is."""
        if self.arrays and isinstance(self.feed, ArrayFeed):
            return replace(self.feed, batch_size=min(batch_size, self.feed.count))
        return self.feed


class Learner:
    """A peer that takes one step whenever `fit` has taken one.

    Args:
        place: the peer's place in the ring, counted from 0.
        model: the peer, compiled.
        source: its own data, None to learn from the batches that `fit` feeds.
        engine: how it takes its steps, see `Engine`.

    Attributes:
        first_pass: number of the first pass over its data, where `read` does not say more.
        read: batches of its data that it has read in its life, None where nobody knows.
    """

    def __init__(self, place: int, model: keras.Model, source: Source | None, engine: str) -> None:
        self.name = f"peer{place + 1}"
        self.model = model
        self.stepper = stepper_for(model, engine)
        self.first_pass = 0
        self.read: int | None = None
        self._source = source
        self._own: Generator[Batch, None, None] | None = None

    def prepare(self, batch: Batch) -> None:
        """Build the peer from a batch of `fit`, and open its own data with batches as large.

        Args:
            batch: what `fit` has fed to its model.

        Raises:
            UserError: `fit` weighs its examples, and the peer's data has no weights.
        """
        self.stepper.build(batch)
        if self._source is not None:
            size = int(keras.tree.flatten(batch)[0].shape[0])
            self._own = self._batches(
                self._source.sized(size), once=self._source.once, weighted=_is_weighted(batch)
            )

    def learn(self, batch: Batch, classrooms: Classrooms) -> None:
        """One step: on the next of its own batches, or on this one.

        Args:
            batch: what `fit` has fed to its model.
            classrooms: where students of the same teachers hear them once a batch.
        """
        batch = batch if self._own is None else next(self._own)
        self.stepper.step(classrooms.taught(self.model, batch))

    def close(self) -> None:
        """End its own data; nothing is read from it any more."""
        if self._own is not None:
            self._own.close()

    def _batches(self, feed: Feed, *, once: bool, weighted: bool) -> Generator[Batch, None, None]:
        first, skipped = self._begin(feed)
        for number in itertools.count(first):
            batch = None
            for batch in itertools.islice(feed.epoch(number), skipped, None):
                if weighted and not _is_weighted(batch):
                    raise UserError(
                        f"fit weighs its examples (class_weight or sample_weight), and data of "
                        f"{self.name} ({self.model.name!r}) has no weights: give "
                        "GraftCallback(class_weight=...), {} for none, or data=(x, y, "
                        "sample_weight)."
                    )
                self.read = (self.read or 0) + 1
                yield batch
            skipped = 0
            if batch is None or once:
                reason = "can be read only once and is exhausted" if once else "holds no batch"
                raise UserError(f"data of {self.name} ({self.model.name!r}) {reason}.")

    def _begin(self, feed: Feed) -> tuple[int, int]:
        """The pass to go on in, and how many of its batches have been read.

        A data set of somebody else's begins anew: whether it yields the same again nobody knows.
        """
        steps = feed.steps or 0
        if self.read is None:
            self.read = self.first_pass * steps
        if not steps or isinstance(innermost(feed), AdapterFeed):
            return self.first_pass, 0
        return divmod(self.read, steps)


def sources(data: Any, places: Sequence[int], class_weight: Any = None) -> list[Source | None]:
    """What each peer that learns learns from, None for the batches of `fit`.

    Args:
        data: None, one data set for all, or a list with one for every peer.
        places: the peers' places in the ring, counted from 0.
        class_weight: weights of the classes in these data.

    Returns:
        One entry a peer.

    Raises:
        UserError: a list of another length, or data that nobody can read.
    """
    if data is None:
        return [None] * len(places)
    if not isinstance(data, list):
        first = _feed_of(data, class_weight, "data")
        return [_source(data, first.for_peer(place)) for place in places]
    if len(data) != len(places):
        raise UserError(f"data holds {len(data)} data sets for {len(places)} peers: one for each.")
    return [
        _source(own, _feed_of(own, class_weight, f"data[{k}]", place))
        for k, (own, place) in enumerate(zip(data, places, strict=True))
    ]


def check_optimizers(ring: Sequence[keras.Model]) -> None:
    """Refuse models that share an optimizer, or one inside of theirs.

    Args:
        ring: compiled models.

    Raises:
        UserError: names the first two that do.
    """
    owner: dict[int, int] = {}
    for k, model in enumerate(ring, start=1):
        for optimizer in optimizers_of(model):
            first = owner.setdefault(id(optimizer), k)
            if first != k:
                raise UserError(
                    f"peer {first} and peer {k} share one optimizer: every peer needs its own."
                )


def _feed_of(data: Any, class_weight: Any, name: str, peer: int = 0) -> Feed:
    parts = data if isinstance(data, tuple) else (data,)
    try:
        return feed_of(*parts, class_weight=class_weight, peer=peer)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error


def _source(data: Any, feed: Feed) -> Source:
    return Source(feed, arrays=isinstance(data, tuple), once=inspect.isgenerator(data))


def _is_weighted(batch: Batch) -> bool:
    return keras.utils.unpack_x_y_sample_weight(batch)[2] is not None
