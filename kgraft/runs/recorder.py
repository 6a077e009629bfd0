"""What happens in every epoch, for the run's files and for whoever watches."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import keras


class Observer(Protocol):
    """Whoever watches a run; the command line's progress display is one."""

    def begin(self, phase: str, models: int, epochs: int, steps: int) -> None:
        """A phase begins: `"teacher 1"` or `"peers"`."""

    def step(self, phase: str, epoch: int, step: int) -> None:
        """All models of the phase have taken a step, counted from 1."""

    def epoch(self, phase: str, epoch: int, rows: Sequence[dict[str, Any]]) -> None:
        """An epoch has ended, counted from 1; one row of metrics a model."""


class Silent:
    """An observer that shows nothing."""

    def begin(self, phase: str, models: int, epochs: int, steps: int) -> None:
        """See `Observer`."""

    def step(self, phase: str, epoch: int, step: int) -> None:
        """See `Observer`."""

    def epoch(self, phase: str, epoch: int, rows: Sequence[dict[str, Any]]) -> None:
        """See `Observer`."""


class Recorder:
    """Collects the metrics of every model of a phase and keeps each one's best weights.

    Best is the highest validation accuracy, the earliest of equals; without validation the last
    epoch.

    Args:
        phase: `"teacher 1"` or `"peers"`.
        models: the models that are trained.
        observer: who is told.
        write: takes the rows of an epoch, one a model.

    Attributes:
        best_weights: for each model its weights in its best epoch.
        best_epoch: for each model that epoch, counted from 1.
        best_accuracy: for each model its validation accuracy then; None without validation.
        last: for each model the metrics of its last epoch.
    """

    def __init__(
        self,
        phase: str,
        models: Sequence[keras.Model],
        observer: Observer,
        write: Callable[[list[dict[str, Any]]], None],
    ) -> None:
        self.best_weights: list[list[Any]] = [[] for _ in models]
        self.best_epoch = [0 for _ in models]
        self.best_accuracy: list[float | None] = [None for _ in models]
        self.last: list[dict[str, Any]] = [{} for _ in models]
        self._phase, self._models = phase, models
        self._observer, self._write = observer, write

    def callbacks(self, k: int) -> list[keras.callbacks.Callback]:
        """The callbacks of the k-th model, as `GraftingFit.fit` asks for them."""
        return [_Watch(self, k, last=k == len(self._models) - 1)]

    def note(self, k: int, epoch: int, rate: float, logs: dict[str, Any]) -> None:
        """One model has ended an epoch, counted from 0, that began with this learning rate."""
        own = {name: value for name, value in logs.items() if not name.startswith("peer")}
        self.last[k] = {
            "phase": self._phase,
            "model": k + 1,
            "epoch": epoch + 1,
            "lr": rate,
            **{name: float(value) for name, value in own.items()},
        }
        accuracy = self.last[k].get("val_accuracy")
        best = self.best_accuracy[k]
        if accuracy is None or best is None or accuracy > best:
            self.best_accuracy[k], self.best_epoch[k] = accuracy, epoch + 1
            self.best_weights[k] = self._models[k].get_weights()
        if k == len(self._models) - 1:
            self._write(self.last)
            self._observer.epoch(self._phase, epoch + 1, self.last)

    def stepped(self, epoch: int, step: int) -> None:
        """All models have taken a step; both counted from 0."""
        self._observer.step(self._phase, epoch + 1, step + 1)


class _Watch(keras.callbacks.Callback):
    def __init__(self, recorder: Recorder, k: int, *, last: bool) -> None:
        super().__init__()
        self._recorder, self._k, self._last = recorder, k, last
        self._epoch, self._rate = 0, 0.0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch = epoch
        self._rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self._last:
            self._recorder.stepped(self._epoch, batch)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._recorder.note(self._k, epoch, self._rate, logs or {})
