"""GraftCallback: grafting in a `model.fit` that exists already."""

import dataclasses
import inspect
import logging
import threading
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import keras

from kgraft.engines.choose import check
from kgraft.engines.lockstep import Lockstep
from kgraft.errors import UserError
from kgraft.grafting.graft import Graft, warn_of_sick_peers
from kgraft.grafting.mixer import Mixer
from kgraft.grafting.plan import GraftPlan
from kgraft.grafting.ring import GraftRecord
from kgraft.training.distiller import student_of
from kgraft.training.graft_schedule import GraftSchedule
from kgraft.training.learners import Learner, check_optimizers, compile_as, sources
from kgraft.training.peer_backup import PeerBackup
from kgraft.training.teaching import Classrooms

_log = logging.getLogger("kgraft")


class GraftCallback(keras.callbacks.Callback):
    """Trains peers beside the model that `fit` trains, and grafts them at every epoch's end.

    The ring is `[model, *peers]`: the model receives from the last peer, each peer from the one
    before it. A model that is itself in `peers` keeps its place there. Of a `Distiller` the
    student is grafted.

    With no more said, peers learn in lock-step: from the very batches that `fit` feeds the model,
    each with its own optimizer and randomness, exactly as `train_on_batch` would. Same batches
    means same order, the weakest setting in the papers; `data=` gives every peer its own.

    Grafting comes before the epoch's validation, so that a logged metric belongs to the weights
    that a `ModelCheckpoint` saves. Place the callback first in the list: callbacks before it see an
    epoch without its grafting where there is no validation, and without its logs. These are
    `alpha`, the model's mean coefficient (1 in an epoch without grafting), and `peerK_loss` and so
    on, the training metrics of the peer at place K of the ring, counted from 1. Schedulers and
    early stopping act on the model: give peers their own learning rate schedule when they are
    compiled.

    An interrupted `fit` leaves every model usable, and peers move in no other `fit` than one with
    this callback.

    Cost: a training step and the memory of a model for each peer; on jax the peers' steps hold
    their weights twice, because they are not donated. A grafting costs far less than a step.

    Args:
        peers: models of the model's architecture, at least one besides the model. One that is not
            compiled copies the model's compile config, with an optimizer of its own; one that is
            not built is built from the first batch.
        graft: what a grafting does; the entropy ring by default, or another `Mixer` that acts at
            the end of an epoch.
        data: batches for the peers, one a step, begun anew when they are exhausted. Either a list
            with one data set for every peer, or one that all iterate for themselves: a tuple of
            arrays `(x, y)` or `(x, y, sample_weight)`, which each peer reads in a seeded order of
            its own in batches as large as the first of `fit`, a `tf.data.Dataset`, a `PyDataset`, a
            torch `DataLoader`. By default the batches of `fit`.
        train_peers: False leaves the training of the peers to others; they are grafted only.
        every: graft at the end of every n-th epoch.
        epochs_grafted: graft at the end of the first n epochs only; None for all.
        evaluate: `"after"` the grafting, or `"before"`, the authors' order: the grafting is done
            when the next epoch begins, so that whatever is saved at an epoch's end are the
            weights that were validated; after the last epoch nothing is grafted. `alpha` is then
            logged in the epoch that starts from the grafted weights.
        backup_dir: directory for the peers' weights and optimizers, saved at every epoch's end and
            restored when `fit` resumes there, as `BackupAndRestore` does for the model; deleted
            when `fit` has ended. May be the directory that `BackupAndRestore` has.
        engine: how the peers take their steps, as in `GraftingFit`; the model's own are `fit`'s.

    Attributes:
        records: what each grafting measured and did, as `(epoch, GraftRecord)`.

    Raises:
        UserError: no peers, a peer given twice, an option out of range; when `fit` begins, also
            peers that do not match the model (names the first difference), that share an optimizer
            or cannot be compiled as the model is, and a `data` list of another length.

    Example:
        ```python
        peers = [keras.models.clone_model(model) for _ in range(3)]
        grafting = kgraft.GraftCallback(peers, data=(x, y))
        model.fit(x, y, epochs=200, validation_data=(xv, yv), callbacks=[grafting])
        ```

    Source: Meng et al., CVPR 2020, Alg. 1.
    """

    def __init__(
        self,
        peers: Sequence[keras.Model],
        *,
        graft: Mixer | None = None,
        data: Any = None,
        train_peers: bool = True,
        every: int = 1,
        epochs_grafted: int | None = None,
        evaluate: Literal["after", "before"] = "after",
        backup_dir: str | PathLike[str] | None = None,
        engine: Literal["auto", "eager", "compiled"] = "auto",
    ) -> None:
        super().__init__()
        self.peers = _checked(peers)
        self.graft: Mixer = graft or Graft()
        if self.graft.every_steps is not None:
            raise UserError(
                f"{type(self.graft).__name__} acts between steps, where fit owns the model's "
                "weights: use GraftingFit."
            )
        self.data = data
        self.train_peers = train_peers
        self.schedule = GraftSchedule(every, epochs_grafted, evaluate)
        self.backup_dir = None if backup_dir is None else Path(backup_dir)
        self.engine = engine
        check(engine)
        self.records: list[tuple[int, GraftRecord]] = []
        if data is not None and not train_peers:
            raise UserError(
                "data= is for peers that learn here; train_peers=False leaves them out."
            )
        self._run: _Run | None = None
        self._elsewhere = False
        self._told: set[int] = set()
        self._warned = False

    def get_config(self) -> dict[str, Any]:
        """What was set, JSON-able; models and data by their names only."""
        return {
            "peers": [peer.name for peer in self.peers],
            "graft": _described(self.graft),
            "data": _named(self.data),
            "train_peers": self.train_peers,
            "every": self.schedule.every,
            "epochs_grafted": self.schedule.epochs_grafted,
            "evaluate": self.schedule.evaluate,
            "backup_dir": None if self.backup_dir is None else str(self.backup_dir),
            "engine": self.engine,
        }

    def set_model(self, model: keras.Model) -> None:
        """Called by every new list of callbacks; only a `fit` goes on with `on_train_begin`."""
        super().set_model(model)
        self._elsewhere = True

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Compile and compare the peers."""
        self._elsewhere = False
        if self._run is not None:
            self._run.close()
        self._run = _Run(self, self._model)
        if not self._warned:
            self._warned = self._run.warn_of_twins()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Resume the peers in the first epoch; graft what `evaluate="before"` has put off."""
        run = self._running
        if run.epoch is None:
            run.resume(epoch)
        run.epoch, run.grafted, run.alpha = epoch, False, 1.0
        if run.due is not None:
            self._graft(run, run.due)
            run.due = None
        for learner in run.learners:
            learner.stepper.begin_epoch()

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Watch the step that comes."""
        self._running.learn()
        self._running.lockstep.arm()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Let the peers learn what the model has just learnt.

        Given `callbacks=GraftCallback(...)` instead of a list, Keras calls this from a thread of
        its own; the peers then learn when the next batch begins.
        """
        if threading.current_thread() is self._running.thread:
            self._running.learn()

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Graft before the epoch's validation; an `evaluate` of somebody else is none."""
        run = self._run
        if self._elsewhere or run is None or run.epoch is None:
            return
        run.learn()
        if self.schedule.evaluate == "after" and self._is_due(run):
            self._graft(run, run.epoch)

    def on_test_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Make the validation safe to interrupt."""
        if self._run is not None and not self._elsewhere:
            self._run.lockstep.guard()

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        """Whatever comes next belongs to `fit` again."""
        self._elsewhere = False

    def on_predict_end(self, logs: dict[str, Any] | None = None) -> None:
        """Whatever comes next belongs to `fit` again."""
        self._elsewhere = False

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Graft where there was no validation; log and back up."""
        run = self._running
        run.learn()
        if self._is_due(run):
            if self.schedule.evaluate == "after":
                self._graft(run, epoch)
            else:
                run.due = epoch
        if logs is not None:
            logs["alpha"] = run.alpha
        for learner in run.learners:
            learner.stepper.end_epoch()
            if logs is not None:
                for name, value in learner.stepper.logs().items():
                    logs[f"{learner.name}_{name}"] = value
        if run.backup is not None:
            run.backup.save(epoch + 1, run.due)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Forget what was put off, and the backup."""
        self._running.close()
        if self._running.backup is not None:
            self._running.backup.clear()
        self._run = None

    @property
    def _running(self) -> "_Run":
        if self._run is None:
            raise RuntimeError(
                "GraftCallback is called outside of fit: on_train_begin comes first."
            )
        return self._run

    def _is_due(self, run: "_Run") -> bool:
        return run.epoch is not None and not run.grafted and self.schedule.due(run.epoch)

    def _graft(self, run: "_Run", epoch: int) -> None:
        run.plan = run.plan or self.graft.check(run.students)
        record = self.graft.apply(run.students, run.plan, epoch)
        run.grafted = run.grafted or epoch == run.epoch
        if record is None:
            return
        warn_of_sick_peers(record, self._told)
        self.records.append((epoch, record))
        run.alpha = float(record.mean_coefficients[run.place])


class _Run:
    """One `fit` of a GraftCallback, from its beginning to its end or interruption."""

    def __init__(self, callback: GraftCallback, model: keras.Model) -> None:
        peers = callback.peers
        self.ring = peers if any(peer is model for peer in peers) else [model, *peers]
        self.place = next(k for k, peer in enumerate(self.ring) if peer is model)
        self.lockstep = Lockstep(model)
        self.thread = threading.current_thread()
        self.epoch: int | None = None
        self.grafted = False
        self.due: int | None = None
        self.alpha = 1.0
        self.students = [student_of(peer) for peer in self.ring]
        self.plan: GraftPlan | None = None
        self.learners: list[Learner] = []
        self.backup: PeerBackup | None = None
        self._callback = callback
        self._prepared = False
        others = [k for k in range(len(self.ring)) if k != self.place]
        if not others:
            raise UserError("peers holds only the model that fit trains: add at least one other.")
        if all(student.weights for student in self.students):
            self.plan = callback.graft.check(self.students)
        if callback.train_peers:
            for k in others:
                if not self.ring[k].compiled:
                    compile_as(self.ring[k], model, f"peer {k + 1}")
            check_optimizers(self.ring)
            self.learners = [
                Learner(k, self.ring[k], source, callback.engine)
                for k, source in zip(others, sources(callback.data, len(others)), strict=True)
            ]
        if callback.backup_dir is not None:
            self.backup = PeerBackup(callback.backup_dir, [self.ring[k] for k in others], [model])
        self._teaching = Classrooms(callback.engine)
        self._share = self._shares_variables()

    def close(self) -> None:
        """Let go of the model and of the peers' data."""
        self.lockstep.disarm()
        for learner in self.learners:
            learner.close()

    def warn_of_twins(self) -> bool:
        """Say so when both of two peers see the same batches with the same learning rate."""
        if len(self.ring) != 2 or not self.learners or self._callback.data is not None:
            return False
        first, second = (_learning_rate(peer) for peer in self.ring)
        if first != second:
            return False
        _log.warning(
            "2 peers learn from the same batches with the same learning rate and are equal right "
            "after each grafting, the weakest setting of the papers: GraftCallback(data=...) gives "
            "the peer an order of its own."
        )
        return True

    def resume(self, epoch: int) -> None:
        """Bring the peers to where the model is when `fit` begins at a later epoch."""
        for learner in self.learners:
            learner.first_pass = epoch
        if epoch == 0:
            return
        if self.backup is not None and self.backup.holds(epoch):
            self.due = self.backup.restore(epoch)
        elif any(_steps(learner.model) == 0 for learner in self.learners):
            _log.warning(
                "fit resumes at epoch %d but the peers were never trained%s",
                epoch + 1,
                ": GraftCallback(backup_dir=...) would have kept them."
                if self.backup is None
                else f", and {self._callback.backup_dir} holds no backup of them for this epoch.",
            )

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
            self.plan = self.plan or self._callback.graft.check(self.students)
            self._prepared = True
        for batch in batches:
            for learner in self.learners:
                learner.learn(batch, self._teaching)

    def _shares_variables(self) -> bool:
        own = {id(variable) for variable in self.ring[self.place].variables}
        return any(id(v) in own for learner in self.learners for v in learner.model.variables)


def _checked(peers: Sequence[keras.Model]) -> list[keras.Model]:
    if isinstance(peers, keras.Model):
        raise UserError(f"peers is a model: pass a list, GraftCallback([{peers.name}]).")
    if not peers:
        raise UserError("no peers: GraftCallback needs at least one model besides fit's.")
    for k, peer in enumerate(peers):
        if not isinstance(peer, keras.Model):
            raise UserError(f"peers[{k}] is a {type(peer).__name__}: expected a keras.Model.")
        if any(peer is earlier for earlier in peers[:k]):
            raise UserError(f"peers holds {peer.name!r} twice: every peer must be its own model.")
    return list(peers)


def _learning_rate(model: keras.Model) -> float:
    return float(keras.ops.convert_to_numpy(model.optimizer.learning_rate))


def _steps(model: keras.Model) -> int:
    return int(keras.ops.convert_to_numpy(model.optimizer.iterations))


def _described(mixer: Mixer) -> dict[str, Any]:
    settings: dict[str, Any] = {"mixer": type(mixer).__name__}
    if dataclasses.is_dataclass(mixer):
        settings |= {f.name: getattr(mixer, f.name) for f in dataclasses.fields(mixer) if f.init}
    criterion: Any = settings.get("criterion", "")
    if dataclasses.is_dataclass(criterion) and not isinstance(criterion, type):
        settings["criterion"] = {
            "name": type(criterion).__name__,
            **{
                field.name: getattr(criterion, field.name)
                for field in dataclasses.fields(criterion)
            },
        }
    elif not isinstance(criterion, str):
        settings["criterion"] = _named(criterion)
    return settings


def _named(thing: Any) -> Any:
    if thing is None:
        return None
    if isinstance(thing, list):
        return [_named(part) for part in thing]
    return thing.__name__ if inspect.isfunction(thing) else type(thing).__name__
