"""GraftCallback: grafting in a `model.fit` that exists already."""

import inspect
import logging
import threading
from collections.abc import Callable, Iterable
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import keras

from kgraft.engines.engine import check
from kgraft.errors import UserError, told
from kgraft.grafting.mixer import Mixer
from kgraft.grafting.ring import GraftRecord
from kgraft.links.ring_link import RingLink
from kgraft.settings import argument
from kgraft.training.callback_arguments import check_data, checked_ring
from kgraft.training.callback_ring import RingOfFits, StopTogether
from kgraft.training.callback_run import CallbackRun
from kgraft.training.fit_arguments import checked_mixer
from kgraft.training.mutual import Mutual
from kgraft.training.preflight import say_if_idle
from kgraft.training.session import Session

_log = logging.getLogger("kgraft")


class GraftCallback(keras.callbacks.Callback):
    """Trains peers beside the model that `fit` trains, and grafts them at every epoch's end.

    The ring is `[model, *peers]`: the model receives from the last peer, each peer from the one
    before it. A model that is itself in `peers` keeps its place there. Of a `Distiller` the
    student is grafted.

    With no more said, peers learn in lock-step: from the very batches that `fit` feeds the model,
    each with its own optimizer and randomness, exactly as a `fit` of its own would. Same batches
    means same order, the weakest setting in the papers; `data=` gives every peer its own.

    Grafting comes before the epoch's validation, so that a logged metric belongs to the weights
    that a `ModelCheckpoint` saves. Place the callback first in the list: callbacks before it see an
    epoch without its grafting where there is no validation, and without its logs; a
    `BackupAndRestore` before it is warned of. The logs are
    `alpha`, the model's mean coefficient (1 in an epoch without grafting), and `peerK_loss` and so
    on, the training metrics of the peer at place K of the ring, counted from 1. Schedulers and
    early stopping act on the model: give peers their own learning rate schedule when they are
    compiled.

    When a `fit` begins, the log has a line for each model of the ring: optimizer, learning rate,
    loss, weights, in capitals what differs from the first one's. When it has ended, peers whose
    optimizer averages weights (`use_ema`) have the averages, as `fit`'s model has; they are grafted
    as the weights are.

    `fit` may be called epoch by epoch with the same callback: epochs are counted over all calls
    (`initial_epoch`, unless 0, sets the count), in `records` and in the mixer's schedule, the peers
    read their data on, and a grafting that was put off is done. An interrupted `fit` leaves every
    model usable, and peers move in no other `fit` than one with this callback.

    With `GraftCallback(kgraft.RingLink())` the ring is made of the models of several processes,
    each of which runs its own `fit`, under torchrun or `jax.distributed`: of every rank's
    `[model, *peers]`, in the order of the ranks. Give each a seed and data, or an order of them, of
    its own: `link.rank` says which one this is. All train the same number of epochs, of as many
    steps as each has; where `stop_training` is set on one, e.g. by EarlyStopping, all end with that
    epoch. Whatever writes files needs a name of its own on every rank. A lost rank ends all with an
    error that names it, or is left out (`on_lost_peer="skip"`) until an epoch in which it is back.

    Cost: a training step and the memory of a model for each peer; on jax the peers' steps hold
    their weights twice, because they are not donated. A grafting costs far less than a step.

    Args:
        peers: models of the model's architecture, at least one besides the model. One that is not
            compiled is compiled exactly as the model is, with an optimizer and metrics of its own,
            and anew when the model's `compile` is called between two fits; what cannot be copied
            exactly is refused. One that is compiled keeps its own optimizer, whatever becomes of
            the model's: so does a `keras.models.clone_model` of a compiled model, which Keras 3.15
            compiles too; clone before `compile` for peers that follow the model. One that is not
            built is built from the first batch. In their place may be a `RingLink`.
        link: joins the rings of several processes, see above; with one, `peers` may be empty, and
            numbers of peers are those of the whole ring, in `peerK_` logs too, of which there are
            none of other processes. With `"wait"` or `ranks_per_peer` use `GraftingFit`.
        mixer: what a grafting does, and when; the entropy ring `Graft()` by default, or another
            `Mixer` that acts at the end of an epoch.
        data: batches for the peers, one a step, begun anew when they are exhausted. Either a list
            with one data set for every peer, or one that all iterate for themselves: a tuple of
            arrays `(x, y)` or `(x, y, sample_weight)`, which each peer reads in a seeded order of
            its own in batches as large as the first of `fit`, a `PyDataset`, whose batches too each
            peer reads in a seeded order of its own, a `tf.data.Dataset`, a torch `DataLoader`. By
            default the batches of `fit`.
        class_weight: weight of every class in `data`. The peers see those that `fit` is given only
            in its batches, as weights of examples: peers in lock-step get them so; `data` without
            any weights is refused then, unless this says what they are (`{}` for none).
        train_peers: False leaves the training of the peers to others; they are grafted only.
        every: `every` of the mixer, see `EpochMixer`; None for what it has, as below.
        epochs_grafted: its `epochs`.
        evaluate: its `evaluate`. With `"before"`, the authors' order, the grafting is done when
            the next epoch begins, so that whatever is saved at an epoch's end are the weights that
            were validated; after the last epoch nothing is grafted, before the next `fit` of the
            same models goes on. `alpha` is then logged in the epoch that starts from the grafted
            weights.
        backup_dir: directory for the peers' weights and optimizers, all random numbers, the model's
            too, and `records`; saved at every epoch's end and restored when `fit` resumes there, as
            `BackupAndRestore` does for the model's weights and optimizer; deleted when `fit` has
            ended. May be the directory that `BackupAndRestore` has. With a link every rank has one
            of its own in there, and all resume at the same epoch.
        engine: how the peers take their steps, as in `GraftingFit`; the model's own are `fit`'s.
        graft: what `mixer` was called before.

    Attributes:
        records: what each grafting measured and did, as `(epoch, GraftRecord)`.

    Raises:
        UserError: no peers, a peer given twice, an option out of range; when `fit` begins, also
            peers that do not match the model (names the first difference), that share an optimizer
            or cannot be compiled as the model is (names the part), `data` that cannot be read or is
            a list of another length, and a second GraftCallback in the same `fit`; with a link,
            ranks that differ, and a process group, over which Keras would average gradients.
        LostPeerError: a rank of the ring is lost; names it and its host.

    Example:
        ```python
        peers = [keras.models.clone_model(model) for _ in range(3)]  # before it is compiled
        model.compile("sgd", loss, metrics=["accuracy"])
        grafting = kgraft.GraftCallback(peers, data=(x, y))
        model.fit(x, y, epochs=200, validation_data=(xv, yv), callbacks=[grafting])

        link = kgraft.RingLink()  # one model a process: torchrun --nproc-per-node 4 script.py
        keras.utils.set_random_seed(link.rank)  # before the model is made
        model.fit(x, y, epochs=200, callbacks=[kgraft.GraftCallback(link)])
        ```

    Source: Meng et al., CVPR 2020, Alg. 1.
    """

    def __init__(
        self,
        peers: Iterable[keras.Model] | RingLink = (),
        *,
        link: RingLink | None = None,
        mixer: Mixer | None = None,
        data: Any = None,
        class_weight: dict[int, float] | None = None,
        train_peers: bool = True,
        every: int | None = None,
        epochs_grafted: int | None = None,
        evaluate: Literal["after", "before"] | None = None,
        backup_dir: str | PathLike[str] | None = None,
        engine: Literal["auto", "eager", "compiled"] = "auto",
        graft: Mixer | None = None,
    ) -> None:
        super().__init__()
        self.peers, self.link = checked_ring(peers, link)
        self._ring = None if self.link is None else RingOfFits(self.link)
        self.mixer: Mixer = checked_mixer(mixer, graft)
        if isinstance(self.mixer, Mutual):
            raise UserError("mutual learning is how peers learn, not a mixing: use GraftingFit.")
        if self.mixer.between_steps:
            raise UserError(
                f"{type(self.mixer).__name__} acts between steps, where fit owns the model's "
                "weights: use GraftingFit."
            )
        self.mixer = self.mixer.scheduled(every=every, epochs=epochs_grafted, evaluate=evaluate)
        check_data(data, class_weight)
        self.data = data
        self.class_weight = class_weight
        self.train_peers = argument("train_peers", train_peers, bool)
        if not isinstance(backup_dir, str | PathLike | None):
            raise UserError(f"backup_dir is {told(backup_dir)}: expected a directory's name.")
        self.backup_dir = None if backup_dir is None else Path(backup_dir)
        if (
            self.backup_dir is not None
            and self.backup_dir.exists()
            and not self.backup_dir.is_dir()
        ):
            raise UserError(f"backup_dir={str(backup_dir)!r} is a file: expected a directory.")
        self.engine = engine
        check(engine)
        self.records: list[tuple[int, GraftRecord]] = []
        if data is not None and not train_peers:
            raise UserError(
                "data= is for peers that learn here; train_peers=False leaves them out."
            )
        self._run: CallbackRun | None = None
        self._session: Session | None = None
        self._read: dict[int, int] = {}
        self._elsewhere = False

    def get_config(self) -> dict[str, Any]:
        """What was set, JSON-able; models and data by their names only."""
        link = self.link
        return {
            "peers": [peer.name for peer in self.peers],
            "link": None if link is None else {"rank": link.rank, "ranks": link.ranks},
            "mixer": self.mixer.get_config(),
            "data": _named(self.data),
            "class_weight": self.class_weight
            and {int(name): float(weight) for name, weight in self.class_weight.items()},
            "train_peers": self.train_peers,
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
        if sum(isinstance(other, GraftCallback) for other in _list_with(self)) > 1:
            raise UserError(
                "fit has two GraftCallbacks, which would graft one model in two rings and log both "
                "under the same names: give one of them all the peers."
            )
        interrupted = self._run is not None
        if self._run is not None:
            self._read = self._run.close()
        self._check_backups()
        model, peers = self._model, self.peers
        ring = peers if any(peer is model for peer in peers) else [model, *peers]
        if self._ring is not None:
            self._ring.join(len(ring), interrupted=interrupted)
            self._ring.check_backups(own.backup_dir for own in _backups(_list_with(self)))
        session = self._session
        if session is None or not session.is_of(ring, self.mixer):
            session, self._read = Session(ring, self.mixer, self.records, self.link), {}
            self._session = session
        self._run = CallbackRun(
            model,
            session,
            data=self.data,
            class_weight=self.class_weight,
            train_peers=self.train_peers,
            backup_dir=self._own_backup_dir(),
            engine=self.engine,
            read=self._read,
            ring=self._ring,
            epochs=(self.params or {}).get("epochs") or 0,
        )
        if self._ring is not None:
            self._end_together(self._run.anywhere)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Resume the peers in the first epoch; graft what `evaluate="before"` has put off."""
        run = self._running
        if not run.resumed:
            run.resume(epoch)
            run.begin()
            last = (self.params or {}).get("epochs") or 0
            say_if_idle(self.mixer, range(run.done_before + epoch, run.done_before + last))
        run.begin_epoch(epoch, (self.params or {}).get("steps"))
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
        if self._run is not None and not self._elsewhere:
            self._run.learn()
            self._run.end_of_epoch()

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
        run.check_fed()
        run.end_of_epoch()
        if logs is not None:
            logs["alpha"] = run.session.alphas[run.place]
        for learner in run.learners:
            learner.stepper.end_epoch()
            if logs is not None:
                for name, value in learner.stepper.logs().items():
                    logs[f"{learner.name}_{name}"] = value
        run.save(epoch + 1)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Finish the peers as `fit` has finished its model, and forget the backup."""
        run = self._running
        run.end()
        self._read = run.close()
        self._run = None

    @property
    def epoch(self) -> int | None:
        """The epoch that is on, counted from 0 over all fits; None where it has begun none."""
        return None if self._session is None else self._session.epoch

    @property
    def _running(self) -> CallbackRun:
        if self._run is None:
            raise RuntimeError(
                "GraftCallback is called outside of fit: on_train_begin comes first."
            )
        return self._run

    def _end_together(self, anywhere: Callable[[bool], bool]) -> None:
        """Have the last callback of this `fit` ask all ranks whether it goes on."""
        callbacks = _list_with(self)
        for own in callbacks:
            if isinstance(own, StopTogether):  # of an earlier fit with this very list
                own.anywhere = anywhere
                return
        last = StopTogether(anywhere)
        last.set_model(self._model)
        last.set_params(self.params)
        callbacks.append(last)

    def _own_backup_dir(self) -> Path | None:
        """Where this process keeps its peers."""
        if self.backup_dir is None or self.link is None:
            return self.backup_dir
        return self.backup_dir / f"rank-{self.link.rank}-of-{self.link.ranks}"

    def _check_backups(self) -> None:
        """Look at Keras' `BackupAndRestore`, whose epochs must be those of the peers' backup.

        Raises:
            UserError: it saves in the middle of epochs, the peers at their end.
        """
        callbacks = _list_with(self)
        backups = _backups(callbacks)
        if self.backup_dir is not None and any(own.save_freq != "epoch" for own in backups):
            raise UserError(
                f"BackupAndRestore(save_freq={backups[0].save_freq}) saves within an epoch, "
                "GraftCallback(backup_dir=) the peers at its end: leave out save_freq."
            )
        earlier = callbacks[: callbacks.index(self)] if self in callbacks else []
        if any(isinstance(other, keras.callbacks.BackupAndRestore) for other in earlier):
            _log.warning(
                "BackupAndRestore stands before GraftCallback: it saves an epoch before the peers "
                "are saved and, without validation, before it is grafted, so that a killed fit "
                "cannot go on as it was. Put GraftCallback first in the list."
            )


def _list_with(callback: keras.callbacks.Callback) -> list[Any]:
    """The callbacks of the running `fit`, in order; Keras tells a callback nothing of the others.

    Args:
        callback: one of them, which is being called.

    Returns:
        The list itself; an empty one where no `CallbackList` calls.
    """
    frame = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, keras.callbacks.CallbackList) and callback in caller.callbacks:
            found: list[Any] = caller.callbacks
            return found
        frame = frame.f_back
    return []


def _backups(callbacks: Iterable[Any]) -> list[keras.callbacks.BackupAndRestore]:
    return [own for own in callbacks if isinstance(own, keras.callbacks.BackupAndRestore)]


def _named(thing: Any) -> Any:
    if thing is None:
        return None
    if isinstance(thing, list):
        return [_named(part) for part in thing]
    return thing.__name__ if inspect.isfunction(thing) else type(thing).__name__
