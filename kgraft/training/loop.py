"""GraftingFit's loop: epochs of K peers, their graftings, and what a fit leaves to the next."""

import contextlib
import logging
from collections.abc import Callable, Sequence

import keras

from kgraft.engines.choose import Engine
from kgraft.engines.stepper import Stepper
from kgraft.engines.steps import Logs
from kgraft.grafting.graft import warn_of_sick_peers
from kgraft.grafting.mixer import Mixer
from kgraft.grafting.plan import GraftPlan
from kgraft.grafting.ring import GraftRecord
from kgraft.training.batches import Batch, Feed, first_batch, side_by_side
from kgraft.training.distiller import Taught
from kgraft.training.fit_arguments import check_targets
from kgraft.training.graft_schedule import GraftSchedule
from kgraft.training.mutual import MutualEngine
from kgraft.training.teaching import Teaching
from kgraft.training.watchers import ends_epochs, evaluate, restored_epoch

_log = logging.getLogger("kgraft")

Watchers = Sequence[keras.callbacks.CallbackList]


class PeerLoop:
    """Trains K peers epoch by epoch and grafts them, over one call of `fit` or several.

    Args:
        students: the peers, one stepper each, by which they are validated.
        engine: takes the steps of the peers, or of the models that train them.
        trainees: its steppers, in the peers' order; the students where it has none of its own.
        teaching: puts teachers' predictions beside each batch; None for plain targets.
        graft: what is done to the peers' weights.
        schedule: when.

    Attributes:
        peers: the K models.
        mixer: what is done to their weights.
        schedule: when.
        records: what each grafting measured and did, as `(epoch, GraftRecord)`.
        epochs_done: whole epochs so far; the next one of the run has this number.
    """

    def __init__(
        self,
        students: Sequence[Stepper],
        engine: Engine | MutualEngine,
        trainees: Sequence[Stepper],
        teaching: Teaching | None,
        graft: Mixer,
        schedule: GraftSchedule,
    ) -> None:
        self.peers = [student.model for student in students]
        self.records: list[tuple[int, GraftRecord]] = []
        self.epochs_done = 0
        self._students, self._engine, self._trainees = students, engine, trainees
        self._teaching = teaching
        self.mixer, self.schedule = graft, schedule
        built = all(peer.built for peer in self.peers)
        self._plan: GraftPlan | None = graft.check(self.peers) if built else None
        self._pending: int | None = None  # the epoch whose grafting is put off to the next one
        self._alphas = [1.0 for _ in self.peers]
        self._sick: set[int] = set()
        self._steps_taken = 0

    def prepare(self, feed: Feed) -> None:
        """Build what is not built, from a batch of a feed, and settle how steps are taken."""
        pairs = list(zip(self._trainees, self._students, strict=True))
        models = [own.model for pair in pairs for own in pair]
        if not all(model.built and model.optimizer.built for model in models):
            batch = first_batch(feed)
            check_targets(self.peers, *_without_teachers(batch)[:2], name="x")
            for trainee, student in pairs:
                student.build(_without_teachers(batch))
                trainee.build(self._with_teachers(batch))
        self._engine.choose()

    def run(
        self,
        feeds: Sequence[Feed],
        watchers: Watchers,
        epochs: range,
        *,
        validation: Feed | None = None,
        validated: Callable[[int], bool] = lambda epoch: True,
    ) -> None:
        """Train the epochs of one `fit`.

        Args:
            feeds: one a peer.
            watchers: one list of callbacks a peer.
            epochs: what callbacks are told; the run's own numbers go on from `epochs_done`.
            validation: what every peer is evaluated on.
            validated: which of `epochs` end with that.

        Raises:
            UserError: the peers do not match, or callbacks have restored them at different epochs.
        """
        for peer in self.peers:
            peer.stop_training, peer._initial_epoch = False, None
        plan = self._plan = self.mixer.check(self.peers)  # what is frozen may have changed
        logs: list[Logs] = [{} for _ in self.peers]
        self.mixer.begin(self.peers)
        try:
            for watcher in watchers:
                watcher.on_train_begin()
            if (restored := restored_epoch(self.peers)) is not None:
                self._resume(restored, watchers)
                epochs = range(restored, epochs.stop)
            for epoch in epochs:
                logs = self._epoch(feeds, watchers, epoch)
                if validation is not None and validated(epoch):
                    self._validate(validation, watchers, logs)
                _share(logs)
                for watcher, own in zip(watchers, logs, strict=True):
                    watcher.on_epoch_end(epoch, own)
                if any(peer.stop_training for peer in self.peers):
                    break
            if epochs.stop > 0:
                for peer in self.peers:
                    peer.optimizer.finalize_variable_values(peer.trainable_weights)
        finally:
            self.mixer.end(self.peers, plan)
        for watcher, own in zip(watchers, logs, strict=True):
            watcher.on_train_end(own)

    def _resume(self, epoch: int, watchers: Watchers) -> None:
        """Go on from weights that were saved after so many epochs."""
        _log.info("all peers are restored: the training goes on with epoch %d", epoch + 1)
        self.epochs_done = epoch
        put_off = self.schedule.evaluate == "before" and self.schedule.due(epoch - 1)
        self._pending = epoch - 1 if put_off and ends_epochs(watchers) else None

    def _epoch(self, feeds: Sequence[Feed], watchers: Watchers, epoch: int) -> list[Logs]:
        """Train one epoch and graft; callbacks are told its number in this `fit`."""
        number = self.epochs_done
        self._alphas = [1.0 for _ in self.peers]
        if self._pending is not None:
            self._graft(self._pending)
            self._pending = None
        for watcher in watchers:
            watcher.on_epoch_begin(epoch)
        self._train_epoch(feeds, watchers, number)
        logs = self._engine.logs()
        if self.schedule.due(number):
            if self.schedule.evaluate == "after":
                self._graft(number)
            else:
                self._pending = number
        self.epochs_done = number + 1
        return [{**own, "alpha": alpha} for own, alpha in zip(logs, self._alphas, strict=True)]

    def _validate(self, validation: Feed, watchers: Watchers, logs: list[Logs]) -> None:
        for student, watcher, own in zip(self._students, watchers, logs, strict=True):
            results = evaluate(student, validation, watcher)
            own.update((f"val_{name}", value) for name, value in results.items())

    def _train_epoch(self, feeds: Sequence[Feed], watchers: Watchers, number: int) -> None:
        self._engine.begin_epoch()
        try:
            with contextlib.closing(side_by_side(feeds, number)) as drawn:
                for step, batches in enumerate(drawn):
                    for watcher in watchers:
                        watcher.on_train_batch_begin(step)
                    logs_of_all = self._engine.step([self._with_teachers(own) for own in batches])
                    self._mix(number, step, feeds[0].steps)
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
        every = self.mixer.every_steps
        if every is not None and (number + 1) % every == 0 and self._plan is not None:
            self.mixer.step(self.peers, self._plan, number)

    def _graft(self, epoch: int) -> None:
        record = self.mixer.apply(self.peers, self._plan, epoch)
        if record is not None:
            warn_of_sick_peers(record, self._sick)
            self.records.append((epoch, record))
            self._alphas = record.mean_coefficients.tolist()


def _without_teachers(batch: Batch) -> Batch:
    x, y, *weights = batch
    return (x, y.targets if isinstance(y, Taught) else y, *weights)


def _share(logs: list[Logs]) -> None:
    """The first peer's logs get everybody's, as `peer2_loss` and so on."""
    for k, own in enumerate(logs[1:], start=2):
        logs[0].update({f"peer{k}_{name}": value for name, value in own.items()})
