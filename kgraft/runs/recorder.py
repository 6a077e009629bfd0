"""What happens in every epoch, for the run's files and for whoever watches."""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import keras

from kgraft.errors import LostPeerError, UserError
from kgraft.grafting.ring import GraftRecord
from kgraft.links.link import Here, Link
from kgraft.structure import fault
from kgraft.training.joint_state import StatefulCallback

_SAVED = {
    "best_epoch": [int],
    "best_accuracy": [(float, None)],
    "last": [{"epoch": int}],
    "written": int,
    "seconds": float,
    "lines": object,
}


class Lines(Protocol):
    """Where a run's rows go, one after the other."""

    def told_lines(self) -> dict[str, Any]:
        """What `keep_lines` needs, JSON-able."""

    def keep_lines(self, told: Any) -> None:
        """Keep the lines of that time, and write over those that came since."""

    def add_metrics(self, rows: Iterable[dict[str, Any]]) -> None:
        """One a model and epoch."""

    def add_grafts(self, rows: Iterable[dict[str, Any]]) -> None:
        """One an epoch, peer and plan group."""


class NoLines:
    """Where the rows of a process go whose rows another one writes."""

    def told_lines(self) -> dict[str, Any]:
        """See `Lines`."""
        return {}

    def keep_lines(self, told: Any) -> None:
        """See `Lines`."""

    def add_metrics(self, rows: Iterable[dict[str, Any]]) -> None:
        """See `Lines`."""

    def add_grafts(self, rows: Iterable[dict[str, Any]]) -> None:
        """See `Lines`."""


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

    A checkpoint holds what it knows, so that a run that goes on has it too.

    Args:
        phase: `"teacher 1"`, `"teachers"` or `"peers"`.
        models: the models that are trained.
        observer: who is told.
        files: where the rows of an epoch go, one a model.
        records: of the models' graftings, which go there too; it grows.
        check: called after every step; it may raise.
        link: joins the processes that the models are in; the first one tells of all.

    Attributes:
        best_weights: for each model its weights in its best epoch.
        best_epoch: for each model that epoch, counted from 1.
        best_accuracy: for each model its validation accuracy then; None without validation.
        last: for each model the metrics of its last epoch.
        rows: the same of all models, in whatever process, as far as they are not lost.
    """

    def __init__(
        self,
        phase: str,
        models: Sequence[keras.Model],
        observer: Observer,
        files: "Lines",
        records: Sequence[tuple[int, GraftRecord]] = (),
        check: Callable[[], None] = lambda: None,
        link: Link | None = None,
    ) -> None:
        self._link = link or Here()
        self._first = self._link.here.start if link is not None else 0
        self.best_weights: list[list[Any]] = [[] for _ in models]
        self.best_epoch = [0 for _ in models]
        self.best_accuracy: list[float | None] = [None for _ in models]
        self.last: list[dict[str, Any]] = [{} for _ in models]
        self.rows: list[dict[str, Any]] = []
        self._phase, self._models = phase, models
        self._observer, self._files, self._records = observer, files, records
        self._written = 0  # of the records
        self._seconds, self._began = 0.0, time.perf_counter()
        self.check = check

    @property
    def seconds(self) -> float:
        """How long the training took, what was lost when it was broken off not counted."""
        return self._seconds + time.perf_counter() - self._began

    def callbacks(self, k: int) -> list[keras.callbacks.Callback]:
        """The callbacks of the k-th model, as `GraftingFit.fit` asks for them."""
        return [_Watch(self, k, last=k == len(self._models) - 1)]

    def note(self, k: int, epoch: int, rate: float, logs: dict[str, Any]) -> None:
        """One model has ended an epoch, counted from 0, that began with this learning rate."""
        own = {name: value for name, value in logs.items() if not name.startswith("peer")}
        self.last[k] = {
            "phase": self._phase,
            "model": self._first + k + 1,
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
            told = self._link.gather_small(self.last, opens=True)
            if 0 not in told:
                raise LostPeerError(
                    "the first rank is lost, which writes the run: start all again, with --resume."
                )
            self.rows = [row for own in told.values() for row in own]
            self._files.add_metrics(self.rows)
            for number, record in self._records[self._written :]:
                whose = {} if self._phase == "peers" else {"phase": self._phase}
                rows = record.to_rows(epoch=number + 1)
                self._files.add_grafts([{**whose, **row} for row in rows])
            self._written = len(self._records)
            self._observer.epoch(self._phase, epoch + 1, self.rows)

    def stepped(self, epoch: int, step: int) -> None:
        """All models have taken a step; both counted from 0."""
        self._observer.step(self._phase, epoch + 1, step + 1)
        self.check()

    def save(self) -> dict[str, Any]:
        """What `restore` needs: JSON-able values and NumPy arrays."""
        return {
            "best_weights": self.best_weights,
            "best_epoch": self.best_epoch,
            "best_accuracy": self.best_accuracy,
            "last": self.last,
            "written": self._written,
            "seconds": self.seconds,
            "lines": self._files.told_lines(),
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Go on from what `save` gave; what the files have got since is written over.

        Args:
            saved: that.

        Raises:
            UserError: it is of other models.
        """
        count = len(self._models)
        if saved.get("last") == [{}] * count:  # from before the first epoch
            self.best_weights, self.best_epoch = [[] for _ in range(count)], [0] * count
            self.best_accuracy, self.last = [None] * count, [{} for _ in range(count)]
            self._written, self._seconds, self._began = 0, 0.0, time.perf_counter()
            self._files.keep_lines(saved.get("lines"))
            return
        lists = ("best_weights", "best_epoch", "best_accuracy", "last")
        shapes = [[tuple(weight.shape) for weight in model.weights] for model in self._models]
        if (
            (wrong := fault({**saved, "best_weights": []}, _SAVED))
            or any(len(saved[name]) != count for name in lists)
            or [[value.shape for value in own] for own in saved["best_weights"]] != shapes
        ):
            raise UserError(f"the checkpoint's best epochs are of other models. {wrong}".strip())
        self.best_weights, self.best_epoch = saved["best_weights"], saved["best_epoch"]
        self.best_accuracy, self.last = saved["best_accuracy"], saved["last"]
        self._written, self._seconds = saved["written"], saved["seconds"]
        self._began = time.perf_counter()
        self._files.keep_lines(saved["lines"])


class _Watch(StatefulCallback):
    def __init__(self, recorder: Recorder, k: int, *, last: bool) -> None:
        super().__init__()
        self._recorder, self._k, self._last = recorder, k, last
        self._epoch, self._rate = 0, 0.0

    def save(self) -> dict[str, Any]:
        """The recorder's state, once."""
        return self._recorder.save() if self._last else {}

    def restore(self, saved: dict[str, Any]) -> None:
        if self._last:
            self._recorder.restore(saved)

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._recorder.check()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch = epoch
        self._rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self._last:
            self._recorder.stepped(self._epoch, batch)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._recorder.note(self._k, epoch, self._rate, logs or {})
