"""One `fit` of a GraftCallback: the ring's learners, their batches and their backup."""

import contextlib
import logging
import threading
from pathlib import Path
from typing import Any

import keras

from kgraft.engines.lockstep import Lockstep
from kgraft.errors import UserError
from kgraft.links.link import LeftOutError
from kgraft.training.callback_ring import RingOfFits
from kgraft.training.compile_copy import compile_as, must_compile
from kgraft.training.learners import Learner, check_optimizers, sources
from kgraft.training.peer_backup import PeerBackup
from kgraft.training.session import Session
from kgraft.training.teaching import Classrooms

_log = logging.getLogger("kgraft")


class CallbackRun:
    """One `fit` of a GraftCallback, from its beginning to its end or interruption.

    Args:
        model: what `fit` trains.
        session: the grafting of the ring.
        data: the peers' own, see `sources`.
        class_weight: of `data`.
        train_peers: whether peers learn here.
        backup_dir: where peers are backed up, or None.
        engine: how peers take their steps.
        read: batches of its own data that each peer has read in earlier fits, by its model's id.
        ring: the fits of other processes, joined, or None.
        epochs: what `fit` was called with.

    Attributes:
        session: the grafting of the ring.
        place: the model's place in the ring.
        learners: the peers that learn here.
        resumed: whether the peers are where the model is; no epoch has begun before.
        done_before: epochs of earlier fits, which this one goes on from.
        left_out: whether the other processes have gone on without this one.
        thread: the one that `fit` runs in.

    Raises:
        UserError: peers that do not match, cannot be compiled or share an optimizer.
    """

    def __init__(
        self,
        model: keras.Model,
        session: Session,
        *,
        data: Any,
        class_weight: Any,
        train_peers: bool,
        backup_dir: Path | None,
        engine: str,
        read: dict[int, int],
        ring: RingOfFits | None,
        epochs: int,
    ) -> None:
        self.session, models = session, session.models
        self._ring, self._epochs, start = ring, epochs, session.link.here.start
        self.place = next(k for k, peer in enumerate(models) if peer is model)
        self.learners: list[Learner] = []
        self.lockstep = Lockstep(model)
        self.thread = threading.current_thread()
        self.resumed = self._prepared = self.left_out = False
        self.done_before = 0
        self.backup: PeerBackup | None = None
        self._backup_dir, self._own_data = backup_dir, data is not None
        others = [k for k in range(len(models)) if k != self.place]
        if session.link.count == 1:
            raise UserError("the ring holds only fit's model: add a peer, or another rank.")
        numbers = [start + k for k in others]
        self._built = session.check()
        if train_peers:
            for k, number in zip(others, numbers, strict=True):
                if must_compile(models[k], model):
                    compile_as(models[k], model, f"peer {number + 1}")
            check_optimizers(models)
            self.learners = [
                Learner(number, models[k], source, engine)
                for k, number, source in zip(
                    others, numbers, sources(data, numbers, class_weight), strict=True
                )
            ]
        if backup_dir is not None:
            self.backup = PeerBackup(backup_dir, [models[k] for k in others], [model])
        self._teaching = Classrooms(engine)
        self._share = self._shares_variables()
        for learner in self.learners:
            learner.read = read.get(id(learner.model))

    def begin(self) -> None:
        """Once, as soon as all peers are built: with the first epoch, or with its first batch."""
        link = self.session.link
        if self._built or self._prepared or link.returning:
            alike = self.learners and not self._own_data and len(link.here) == link.count
            self.session.begin(same_batches=bool(alike))

    def begin_epoch(self, epoch: int, steps: int | None) -> None:
        """Begin an epoch with the other processes, which may have gone on without this one.

        Args:
            epoch: its number in this `fit`.
            steps: how many it has, None where nobody knows.
        """
        session = self.session
        if not (self.left_out or session.link.returning):
            try:
                session.begin_epoch(self.done_before + epoch)
            except LeftOutError:
                self.left_out = True
        if self.left_out or session.link.returning:
            self.done_before = session.rejoin(steps) - epoch
            self.left_out = False
            session.begin_epoch(self.done_before + epoch)
        if self._ring is not None:
            self._ring.begun(self.done_before + epoch)

    def end_of_epoch(self) -> None:
        """Graft, unless the other processes have gone on without this one; see `Session`."""
        if not self.left_out:
            try:
                self.session.end_of_epoch()
            except LeftOutError:
                self._be_left_out()

    def anywhere(self, value: bool) -> bool:
        """Whether it is so in any process of the ring.

        Args:
            value: whether it is so here.
        """
        if not self.left_out:
            try:
                return self.session.link.anywhere(value)
            except LeftOutError:
                self._be_left_out()
        return value

    def end(self) -> None:
        """Leave the peers as `fit` leaves its model: finished, averaged, ready for use."""
        trained = self.resumed or self._epochs > 0
        if not self.resumed:  # killed after its last epoch, and started again
            self.resume(self._epochs)
            self.begin()
        # the model's averages are fit's to place, and others may have restored it since
        with contextlib.suppress(LeftOutError):
            self.session.end([own.model for own in self.learners] if trained else ())
        if self.backup is not None:
            self.backup.clear()

    def close(self) -> dict[int, int]:
        """Let go of the model and of the peers' data.

        Returns:
            `read` for the next fit of the ring.
        """
        self.lockstep.disarm()
        for learner in self.learners:
            learner.close()
        return {id(own.model): own.read for own in self.learners if own.read is not None}

    def resume(self, epoch: int) -> None:
        """Bring the peers to where the model is when `fit` begins at a later epoch.

        Args:
            epoch: the first one, counted from 0.

        Raises:
            UserError: the fits of other processes do not begin with it.
        """
        kept = self._restored(epoch)
        if self._ring is not None and not self.session.link.returning:
            said = {"epochs= of fit": self._epochs, "the first epoch of fit": epoch + 1}
            if self.backup is not None:
                said["whether backup_dir= holds that epoch"] = kept
            first = self.done_before + epoch
            self._built = self._ring.begin(said, first, built=self._built)

    def _restored(self, epoch: int) -> bool:
        self.resumed = True
        for learner in self.learners:
            learner.first_pass = epoch
        if epoch == 0:
            self.done_before = self.session.epochs_done
            return False
        kept = None if self.backup is None else self.backup.restore(epoch)
        if kept is not None:
            self.session.restore(kept["session"])
            self.session.records[:] = kept["records"]
            for learner, read in zip(self.learners, kept["read"], strict=False):
                learner.read = read
        elif any(_is_untrained(learner.model) for learner in self.learners):
            _log.warning(
                "fit resumes at epoch %d but the peers were never trained%s",
                epoch + 1,
                ": GraftCallback(backup_dir=...) would have kept them."
                if self.backup is None
                else f", and {self._backup_dir} holds no backup of them for this epoch.",
            )
        return kept is not None

    def save(self, epoch: int) -> None:
        """Back the peers up, where that is asked for.

        Args:
            epoch: number of epochs done.
        """
        if self.backup is not None:
            read = [learner.read or 0 for learner in self.learners]
            progress = {"session": self.session.save(), "read": read}
            self.backup.save(epoch, progress, self.session.records)

    def learn(self) -> None:
        """Every peer learns the batches that the model has been fed."""
        batches = self.lockstep.take()
        if not batches:
            return
        looked_at = self._share or not self._prepared
        with self.lockstep.readable() if looked_at else contextlib.nullcontext():
            if not self._prepared:
                for learner in self.learners:
                    learner.prepare(batches[0])
                self._prepared = True
                self.begin()
            for batch in batches:
                for learner in self.learners:
                    learner.learn(batch, self._teaching)
                self.session.end_of_step()

    def check_fed(self) -> None:
        """Refuse a training whose batches do not reach the peers.

        Raises:
            UserError: no batch has come by in a whole epoch.
        """
        if self.learners and not self._prepared:
            raise UserError(
                "no batch of this training has reached the peers: GraftCallback belongs to "
                "Model.fit; GraftingFit trains and grafts its peers itself."
            )

    def _be_left_out(self) -> None:
        self.left_out = True
        _log.warning("the other ranks have gone on without this one, until the next epoch begins")

    def _shares_variables(self) -> bool:
        own = {id(variable) for variable in self.lockstep.model.variables}
        return any(id(v) in own for learner in self.learners for v in learner.model.variables)


def _is_untrained(model: keras.Model) -> bool:
    optimizer = model.optimizer
    return optimizer is not None and int(keras.ops.convert_to_numpy(optimizer.iterations)) == 0
