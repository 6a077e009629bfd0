"""GraftingFit's loop: epochs of K peers, their graftings, and what a fit leaves to the next."""

import contextlib
import logging
from collections.abc import Callable, Sequence

import keras

from kgraft.engines.choose import Engine
from kgraft.engines.eager import Logs, Stepper
from kgraft.grafting.graft import warn_of_sick_peers
from kgraft.grafting.mixer import Mixer, State
from kgraft.grafting.peers import Moment, Peers
from kgraft.grafting.ring import GraftRecord
from kgraft.training.batches import Feed, first_batch, side_by_side
from kgraft.training.distiller import untaught
from kgraft.training.fit_arguments import check_targets
from kgraft.training.learning import Learning
from kgraft.training.watchers import ends_epochs, evaluate, restored_epoch

_log = logging.getLogger("kgraft")

Watchers = Sequence[keras.callbacks.CallbackList]


class PeerLoop:
    """Trains K peers epoch by epoch and grafts them, over one call of `fit` or several.

    Args:
        learning: how they learn, and their own engine, by which they are validated.
        mixer: what is done to the peers' weights, and when.

    Attributes:
        peers: the K models.
        mixer: what is done to their weights, and when.
        records: what each grafting measured and did, as `(epoch, GraftRecord)`.
        epochs_done: whole epochs so far; the next one of the run has this number.
    """

    def __init__(self, learning: Learning, mixer: Mixer) -> None:
        self.peers = learning.peers
        self.records: list[tuple[int, GraftRecord]] = []
        self.epochs_done = 0
        self._students, self._learning = learning.students.steppers, learning
        self.mixer = mixer
        if all(peer.built for peer in self.peers):
            mixer.plan(self.peers)
        self._mixed: Peers | None = None
        self._state: State | None = None
        self._pending: int | None = None  # the epoch whose grafting is put off to the next one
        self._alphas = [1.0 for _ in self.peers]
        self._sick: set[int] = set()
        self._steps_taken = 0

    def prepare(self, feed: Feed) -> Engine:
        """Build what is not built, from a batch of a feed, and settle what takes the steps."""
        learning = self._learning
        if not (_built(self._students) and _built(learning.engine().steppers)):
            batch = first_batch(feed)
            check_targets(self.peers, *untaught(batch)[:2], name="x")
            for student in self._students:
                student.build(untaught(batch))
            steppers = learning.engine().steppers
            for stepper, own in zip(steppers, learning.given([batch] * len(steppers)), strict=True):
                stepper.build(own)
        engine = learning.engine()
        engine.choose()
        return engine

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
        mixed = Peers(self.peers, self.mixer.plan(self.peers))  # what is frozen may have changed
        self._mixed = mixed
        logs: list[Logs] = [{} for _ in self.peers]
        self._state = self.mixer.init(mixed, self._state)
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
            self._state = self.mixer.finish(mixed, self._state)
        for watcher, own in zip(watchers, logs, strict=True):
            watcher.on_train_end(own)

    def _resume(self, epoch: int, watchers: Watchers) -> None:
        """Go on from weights that were saved after so many epochs."""
        _log.info("all peers are restored: the training goes on with epoch %d", epoch + 1)
        self.epochs_done = epoch
        put_off = self.mixer.evaluate == "before" and self.mixer.due(Moment(epoch - 1))
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
        logs = self._train_epoch(feeds, watchers, number)
        if self.mixer.due(Moment(number)):
            if self.mixer.evaluate == "after":
                self._graft(number)
            else:
                self._pending = number
        self.epochs_done = number + 1
        return [{**own, "alpha": alpha} for own, alpha in zip(logs, self._alphas, strict=True)]

    def _validate(self, validation: Feed, watchers: Watchers, logs: list[Logs]) -> None:
        for student, watcher, own in zip(self._students, watchers, logs, strict=True):
            results = evaluate(student, validation, watcher)
            own.update((f"val_{name}", value) for name, value in results.items())

    def _train_epoch(self, feeds: Sequence[Feed], watchers: Watchers, number: int) -> list[Logs]:
        learning, engine = self._learning, self._learning.engine()
        engine.begin_epoch()
        try:
            with contextlib.closing(side_by_side(feeds, number)) as drawn:
                for step, batches in enumerate(drawn):
                    for watcher in watchers:
                        watcher.on_train_batch_begin(step)
                    logs_of_all = learning.of_each(engine.step(learning.given(batches)))
                    self._mix(number, step, feeds[0].steps)
                    for watcher, logs in zip(watchers, logs_of_all, strict=True):
                        watcher.on_train_batch_end(step, logs)
                    if any(peer.stop_training for peer in self.peers):
                        break
        finally:
            engine.end_epoch()
        return learning.of_each(engine.logs())

    def _mix(self, epoch: int, step: int, steps: int | None) -> None:
        """What the mixer does between steps."""
        number = self._steps_taken if steps is None else epoch * steps + step
        self._steps_taken = number + 1
        moment = Moment(epoch, number, ends_epoch=False)
        if self.mixer.between_steps and self.mixer.due(moment):
            self._apply(moment)

    def _apply(self, moment: Moment) -> GraftRecord | None:
        assert self._mixed is not None and self._state is not None
        self._state, record = self.mixer.apply(self._mixed, self._state, moment)
        return record

    def _graft(self, epoch: int) -> None:
        record = self._apply(Moment(epoch, self._steps_taken - 1))
        if record is not None:
            warn_of_sick_peers(record, self._sick)
            self.records.append((epoch, record))
            self._alphas = record.mean_coefficients.tolist()


def _built(steppers: Sequence[Stepper]) -> bool:
    return all(own.model.built and own.model.optimizer.built for own in steppers)


def _share(logs: list[Logs]) -> None:
    """The first peer's logs get everybody's, as `peer2_loss` and so on."""
    for k, own in enumerate(logs[1:], start=2):
        logs[0].update({f"peer{k}_{name}": value for name, value in own.items()})
