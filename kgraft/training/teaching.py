"""Teachers' predictions, once a batch for all students that see it, or once a run."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from kgraft.data import BatchStream
from kgraft.engines.backends.lazy import LazyBatch, gathered
from kgraft.engines.engine import Engine, Predictions
from kgraft.equations import mean_probabilities
from kgraft.training.distiller import Distiller, Taught, distil
from kgraft.training.feeds import ArrayFeed, Batch, Feed
from kgraft.training.learning import Learning


class Teaching:
    """The mean probabilities of M teachers (eq. 12) beside the targets of a batch.

    Teachers run in inference mode and without gradients. The last batch's probabilities are kept,
    so that peers who see the same batch, one after the other, share one pass.

    Args:
        teachers: frozen models whose outputs are logits.
        temperature: tau.
        engine: how they run, see `Engine`.

    Example:
        >>> teacher = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
        >>> teaching = Teaching([teacher], 2.0)
        >>> x, y = np.zeros((4, 2), "float32"), np.arange(4)
        >>> tuple(teaching.of((x, y))[1].probabilities.shape)
        (4, 3)
    """

    def __init__(
        self, teachers: Sequence[keras.Model], temperature: float, engine: str = "auto"
    ) -> None:
        self._predict = Predictions(_Mean(teachers, temperature), engine)
        self._last: tuple[Any, Any] = (None, None)

    def of(self, batch: Batch) -> Batch:
        """The batch with what the teachers say of it.

        Args:
            batch: `(x, y)` or `(x, y, sample_weight)`.

        Returns:
            The same with `Taught` targets.
        """
        x, y, *weights = batch
        if self._last[0] is not x:
            self._last = (x, self._predict(x))
        return (x, Taught(y, self._last[1]), *weights)

    def feed(self, feed: Feed) -> Feed | None:
        """A feed with every image's probabilities, predicted once.

        Args:
            feed: a peer's batches.

        Returns:
            None where images are augmented or nobody knows: each batch must be predicted anew.
        """
        self._predict.renew()  # a teacher may have been changed since the last fit
        if isinstance(feed, ArrayFeed):
            x, y, weights = feed.arrays
            return replace(feed, arrays=(x, Taught(y, self._of_all(feed)), weights))
        if isinstance(feed, BatchStream) and feed.is_fixed:
            return feed.with_labels(Taught(feed.labels, self._of_all(feed)))
        return None

    def _of_all(self, feed: ArrayFeed | BatchStream) -> Any:
        parts = [
            keras.ops.convert_to_numpy(self._predict(batch[0]))
            for batch in feed.in_order().epoch(0)
        ]
        return keras.ops.convert_to_tensor(np.concatenate(parts))


class FromTeachers(Learning):
    """Peers that learn from their targets and from teachers, as Distillers.

    Args:
        students: the peers' own engine.
        teachers: see `Distiller`.
        temperature: see `Distiller`.
        weight: see `Distiller`.
        feature_losses: see `Distiller`; teachers then run in each Distiller's own step.
        label_weight: see `Distiller`.

    Raises:
        UserError: see `distil`.
    """

    def __init__(
        self,
        students: Engine,
        teachers: Sequence[keras.Model],
        temperature: float,
        weight: float,
        feature_losses: Sequence[keras.distillation.DistillationLoss] = (),
        label_weight: float = 1.0,
    ) -> None:
        super().__init__(students)
        self._lesson = (teachers, temperature, weight, feature_losses, label_weight)
        self.engine()
        self._teaching = (
            None if feature_losses else Teaching(teachers, temperature, students.wanted)
        )

    def told(self) -> dict[str, Any]:
        """See `Learning`."""
        _, temperature, weight, losses, label_weight = self._lesson
        kinds = [type(loss).__name__ for loss in losses]
        told = {"temperature": temperature, "weight": weight, "label_weight": label_weight}
        return {**told, "feature_losses": kinds}

    def made(self) -> Engine:
        """See `Learning`."""
        distillers = [distil(peer, *self._lesson) for peer in self.peers]
        return self.students.of(distillers)

    def feed(self, feed: Feed) -> Feed:
        """See `Learning`: the teachers' predictions, where they can be had once and for all."""
        return (self._teaching and self._teaching.feed(feed)) or feed

    def given(self, batches: Sequence[Batch | LazyBatch]) -> Sequence[Batch | LazyBatch]:
        """See `Learning`."""
        if self._teaching is None:
            return batches
        whole = map(gathered, batches)
        return [own if isinstance(own[1], Taught) else self._teaching.of(own) for own in whole]


class Classrooms:
    """Distillers with the same teachers and temperature hear them once a batch.

    Args:
        engine: how teachers run, see `Engine`; under `"eager"` every Distiller asks its own, as
            Keras' step does.
    """

    def __init__(self, engine: str = "auto") -> None:
        self._engine = engine
        self._rooms: dict[Any, Teaching] = {}

    def taught(self, model: keras.Model, batch: Batch) -> Batch:
        """The batch as a model learns from it: with its teachers' word if it is a Distiller.

        Args:
            model: a peer.
            batch: `(x, y)` or `(x, y, sample_weight)`.
        """
        if self._engine == "eager" or type(model) is not Distiller or len(batch) < 2:
            return batch
        if model.feature_losses:  # its teachers must be asked for more than probabilities
            return batch
        key = (tuple(map(id, model.teachers)), model.temperature)
        if key not in self._rooms:
            self._rooms[key] = Teaching(model.teachers, model.temperature, self._engine)
        return self._rooms[key].of(batch)


class _Mean(keras.Model):
    """Mean probabilities of some models at a temperature."""

    def __init__(self, models: Sequence[keras.Model], temperature: float) -> None:
        super().__init__(name="teachers")
        self.models, self.temperature = list(models), temperature
        self.built = True

    def call(self, x: Any) -> Any:
        outputs = [model(x, training=False) for model in self.models]
        return keras.ops.stop_gradient(mean_probabilities(outputs, self.temperature))
