"""One `fit` of a GraftCallback: the ring, its learners, and what stays between two fits."""

import logging
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras

from kgraft.engines.lockstep import Lockstep
from kgraft.errors import UserError
from kgraft.grafting.mixer import Mixer
from kgraft.grafting.plan import GraftPlan
from kgraft.grafting.ring import GraftRecord
from kgraft.keras_private import flat_layers
from kgraft.training.compile_copy import compile_as, must_compile
from kgraft.training.distiller import student_of
from kgraft.training.learners import Learner, check_optimizers, sources
from kgraft.training.peer_backup import PeerBackup, Progress
from kgraft.training.preflight import learning_rates, preflight
from kgraft.training.teaching import Classrooms

_log = logging.getLogger("kgraft")


@dataclass(frozen=True)
class Carried:
    """What a fit leaves to the next one of the same ring.

    Attributes:
        ring: ids of its models, in order.
        read: batches of its own data that each peer has read, by the id of its model.
        due: epoch whose grafting is put off to the next epoch's beginning.
    """

    ring: tuple[int, ...] = ()
    read: dict[int, int] = field(default_factory=dict)
    due: int | None = None


class CallbackRun:
    """One `fit` of a GraftCallback, from its beginning to its end or interruption.

    Args:
        model: what `fit` trains.
        peers: as given to the callback.
        graft: what a grafting does.
        data: the peers' own, see `sources`.
        class_weight: of `data`.
        train_peers: whether peers learn here.
        backup_dir: where peers are backed up, or None.
        engine: how peers take their steps.
        carried: what an earlier fit of the callback has left.

    Attributes:
        ring: all models, in order.
        place: the model's place in it.
        students: the models that are grafted.
        learners: the peers that learn here.
        plan: what all have in common, as soon as all are built.
        epoch: the one that is trained, None before the first.
        grafted: whether this epoch has been grafted.
        due: epoch whose grafting is put off.
        alpha: the model's mean coefficient in this epoch, 1 without grafting.
        thread: the one that `fit` runs in.

    Raises:
        UserError: peers that do not match, cannot be compiled or share an optimizer.
    """

    def __init__(
        self,
        model: keras.Model,
        peers: list[keras.Model],
        *,
        graft: Mixer,
        data: Any,
        class_weight: Any,
        train_peers: bool,
        backup_dir: Path | None,
        engine: str,
        carried: Carried,
    ) -> None:
        self.ring = peers if any(peer is model for peer in peers) else [model, *peers]
        self.place = next(k for k, peer in enumerate(self.ring) if peer is model)
        self.students = [student_of(peer) for peer in self.ring]
        self.plan: GraftPlan | None = None
        self.learners: list[Learner] = []
        self.lockstep = Lockstep(model)
        self.thread = threading.current_thread()
        self.epoch: int | None = None
        self.grafted = False
        self.due: int | None = None
        self.alpha = 1.0
        self.backup: PeerBackup | None = None
        self._graft, self._backup_dir, self._own_data = graft, backup_dir, data is not None
        self._begun = self._prepared = False
        others = [k for k in range(len(self.ring)) if k != self.place]
        if not others:
            raise UserError("peers holds only the model that fit trains: add at least one other.")
        if self._is_built():
            self.plan = graft.check(self.students)
        if train_peers:
            for k in others:
                if must_compile(self.ring[k], model):
                    compile_as(self.ring[k], model, f"peer {k + 1}")
            check_optimizers(self.ring)
            self.learners = [
                Learner(k, self.ring[k], source, engine)
                for k, source in zip(others, sources(data, others, class_weight), strict=True)
            ]
        if backup_dir is not None:
            self.backup = PeerBackup(backup_dir, [self.ring[k] for k in others], [model])
        self._teaching = Classrooms(engine)
        self._share = self._shares_variables()
        if carried.ring == tuple(map(id, self.ring)):
            self.due = carried.due
            for learner in self.learners:
                learner.read = carried.read.get(id(learner.model))

    def begin(self) -> None:
        """Once, when all peers are built: the mixer begins, and the log gets a line a peer."""
        if self._begun or not self._is_built():
            return
        self._begun = True
        self.plan = self.plan or self._graft.check(self.students)
        self._graft.begin(self.students)
        preflight(self.ring)

    def end(self) -> None:
        """Leave the peers as `fit` leaves its model: finished, averaged, ready for use."""
        for learner in self.learners:
            learner.finalize()
        if self._begun and self.plan is not None:
            self._graft.end(self.students, self.plan)

    def close(self) -> Carried:
        """Let go of the model and of the peers' data.

        Returns:
            What the next fit goes on from.
        """
        self.lockstep.disarm()
        for learner in self.learners:
            learner.close()
        read = {id(own.model): own.read for own in self.learners if own.read is not None}
        return Carried(tuple(map(id, self.ring)), read, self.due)

    def graft(self, epoch: int) -> GraftRecord | None:
        """Graft what belongs to the end of an epoch.

        Args:
            epoch: that epoch, counted from 0.

        Returns:
            What was done.
        """
        self.begin()
        self.plan = self.plan or self._graft.check(self.students)
        record = self._graft.apply(self.students, self.plan, epoch)
        self.grafted = self.grafted or epoch == self.epoch
        if record is not None:
            self.alpha = float(record.mean_coefficients[self.place])
        return record

    def warn_of_twins(self) -> bool:
        """Say so when both of two peers see the same batches with the same learning rate."""
        if len(self.ring) != 2 or not self.learners or self._own_data:
            return False
        first, second = learning_rates(self.ring)
        if first != second:
            return False
        _log.warning(
            "2 peers learn from the same batches with the same learning rate and are equal right "
            "after each grafting, the weakest setting of the papers: GraftCallback(data=...) gives "
            "the peer an order of its own."
        )
        return True

    def resume(self, epoch: int) -> None:
        """Bring the peers to where the model is when `fit` begins at a later epoch.

        Args:
            epoch: the first one, counted from 0.
        """
        for learner in self.learners:
            learner.first_pass = epoch
        if epoch == 0:
            return
        if self.backup is not None and self.backup.holds(epoch):
            progress = self.backup.restore(epoch)
            self.due = progress.due
            for learner, read in zip(self.learners, progress.read, strict=False):
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
            read = tuple(learner.read or 0 for learner in self.learners)
            self.backup.save(epoch, Progress(self.due, read))

    def learn(self) -> None:
        """Every peer learns the batches that the model has been fed."""
        batches = self.lockstep.take()
        if not batches:
            return
        if self._share or not self._prepared:
            self.lockstep.settle()
        if not self._prepared:
            for learner in self.learners:
                learner.prepare(batches[0])
            self._prepared = True
            self.begin()
        for batch in batches:
            for learner in self.learners:
                learner.learn(batch, self._teaching)

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

    def _is_built(self) -> bool:
        """Whether every student has all its weights: a built backbone may have an unbuilt head.

        A layer that is never called is never built, so that the first batch settles it too.
        """
        return all(
            student.weights
            and (self._prepared or all(layer.built for layer in flat_layers(student)))
            for student in self.students
        )

    def _shares_variables(self) -> bool:
        own = {id(variable) for variable in self.ring[self.place].variables}
        return any(id(v) in own for learner in self.learners for v in learner.model.variables)


def _is_untrained(model: keras.Model) -> bool:
    optimizer = model.optimizer
    return optimizer is not None and int(keras.ops.convert_to_numpy(optimizer.iterations)) == 0
