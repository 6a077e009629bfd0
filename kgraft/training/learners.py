"""Peers that learn beside the model that `fit` trains: their compilation, batches and steps."""

import inspect
import itertools
from collections.abc import Generator, Sequence
from typing import Any

import keras

from kgraft.engines.choose import stepper_for
from kgraft.errors import UserError
from kgraft.training.feeds import ArrayFeed, Batch, Feed, feed_of
from kgraft.training.teaching import Classrooms


class Learner:
    """A peer that takes one step whenever `fit` has taken one.

    Args:
        place: the peer's place in the ring, counted from 0.
        model: the peer, compiled.
        source: its own data, None to learn from the batches that `fit` feeds.
        engine: how it takes its steps, see `Engine`.

    Attributes:
        first_pass: number of the first pass over its data; the order of arrays follows from it.
    """

    def __init__(
        self, place: int, model: keras.Model, source: "Source | None", engine: str
    ) -> None:
        self.name = f"peer{place + 1}"
        self.model = model
        self.stepper = stepper_for(model, engine)
        self.first_pass = 0
        self._place, self._source = place, source
        self._own: Generator[Batch, None, None] | None = None

    def prepare(self, batch: Batch) -> None:
        """Build the peer from a batch of `fit`, and open its own data with batches as large."""
        self.stepper.build(batch)
        if self._source is not None:
            size = int(keras.tree.flatten(batch)[0].shape[0])
            feed = self._source.feed(self._place, size)
            self._own = self._batches(feed, once=self._source.once)

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

    def _batches(self, feed: Feed, *, once: bool) -> Generator[Batch, None, None]:
        for number in itertools.count(self.first_pass):
            batch = None
            for batch in feed.epoch(number):
                yield batch
            if batch is None or once:
                reason = "can be read only once and is exhausted" if once else "holds no batch"
                raise UserError(f"data of {self.name} ({self.model.name!r}) {reason}.")


class Source:
    """What one peer learns from when `data=` is given.

    Args:
        data: arrays in a tuple, a `Feed`, or a data set.
        shared: whether other peers read the same object.

    Attributes:
        once: whether it cannot be begun anew.
    """

    def __init__(self, data: Any, *, shared: bool) -> None:
        self._data, self._shared = data, shared
        self.once = inspect.isgenerator(data)

    def feed(self, place: int, batch_size: int) -> Feed:
        """The feed of the peer at one place of the ring; arrays in batches of about this size."""
        if isinstance(self._data, tuple):
            count = int(keras.tree.flatten(self._data)[0].shape[0])
            feed = feed_of(*self._data, batch_size=min(batch_size, count))
        else:
            feed = feed_of(self._data)
        return feed.for_peer(place) if self._shared or isinstance(feed, ArrayFeed) else feed


def sources(data: Any, count: int) -> list[Source | None]:
    """What each of `count` peers learns from, None for the batches of `fit`.

    Args:
        data: None, one data set for all, or a list with one for every peer.
        count: number of peers that learn.

    Returns:
        One entry a peer.

    Raises:
        UserError: a list of another length.
    """
    if data is None:
        return [None] * count
    if not isinstance(data, list):
        return [Source(data, shared=True)] * count
    if len(data) != count:
        raise UserError(f"data holds {len(data)} data sets for {count} peers: one for each.")
    return [Source(own, shared=False) for own in data]


def compile_as(peer: keras.Model, model: keras.Model, name: str) -> None:
    """Compile a peer with a model's compile config: own optimizer, loss and metrics.

    Args:
        peer: the model to compile.
        model: a compiled model.
        name: what to call the peer in an error.

    Raises:
        UserError: the config cannot be copied, e.g. because of a lambda in it.
    """
    own = [part for part in keras.tree.flatten(model._compile_config.config) if callable(part)]
    own += [model.optimizer]
    scope = {
        part.__name__ if inspect.isfunction(part) else type(part).__name__: (
            part if inspect.isfunction(part) else type(part)
        )
        for part in own
    }
    try:
        with keras.saving.custom_object_scope(scope):
            peer.compile_from_config(model.get_compile_config())
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{name} ({peer.name!r}) cannot copy the compile config of {model.name!r}: "
            "call its compile() yourself."
        ) from error


def check_optimizers(ring: Sequence[keras.Model]) -> None:
    """Refuse models that share an optimizer.

    Args:
        ring: compiled models.

    Raises:
        UserError: names the first two that do.
    """
    owner: dict[int, int] = {}
    for k, model in enumerate(ring, start=1):
        first = owner.setdefault(id(model.optimizer), k)
        if first != k:
            raise UserError(
                f"peer {first} and peer {k} share one optimizer: every peer needs its own."
            )
