"""GraftingFit: K models in one loop, grafted after every epoch."""

import contextlib
import logging
from collections.abc import Callable, Collection, Sequence
from os import PathLike
from typing import Any, Literal

import keras

from kgraft.engines.engine import Engine
from kgraft.errors import LostPeerError, UserError, kind_and_line_of
from kgraft.grafting.mixer import Mixer
from kgraft.grafting.ring import GraftRecord
from kgraft.links.link import Link
from kgraft.settings import argument
from kgraft.training.alike import check_same
from kgraft.training.batches import as_short_as_any
from kgraft.training.callback import GraftCallback
from kgraft.training.checkpoints import Checkpoints
from kgraft.training.features import checked_losses
from kgraft.training.feeds import (
    Feed,
    Shuffle,
    feeds_of,
    in_one_order,
    is_listed,
    parts_of,
    validation_feed,
)
from kgraft.training.fit_arguments import (
    check_lesson,
    check_link,
    check_steps,
    check_targets,
    check_verbose,
    checked_count,
    checked_mixer,
    checked_mutual,
    checked_peers,
    checked_teachers,
    split,
    validated_epochs,
)
from kgraft.training.identity import identity_of, lost_place
from kgraft.training.inference import Inference, Verbose
from kgraft.training.learners import check_optimizers
from kgraft.training.lessons import learning_of
from kgraft.training.loop import PeerLoop
from kgraft.training.mutual import Mutual
from kgraft.training.saved_fit import SavedFit, SavedFits
from kgraft.training.session import Session, replicas_of
from kgraft.training.shards import shards
from kgraft.training.triplets import Triplet
from kgraft.training.watchers import (
    Callbacks,
    backed_up,
    check_backups,
    watchers_of,
)

_log = logging.getLogger("kgraft")

_ONE_ORDER = (
    "all peers read the data in one order, the weakest setting of the papers: shuffle them, or "
    "give a list with one data set for every peer."
)
_GRAFTS_ITSELF = (
    "callbacks holds a GraftCallback, which is for Keras' own fit: GraftingFit grafts its peers "
    "itself, as graft= or mixer= says."
)
_WAITS = (
    'on_lost_peer="wait" goes on from checkpoints: give fit(checkpoint=DIRECTORY), the same '
    'directory on all ranks, or "stop" or "skip".'
)
_ONE_PROGRAM = "all ranks of a ring run the same program"


class GraftingFit(Inference):
    """Trains K peers side by side and grafts them at the end of every epoch.

    Every peer keeps what it was compiled with: its own optimizer, learning rate, loss and metrics.
    It draws its own data order. With teachers, the peers learn from their mean probabilities too
    (grafting+).

    Args:
        peers: K compiled models of one architecture, in ring order: peer k receives from k - 1.
        teachers: M trained models whose outputs are logits; none for plain grafting.
        mixer: what is done to the peers' weights, and when: the entropy ring `Graft()` by default,
            any other `Mixer`, `Independent()` for nothing at all; `Mutual()` is for nothing, and
            each peer learns from the others.
        mutual: with `Mutual()` each peer learns from the others' predictions too (deep mutual
            learning), and is grafted by `mixer`; all then see the first peer's batches.
        every: `every` of the mixer, see `EpochMixer`; None for what it has, as below.
        epochs_grafted: its `epochs`.
        evaluate: its `evaluate`.
        temperature: tau of the distillation loss; as the next three for a fit with teachers.
        distillation_weight: weight of the distillation loss beside the peers' own.
        label_weight: weight of the peers' own loss, in training with teachers.
        feature_losses: see `Distiller`; teachers then run for each peer anew.
        triplet: with `Triplet()` each peer's features learn distances too; neither with teachers
            nor with `mutual`.
        seed: the peers' data orders follow from it.
        engine: `"auto"` and `"compiled"` for the fastest steps there are on this backend, with
            Keras' own where a model cannot be compiled; `"eager"` for Keras' own. All give the same
            numbers to rounding; the log says which one it was, and why.
        graft: what `mixer` was called before.
        link: makes one ring of several processes, which all run this program, each with its own
            share of the peers, see `RingLink`. Numbers of peers (in callbacks and data sets) are
            those of the ring; the peers, histories and results here are this process' alone.

    Attributes:
        peers: the K models, ordinary Keras models before, during and after training.
        records: what each grafting measured and did, as `(epoch, GraftRecord)`; epochs are counted
            over all calls of `fit`.

    Raises:
        UserError: no peer, a peer that is no model, not compiled or given twice, peers that do not
            match (names the first difference), an option of the wrong kind or out of range, or one
            of distillation without teachers.

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
        mixer: Mixer | None = None,
        mutual: Mutual | None = None,
        every: int | None = None,
        epochs_grafted: int | None = None,
        evaluate: Literal["after", "before"] | None = None,
        temperature: float = 2.0,
        distillation_weight: float = 1.0,
        label_weight: float = 1.0,
        feature_losses: Sequence[keras.distillation.DistillationLoss] = (),
        triplet: Triplet | None = None,
        seed: int = 0,
        engine: Literal["auto", "eager", "compiled"] = "auto",
        graft: Mixer | None = None,
        link: Link | None = None,
    ) -> None:
        self.peers = checked_peers(peers)
        self.teachers = checked_teachers(teachers)
        mixer = checked_mixer(mixer, graft).scheduled(
            every=every, epochs=epochs_grafted, evaluate=evaluate
        )
        self.seed = checked_count("seed", seed)
        temperature = argument("temperature", temperature, float, above=0)
        distillation_weight = argument("distillation_weight", distillation_weight, float, low=0)
        label_weight = argument("label_weight", label_weight, float, low=0)
        lesson = (temperature, distillation_weight, checked_losses(feature_losses), label_weight)
        check_lesson(self.teachers, *lesson)
        check_optimizers(self.peers)
        mutual = checked_mutual(mutual, mixer, self.teachers)
        check_link(link, mutual, triplet)
        self._session = Session(self.peers, mixer, [], link)
        self._replicas = replicas_of(self._session.link)
        students = Engine(self.peers, engine, self._replicas)
        self._learning = learning_of(students, self.teachers, lesson, mutual, triplet)
        self._session.said = {"seeds": self.seed, "numbers of teachers": len(self.teachers)}
        self._session.check()
        self._fits = SavedFits()

    @property
    def mixer(self) -> Mixer:
        """What is done to the peers' weights, and when."""
        return self._session.mixer

    @property
    def count(self) -> int:
        """K, the peers of other processes included."""
        return self._session.link.count

    @property
    def records(self) -> list[tuple[int, GraftRecord]]:
        """What each grafting measured and did, as `(epoch, GraftRecord)`."""
        return self._session.records

    @property
    def epoch(self) -> int | None:
        """The epoch that is on, counted from 0 over all calls of `fit`; None outside of one."""
        return self._session.epoch

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Verbose = "auto",
        callbacks: Callbacks | Callable[[int], Callbacks | None] | None = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        shuffle: Shuffle = True,
        class_weight: dict[int, float] | None = None,
        sample_weight: Any = None,
        initial_epoch: int | None = None,
        steps_per_epoch: int | None = None,
        validation_steps: int | None = None,
        validation_batch_size: int | None = None,
        validation_freq: int | Collection[int] = 1,
        *,
        shared_batches: bool = False,
        checkpoint: str | PathLike[str] | Checkpoints | None = None,
    ) -> list[keras.callbacks.History]:
        """Train and graft all peers; arguments as in `keras.Model.fit` where not said otherwise.

        The run counts its epochs: a `fit` without `initial_epoch` goes on where the last one has
        ended, in the data orders, the grafting schedule and `records`, so that n calls with
        `epochs=1` are one with `epochs=n`; callbacks are told 0, 1, ... anew, as by `Model.fit`.
        With `initial_epoch=e`, also 0, the run's count is set to e. Whole epochs count: one that
        was interrupted is begun anew. A data set that shuffles itself goes on as it likes.

        With `evaluate="before"`, the grafting put off at the last epoch's end is done when the next
        `fit` begins.

        With `checkpoint=DIR` a training that is killed goes on from its last whole epoch when the
        same program is started again, to the same weights and histories as if nothing had happened:
        bit for bit on one CPU with one thread. Fits that were over by then return at once; only the
        newest of them brings weights and histories. Where a `tf.data` set, a `DataLoader` or a
        generator stood is not saved: it is read from its beginning. What callbacks set on layers
        and losses is not saved, what they set on optimizers is. Keras' `BackupAndRestore`, one for
        each peer, resumes weights and optimizers alone.

        Args:
            x: arrays, which each peer reads in its own order; a `PyDataset`, whose batches each
                peer reads in its own order; any other data set (`tf.data`, torch `DataLoader`, a
                `Feed`), which each peer iterates for itself; or a list with one of these for every
                peer, arrays as tuples `(x, y)` or `(x, y, sample_weight)`, of which the shortest
                ends the epoch.
            y: targets, with arrays.
            batch_size: examples a step, with arrays; 32 by default.
            epochs: train up to this epoch.
            verbose: 0 is silent; the bar has the first peer's metrics, at epochs' ends all peers'.
            callbacks: one Keras callback or a list of them watches the first peer: they get its
                metrics and, as `peer2_loss` ..., those of the others, and `alpha`, the mean
                coefficient of the epoch's grafting, 1 where nothing was grafted. A function
                `k -> list` gives every peer its own. A peer's `stop_training` stops them all.
            validation_split: share of the arrays' end that is held out.
            validation_data: `(x, y)` or `(x, y, sample_weight)` or a data set; every peer is
                evaluated on all of it.
            shuffle: whether arrays and the batches of a `PyDataset` are read in a new order each
                epoch; `"batch"` shuffles arrays within their batches only.
            class_weight: weight of every class, with any data that have no sample weights.
            sample_weight: weights of the examples, with arrays.
            initial_epoch: epoch to begin with; orders depend on the epoch, not on the call.
            steps_per_epoch: at most so many steps an epoch: the first ones of its own order where
                arrays and a `PyDataset` are shuffled (Keras goes on in the last epoch's); all other
                data are read on from epoch to epoch, and where they end an epoch ends, as in Keras.
            validation_steps: at most so many batches of the validation data, the first ones.
            validation_batch_size: `batch_size` by default.
            validation_freq: validate every n-th epoch, or at the end of these, counted from 1.
            shared_batches: whether all peers see the first peer's batches; teachers then run once
                for all. Peers of their own order are more diverse and gain more from grafting.
            checkpoint: directory of this training alone, see `Checkpoints`; None saves nothing.

        Returns:
            One `History` per peer.

        Raises:
            UserError: data that does not fit, see `feed_of`; an argument of the wrong kind;
                backups of some of the peers only; a checkpoint of another training.
            StorageError: a checkpoint cannot be written.
        """
        check_optimizers(self.peers)  # they may have been compiled anew
        check_verbose(verbose)
        argument("shared_batches", shared_batches, bool)
        begin = 0 if initial_epoch is None else checked_count("initial_epoch", initial_epoch)
        told = range(begin, checked_count("epochs", epochs))
        check_steps(
            steps_per_epoch=steps_per_epoch,
            validation_steps=validation_steps,
            validation_batch_size=validation_batch_size,
        )
        validated = validated_epochs(validation_freq)
        listed = is_listed(x, y, sample_weight)
        if not listed:
            check_targets(self.peers, x, y, sample_weight, name="x")
        argument("validation_split", validation_split, float, low=0, below=1)
        if validation_split and validation_data is None:
            (x, y, sample_weight), validation_data = split(x, y, sample_weight, validation_split)
        shared = shared_batches or self._learning.shared
        link = self._session.link
        link.again()
        feeds = feeds_of(
            link.count,
            x,
            y,
            sample_weight,
            shared=shared,
            prepare=self._learning.feed,
            batch_size=batch_size,
            class_weight=class_weight,
            seed=self.seed,
            shuffle=shuffle,
            steps=steps_per_epoch,
            places=link.here,
        )
        if self._learning.shared:
            feeds = self._learning.views(feeds[0])
        first = self._session.epochs_done if initial_epoch is None else begin
        if listed:
            feeds = as_short_as_any(feeds, link, first)
        validation = None
        if validation_data is not None:
            check_targets(self.peers, *parts_of(validation_data), name="validation_data")
            validation = validation_feed(
                validation_data, validation_batch_size, validation_steps, of_arrays=batch_size
            )
        watchers = watchers_of(
            self.peers,
            callbacks,
            first=link.here.start,
            verbose=verbose,
            epochs=epochs,
            steps=feeds[0].steps,
        )
        check_backups(watchers)
        if any(isinstance(own, GraftCallback) for kept in watchers for own in kept.callbacks):
            raise UserError(_GRAFTS_ITSELF)
        if link.waits and checkpoint is None:
            raise UserError(_WAITS)
        if link.count > 1 and not (shared or listed) and in_one_order(feeds[0]):
            _log.warning(_ONE_ORDER)
        if initial_epoch is not None:
            self._session.epochs_done = begin
            self._fits.forget()
        read = feeds if listed else feeds[:1]
        trained = self._learning, self._session, feeds, watchers, validation, validated
        if self._replicas is not None:
            trained = *trained[:2], shards(feeds, self._replicas), *trained[3:]
        settings = Checkpoints.of(checkpoint)
        said = {
            "batch_size": None if batch_size is None else int(batch_size),
            "initial_epoch": initial_epoch and int(initial_epoch),
            "checkpoint=": "None" if settings is None else "given",
        }
        while True:
            if not link.returning:
                check_same(link.gather_small(said, opens=True), _ONE_PROGRAM)
            saved = self._saved(settings, told, read, validation, watchers)
            if saved is not None and saved.over_at is not None:
                self._session.epochs_done = saved.over_at
                for peer in self.peers:
                    peer.history.on_train_begin()
                break
            loop = PeerLoop(*trained, saved, self._replicas)
            count = len(self.peers)
            _log.info(
                "engine: %s for %d peer%s", loop.prepare().describe(), count, "s" * (count > 1)
            )
            try:
                with saved or contextlib.nullcontext():
                    loop.run(told, same_batches=shared_batches)
            except LostPeerError as error:
                if saved is None or not link.waits:
                    link.end(str(error))
                    raise
                _log.warning("%s All meet anew, and go on from what they have saved.", error)
                link.regroup()
                if listed:
                    as_short_as_any(feeds, link, first)  # to tell who was started again
                continue
            except BaseException as error:  # the others do not have to find out by themselves
                link.end(kind_and_line_of(error))
                raise
            self._fits.end(self._session.epochs_done)
            break
        return [peer.history for peer in self.peers]

    def _saved(
        self,
        checkpoints: Checkpoints | None,
        told: range,
        feeds: Sequence[Feed],
        validation: Feed | None,
        watchers: Sequence[keras.callbacks.CallbackList],
    ) -> SavedFit | None:
        if checkpoints is None:
            self._fits.forget()
            return None
        if backed_up(watchers):
            raise UserError("checkpoint= and BackupAndRestore both resume: give one of them.")
        identity = identity_of(
            self._learning, self.teachers, self.mixer, self.seed, feeds, validation
        )
        return self._fits.next(checkpoints, self._session, told, identity, lost_place(feeds[0]))
