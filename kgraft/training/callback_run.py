"""One `fit` of a GraftCallback: the ring's learners, their batches and their backup."""

import contextlib
import logging
import threading
from pathlib import Path
from typing import Any

import keras

from kgraft.engines.lockstep import Lockstep
from kgraft.errors import UserError
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

    Attributes:
        session: the grafting of the ring.
        place: the model's place in the ring.
        learners: the peers that learn here.
        resumed: whether the peers are where the model is; no epoch has begun before.
        done_before: epochs of earlier fits, which this one goes on from.
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
    ) -> None:
        self.session, ring = session, session.models
        self.place = next(k for k, peer in enumerate(ring) if peer is model)
        self.learners: list[Learner] = []
        self.lockstep = Lockstep(model)
        self.thread = threading.current_thread()
        self.resumed = self._prepared = False
        self.done_before = 0
        self.backup: PeerBackup | None = None
        self._backup_dir, self._own_data = backup_dir, data is not None
        others = [k for k in range(len(ring)) if k != self.place]
        if not others:
            raise UserError("peers holds only the model that fit trains: add at least one other.")
        self._built = session.check()
        if train_peers:
            for k in others:
                if must_compile(ring[k], model):
                    compile_as(ring[k], model, f"peer {k + 1}")
            check_optimizers(ring)
            self.learners = [
                Learner(k, ring[k], source, engine)
                for k, source in zip(others, sources(data, others, class_weight), strict=True)
            ]
        if backup_dir is not None:
            self.backup = PeerBackup(backup_dir, [ring[k] for k in others], [model])
        self._teaching = Classrooms(engine)
        self._share = self._shares_variables()
        for learner in self.learners:
            learner.read = read.get(id(learner.model))

    def begin(self) -> None:
        """Once, as soon as all peers are built: with the first epoch, or with its first batch."""
        if self._built or self._prepared:
            self.session.begin(same_batches=bool(self.learners) and not self._own_data)

    def end(self, epochs: int) -> None:
        """Leave the peers as `fit` leaves its model: finished, averaged, ready for use.

        Args:
            epochs: what `fit` was called with.
        """
        trained = self.resumed or epochs > 0
        if not self.resumed:  # killed after its last epoch, and started again
            self.resume(epochs)
            self.begin()
        # the model's averages are fit's to place, and others may have restored it since
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
        """
        self.resumed = True
        for learner in self.learners:
            learner.first_pass = epoch
        if epoch == 0:
            self.done_before = self.session.epochs_done
            return
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

    def _shares_variables(self) -> bool:
        own = {id(variable) for variable in self.lockstep.model.variables}
        return any(id(v) in own for learner in self.learners for v in learner.model.variables)


def _is_untrained(model: keras.Model) -> bool:
    optimizer = model.optimizer
    return optimizer is not None and int(keras.ops.convert_to_numpy(optimizer.iterations)) == 0
