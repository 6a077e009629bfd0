"""GraftingFit: K models in one loop, grafted after every epoch."""

import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal

import keras
import numpy as np

from kgraft.engines.choose import Engine
from kgraft.errors import UserError
from kgraft.grafting.graft import Graft, warn_of_sick_peers
from kgraft.grafting.mixer import Mixer
from kgraft.grafting.ring import GraftRecord
from kgraft.keras_private import train_validation_split
from kgraft.training.distiller import Taught, distil
from kgraft.training.feeds import (
    Batch,
    Feed,
    feed_of,
    is_arrays,
    side_by_side,
    validation_feed,
)
from kgraft.training.graft_schedule import GraftSchedule
from kgraft.training.learners import check_optimizers
from kgraft.training.mutual import Mutual, MutualEngine
from kgraft.training.teaching import Teaching

_log = logging.getLogger("kgraft")

Callbacks = Sequence[keras.callbacks.Callback]


class GraftingFit:
    """Trains K peers side by side and grafts them at the end of every epoch.

    Every peer keeps what it was compiled with: its own optimizer, learning rate, loss and metrics.
    It draws its own data order. With teachers, the peers learn from their mean probabilities too
    (grafting+).

    Args:
        peers: K compiled models of one architecture, in ring order: peer k receives from k - 1.
        teachers: M trained models whose outputs are logits; none for plain grafting.
        graft: what is done to the peers' weights: the entropy ring by default, any other `Mixer`,
            `Mixer()` for nothing at all.
        mutual: with `Mutual()` each peer learns from the others' predictions too (deep mutual
            learning); all then see the first peer's batches.
        every: graft at the end of every n-th epoch.
        epochs_grafted: graft at the end of the first n epochs only; None for all.
        evaluate: `"after"` or `"before"` the grafting, see `GraftSchedule`.
        temperature: tau of the distillation loss.
        distillation_weight: weight of the distillation loss beside the peers' own.
        feature_losses: see `Distiller`; teachers then run for each peer anew.
        seed: the peers' data orders follow from it.
        engine: `"auto"` and `"compiled"` for the fastest steps there are on this backend, with
            Keras' own where a model cannot be compiled; `"eager"` for Keras' own. All give the same
            numbers to rounding; the log says which one it was, and why.

    Attributes:
        peers: the K models, ordinary Keras models before, during and after training.
        records: what each grafting measured and did, as `(epoch, GraftRecord)`.

    Raises:
        UserError: no peer, a peer that is not compiled or given twice, peers that do not match
            (names the first difference), or an option out of range.

    Example:
        ```python
        peers = [kgraft.models.resnet20(classes=10) for _ in range(4)]
        for k, peer in enumerate(peers):
            peer.compile(
                optimizer=kgraft.SGD(kgraft.spread(0.1, k, 4), momentum=0.9, l2=5e-4),
                loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                metrics=["accuracy"],
            )
        run = kgraft.GraftingFit(peers)
        histories = run.fit(x, y, batch_size=128, epochs=200, validation_data=(xv, yv))
        ```
    """

    def __init__(
        self,
        peers: Sequence[keras.Model],
        teachers: Sequence[keras.Model] = (),
        *,
        graft: Mixer | None = None,
        mutual: Mutual | None = None,
        every: int = 1,
        epochs_grafted: int | None = None,
        evaluate: Literal["after", "before"] = "after",
        temperature: float = 2.0,
        distillation_weight: float = 1.0,
        feature_losses: Sequence[keras.distillation.DistillationLoss] = (),
        seed: int = 0,
        engine: Literal["auto", "eager", "compiled"] = "auto",
    ) -> None:
        self.peers = list(peers)
        self.teachers = list(teachers)
        self.graft: Mixer = graft or Graft()
        self.schedule = GraftSchedule(every, epochs_grafted, evaluate)
        self.seed = seed
        self.records: list[tuple[int, GraftRecord]] = []
        if not self.peers:
            raise UserError("no peers: GraftingFit needs at least one compiled model.")
        for k, peer in enumerate(self.peers, start=1):
            if not peer.compiled:
                raise UserError(f"peer {k} ({peer.name!r}) is not compiled: call compile() first.")
        check_optimizers(self.peers)
        if mutual is not None and self.teachers:
            raise UserError("mutual= and teachers= exclude each other: peers learn from either.")
        self._plan = self.graft.check(self.peers) if all(p.built for p in self.peers) else None
        students = Engine(self.peers, engine)
        self._students = self._trainees = students.steppers
        self._shared = mutual is not None
        self._engine: Engine | MutualEngine = students
        self._teaching = (
            Teaching(self.teachers, temperature, engine)
            if self.teachers and not feature_losses
            else None
        )
        if mutual is not None:
            self._engine = MutualEngine(self.peers, mutual, engine)
        elif self.teachers:
            taught = [
                distil(peer, self.teachers, temperature, distillation_weight, tuple(feature_losses))
                for peer in self.peers
            ]
            self._engine = Engine(taught, engine)
            self._trainees = self._engine.steppers
        self._sick: set[int] = set()
        self._steps_taken = 0

    def fit(
        self,
        x: Any,
        y: Any = None,
        *,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Literal["auto", 0, 1, 2] = "auto",
        callbacks: Callbacks | Callable[[int], Callbacks] | None = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        shuffle: bool = True,
        class_weight: dict[int, float] | None = None,
        sample_weight: Any = None,
        initial_epoch: int = 0,
        steps_per_epoch: int | None = None,
        validation_batch_size: int | None = None,
        validation_freq: int = 1,
        shared_batches: bool = False,
    ) -> list[keras.callbacks.History]:
        """Train and graft all peers; arguments as in `keras.Model.fit` where not said otherwise.

        Args:
            x: arrays, which each peer reads in its own order; or a data set (`tf.data`,
                `PyDataset`, torch `DataLoader`, a `Feed`), which each peer iterates for itself;
                or a list of K data sets, one for every peer.
            y: targets, with arrays.
            batch_size: examples a step, with arrays; 32 by default.
            epochs: train up to this epoch.
            verbose: 0 is silent; the progress bar shows the first peer's metrics and, at an
                epoch's end, everybody's.
            callbacks: a list of Keras callbacks watches the first peer: they get its metrics and,
                as `peer2_loss` ..., those of the others, and `alpha`, its mean coefficient. A
                function `k -> list` gives every peer its own.
            validation_split: share of the arrays' end that is held out.
            validation_data: `(x, y)` or `(x, y, sample_weight)` or a data set; every peer is
                evaluated on all of it.
            shuffle: whether arrays are read in a new order each epoch.
            class_weight: weight of every class.
            sample_weight: weights of the examples, with arrays.
            initial_epoch: epoch to begin with; orders depend on the epoch, not on the call.
            steps_per_epoch: at most so many steps an epoch.
            validation_batch_size: `batch_size` by default.
            validation_freq: validate every n-th epoch.
            shared_batches: whether all peers see the first peer's batches; teachers then run once
                for all. Peers of their own order are more diverse and gain more from grafting.

        Returns:
            One `History` per peer.

        Raises:
            UserError: data that does not fit, see `feed_of`.
        """
        if validation_split and validation_data is None:
            (x, y, sample_weight), validation_data = train_validation_split(
                (x, y, sample_weight), validation_split=validation_split
            )
        feeds = self._feeds(
            x,
            y,
            sample_weight,
            shared=shared_batches or self._shared,
            batch_size=batch_size,
            class_weight=class_weight,
            seed=self.seed,
            shuffle=shuffle,
            steps=steps_per_epoch,
        )
        validation = None
        if validation_data is not None:
            validation = validation_feed(validation_data, validation_batch_size or batch_size)
        self._build(feeds)
        watchers = self._watchers(callbacks, verbose=verbose, epochs=epochs, steps=feeds[0].steps)
        _log.info("engine: %s", self._engine.describe())
        self._run(
            feeds,
            watchers,
            validation,
            range(initial_epoch, epochs),
            validation_freq,
        )
        return [peer.history for peer in self.peers]

    def evaluate(self, x: Any, y: Any = None, *, batch_size: int | None = None) -> list[dict]:
        """Loss and metrics of every peer.

        Args:
            x: arrays or a data set.
            y: targets, with arrays.
            batch_size: examples a step, with arrays.

        Returns:
            For each peer metric name -> value.
        """
        feed = feed_of(x, y, batch_size=batch_size, shuffle=False)
        return [student.evaluate(feed.epoch(0)) for student in self._students]

    def predict(self, x: Any, *, batch_size: int | None = None) -> Any:
        """Outputs of every peer.

        Args:
            x: arrays or a data set.
            batch_size: examples a step, with arrays.

        Returns:
            Outputs of shape `(K, n, ...)`, nested as the models' are.
        """
        feed = feed_of(x, batch_size=batch_size, shuffle=False)
        outputs = [student.predict(feed.epoch(0)) for student in self._students]
        return keras.tree.map_structure(lambda *parts: np.stack(parts), *outputs)

    def _feeds(
        self, x: Any, y: Any, sample_weight: Any, *, shared: bool, **options: Any
    ) -> list[Feed]:
        if not isinstance(x, list) or is_arrays(x, y, sample_weight):
            first = self._taught(feed_of(x, y, sample_weight, **options))
            return [first if shared else first.for_peer(k) for k in range(len(self.peers))]
        if shared:
            raise UserError("shared_batches=True needs one data set for all peers, not a list.")
        if len(x) != len(self.peers):
            raise UserError(f"{len(x)} data sets for {len(self.peers)} peers: one for each.")
        return [self._taught(feed_of(data, y, sample_weight, **options)) for data in x]

    def _taught(self, feed: Feed) -> Feed:
        """The feed with the teachers' predictions, where they can be had once and for all."""
        return (self._teaching.feed(feed) if self._teaching else None) or feed

    def _build(self, feeds: Sequence[Feed]) -> None:
        for feed, trainee, student in zip(feeds, self._trainees, self._students, strict=True):
            if trainee.model.built and trainee.model.optimizer.built:
                continue
            with contextlib.closing(feed.epoch(0)) as batches:
                batch = next(batches)
            student.build(_without_teachers(batch))
            trainee.build(self._with_teachers(batch))
        self._engine.choose()
        self._plan = self._plan or self.graft.check(self.peers)

    def _watchers(
        self, callbacks: Any, *, verbose: Any, epochs: int, steps: int | None
    ) -> list[keras.callbacks.CallbackList]:
        def given(k: int) -> list[keras.callbacks.Callback]:
            if callable(callbacks):
                return list(callbacks(k))
            return list(callbacks or ()) if k == 0 else []

        return [
            keras.callbacks.CallbackList(
                given(k),
                add_history=True,
                add_progbar=verbose != 0 and k == 0,
                model=peer,
                verbose=verbose,
                epochs=epochs,
                steps=steps,
            )
            for k, peer in enumerate(self.peers)
        ]

    def _run(
        self,
        feeds: Sequence[Feed],
        watchers: Sequence[keras.callbacks.CallbackList],
        validation: Feed | None,
        epochs: range,
        validation_freq: int,
    ) -> None:
        for peer in self.peers:
            peer.stop_training = False
        logs: list[dict[str, Any]] = [{} for _ in self.peers]
        for watcher in watchers:
            watcher.on_train_begin()
        pending: int | None = None
        for epoch in epochs:
            if pending is not None:
                self._graft(pending)
                pending = None
            for watcher in watchers:
                watcher.on_epoch_begin(epoch)
            self._train_epoch(feeds, watchers, epoch)
            logs = self._engine.logs()
            if self.schedule.due(epoch):
                if self.schedule.evaluate == "after":
                    self._log_alpha(logs, self._graft(epoch))
                else:
                    pending = epoch
            if validation is not None and (epoch + 1) % validation_freq == 0:
                self._validate(validation, watchers, logs)
            _share(logs)
            for watcher, own in zip(watchers, logs, strict=True):
                watcher.on_epoch_end(epoch, own)
            if any(peer.stop_training for peer in self.peers):
                break
        for peer in self.peers:
            peer.optimizer.finalize_variable_values(peer.trainable_weights)
        for watcher, own in zip(watchers, logs, strict=True):
            watcher.on_train_end(own)

    def _train_epoch(
        self,
        feeds: Sequence[Feed],
        watchers: Sequence[keras.callbacks.CallbackList],
        epoch: int,
    ) -> None:
        self._engine.begin_epoch()
        try:
            for step, batches in enumerate(side_by_side(feeds, epoch)):
                for watcher in watchers:
                    watcher.on_train_batch_begin(step)
                taught = [self._with_teachers(batch) for batch in batches]
                logs_of_all = self._engine.step(taught)
                self._mix(epoch, step, feeds[0].steps)
                for watcher, logs in zip(watchers, logs_of_all, strict=True):
                    watcher.on_train_batch_end(step, logs)
                if any(peer.stop_training for peer in self.peers):
                    break
        finally:
            self._engine.end_epoch()

    def _with_teachers(self, batch: Batch) -> Batch:
        if self._teaching is None or isinstance(batch[1], Taught):
            return batch
        return self._teaching.of(batch)

    def _mix(self, epoch: int, step: int, steps: int | None) -> None:
        """What the mixer does between steps."""
        number = self._steps_taken if steps is None else epoch * steps + step
        self._steps_taken = number + 1
        every = self.graft.every_steps
        if every is not None and (number + 1) % every == 0 and self._plan is not None:
            self.graft.step(self.peers, self._plan, number)

    def _graft(self, epoch: int) -> GraftRecord | None:
        record = self.graft.apply(self.peers, self._plan, epoch)
        if record is not None:
            warn_of_sick_peers(record, self._sick)
            self.records.append((epoch, record))
        return record

    def _log_alpha(self, logs: list[dict[str, Any]], record: GraftRecord | None) -> None:
        if record is None:
            return
        for own, alpha in zip(logs, record.mean_coefficients.tolist(), strict=True):
            own["alpha"] = alpha

    def _validate(
        self,
        validation: Feed,
        watchers: Sequence[keras.callbacks.CallbackList],
        logs: list[dict[str, Any]],
    ) -> None:
        for student, watcher, own in zip(self._students, watchers, logs, strict=True):
            watcher.on_test_begin()
            results = student.evaluate(validation.epoch(0))
            watcher.on_test_end(results)
            own.update((f"val_{name}", value) for name, value in results.items())


def _without_teachers(batch: Batch) -> Batch:
    x, y, *weights = batch
    return (x, y.targets if isinstance(y, Taught) else y, *weights)


def _share(logs: list[dict[str, Any]]) -> None:
    """The first peer's logs get everybody's, as `peer2_loss` and so on."""
    for k, own in enumerate(logs[1:], start=2):
        logs[0].update({f"peer{k}_{name}": value for name, value in own.items()})
