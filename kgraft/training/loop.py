"""GraftingFit's loop: epochs of K peers."""

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kgraft.engines.backends.lazy import gathered
from kgraft.engines.engine import Engine
from kgraft.engines.replicas import Replicas, part_seeds, settle
from kgraft.engines.stepper import Stepper
from kgraft.engines.steps import Logs
from kgraft.links.link import Here, LeftOutError
from kgraft.training.batches import Feed, first_batch, side_by_side
from kgraft.training.distiller import untaught
from kgraft.training.fit_arguments import check_targets
from kgraft.training.learning import Learning
from kgraft.training.preflight import say_if_idle
from kgraft.training.saved_fit import SavedFit
from kgraft.training.session import Session
from kgraft.training.watchers import ends_epochs, evaluate, restored_epoch

_log = logging.getLogger("kgraft")


@dataclass(frozen=True)
class PeerLoop:
    """One `fit`: K peers trained epoch by epoch, and grafted.

    Attributes:
        learning: how the peers learn, and their own engine, by which they are validated.
        session: their grafting, which goes on over several fits.
        feeds: the peers' batches.
        watchers: one list of callbacks a peer.
        validation: what every peer is evaluated on.
        validated: which epochs of this fit end with that.
        saved: where the fit is saved, None for nowhere.
        replicas: what averages the peers' gradients over several processes.
    """

    learning: Learning
    session: Session
    feeds: Sequence[Feed]
    watchers: Sequence[keras.callbacks.CallbackList]
    validation: Feed | None
    validated: Callable[[int], bool]
    saved: SavedFit | None = None
    replicas: Replicas | None = None

    def prepare(self) -> Engine:
        """Build what is not built, from a batch, and settle what takes the steps."""
        learning, students = self.learning, self.learning.students.steppers
        if not (_built(students) and _built(learning.engine().steppers)):
            batch = first_batch(self.feeds[0])
            check_targets(learning.peers, *untaught(batch)[:2], name="x")
            for student in students:
                student.build(untaught(batch))
            steppers = learning.engine().steppers
            for stepper, own in zip(steppers, learning.given([batch] * len(steppers)), strict=True):
                stepper.build(gathered(own))
        engine = learning.engine()
        engine.choose()
        return engine

    def run(self, epochs: range, *, same_batches: bool = False) -> None:
        """Train some epochs.

        Args:
            epochs: what callbacks are told; the session's own numbers go on over all fits.
            same_batches: whether the feeds are one.

        Raises:
            UserError: the peers do not match, or callbacks have restored them at different epochs.
        """
        peers, session, watchers, trained = self.learning.peers, self.session, self.watchers, False
        for peer in peers:
            peer.stop_training, peer._initial_epoch = False, None
        logs: list[Logs] = [{} for _ in peers]
        session.check()
        if self.replicas is not None and session.part():
            part_seeds(peers, self.replicas.number)
        try:
            for watcher in watchers:
                watcher.on_train_begin()
            whole = epochs
            if self.saved is not None:
                epochs, logs = self.saved.begin(peers, [own.callbacks for own in watchers])
            if (restored := restored_epoch(peers)) is not None:
                _log.info(
                    "all peers are restored: the training goes on with epoch %d", restored + 1
                )
                session.resume(restored, before_grafting=ends_epochs(watchers))
                epochs = range(restored, epochs.stop)
            if self.replicas is not None:
                settle(peers, self.replicas)
            session.said["last epochs of fit"] = whole.stop
            session.begin(same_batches=same_batches, steps=self.feeds[0].steps)
            done = session.epochs_done
            if epochs == whole:  # else a part of the training, which has begun before
                say_if_idle(session.mixer, range(done, done + len(epochs)), self.feeds[0].steps)
            offset, epoch = session.epochs_done - epochs.start, epochs.start
            if session.link.returning:
                epoch = session.rejoin(self.feeds[0].steps) - offset
            while epoch < epochs.stop:
                try:
                    logs = self._epoch(epoch, offset + epoch)
                    for watcher, own in zip(watchers, logs, strict=True):
                        watcher.on_epoch_end(epoch, own)
                    ended = self._ended()
                except LeftOutError:
                    epoch = session.rejoin(self.feeds[0].steps) - offset
                    continue
                if self.saved is not None:
                    self.saved.end_of_epoch(epoch, logs, ended=ended)
                if ended:
                    break
                epoch += 1
            trained = epochs.stop > 0
        finally:
            session.end(peers if trained else ())
        for watcher, own in zip(watchers, logs, strict=True):
            watcher.on_train_end(own)

    def _ended(self) -> bool:
        """Whether anybody, in whatever process, has stopped the training."""
        stopped = any(peer.stop_training for peer in self.learning.peers)
        return self.session.link.anywhere(stopped)

    def _epoch(self, epoch: int, number: int) -> list[Logs]:
        """Train one epoch, graft and validate; callbacks are told its number in this `fit`."""
        session = self.session
        session.begin_epoch(number, self.feeds[0].steps)
        for watcher in self.watchers:
            watcher.on_epoch_begin(epoch)
        logs = self._train_epoch(number)
        if self.replicas is not None:
            settle(self.learning.peers, self.replicas)
        session.end_of_epoch()
        logs = [{**own, "alpha": alpha} for own, alpha in zip(logs, session.alphas, strict=True)]
        if self.validation is not None and self.validated(epoch):
            students = self.learning.students.steppers
            for student, watcher, own in zip(students, self.watchers, logs, strict=True):
                results = evaluate(student, self.validation, watcher)
                own.update((f"val_{name}", value) for name, value in results.items())
        self._share(logs)
        return logs

    def _share(self, logs: list[Logs]) -> None:
        """The first peer's logs get everybody's, as `peer2_loss` and so on."""
        link = self.session.link
        if not isinstance(link, Here):
            logs[:] = [{name: _plain(value) for name, value in own.items()} for own in logs]
        everybody = link.gather_small(logs, opens=True)
        if 0 in link.here:
            others = (
                pair
                for r, own in everybody.items()
                for pair in zip(link.holds[r], own, strict=True)
            )
            for k, own in others:
                if k > 0:
                    logs[0].update({f"peer{k + 1}_{name}": value for name, value in own.items()})

    def _train_epoch(self, number: int) -> list[Logs]:
        learning, engine = self.learning, self.learning.engine()
        engine.begin_epoch()
        try:
            lazy = engine.takes_lazy_batches
            with contextlib.closing(side_by_side(self.feeds, number, lazy=lazy)) as drawn:
                for step, batches in enumerate(drawn):
                    for watcher in self.watchers:
                        watcher.on_train_batch_begin(step)
                    logs_of_all = learning.of_each(engine.step(learning.given(batches)))
                    self.session.end_of_step()
                    for watcher, logs in zip(self.watchers, logs_of_all, strict=True):
                        watcher.on_train_batch_end(step, logs)
                    stopped = any(peer.stop_training for peer in learning.peers)
                    if stopped and self.replicas is None:  # else the others would wait for a step
                        break
        finally:
            engine.end_epoch()
        return learning.of_each(engine.logs())


def _built(steppers: Sequence[Stepper]) -> bool:
    return all(own.model.built and own.model.optimizer.built for own in steppers)


def _plain(value: Any) -> Any:
    """A metric as it may be sent."""
    found = np.asarray(keras.ops.convert_to_numpy(value))
    return found if found.ndim else found.item()
