"""One grafting, first step to last, whoever trains: GraftingFit's loop or Keras' `fit`."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

import keras

from kgraft.engines.backends import BACKEND
from kgraft.engines.replicas import Replicas
from kgraft.errors import DivergedError, LostPeerError, UserError, told
from kgraft.grafting.averages import averages_of
from kgraft.grafting.graft import warn_of_sick_peers
from kgraft.grafting.mixer import Independent, Mixer, State, check_state
from kgraft.grafting.peers import Moment, Peers
from kgraft.grafting.ring import GraftRecord
from kgraft.keras_private import flat_layers
from kgraft.links.link import ChangedError, Here, Link
from kgraft.links.ring_link import RingLink
from kgraft.training.alike import check_alike
from kgraft.training.distiller import student_of
from kgraft.training.preflight import learning_rates, optimizers_of, preflight

_log = logging.getLogger("kgraft")

_EQUAL = (
    "peer %d and peer %d, which are in different processes, begin with equal weights, and equal "
    "ones learn little from each other: build peer k with a seed of its own, k of link.places(K)."
)


class Session:
    """The grafting of some models, over one fit or several.

    Whoever trains says what has happened: `check`, `begin`, then `begin_epoch`, `end_of_step` and
    `end_of_epoch`, and `end`. What is due then is done here, or put off to the next epoch. Two
    things differ, because Keras tells a callback less than a loop knows: a `fit` that is broken off
    ends in GraftingFit only, elsewhere the next one begins without an end; and GraftCallback saves
    the session with its peers, where GraftingFit's peers are saved by callbacks that know nothing
    of it, and `resume` works out what was put off.

    Args:
        models: what is trained, in ring order; of a Distiller the student is grafted.
        mixer: what is done to their weights, and when.
        records: gets what each grafting measured and did, as `(epoch, GraftRecord)`.
        link: how the ring's other models are reached; by default there are none.

    Attributes:
        said: what else has to be equal in all processes of a ring, by the words that name it.
        alphas: each model's mean coefficient in this epoch, 1 where nothing was grafted.
        epochs_done: whole epochs so far, that is, the number of the next one.
    """

    def __init__(
        self,
        models: Sequence[keras.Model],
        mixer: Mixer,
        records: list[tuple[int, GraftRecord]],
        link: Link | None = None,
    ) -> None:
        self.link = link or Here()
        if not self.link.holds:
            self.link.join(len(models))
        elif len(self.link.here) != len(models):
            raise UserError(
                f"the link has joined a ring with {len(self.link.here)} peers, these are "
                f"{len(models)}: make another RingLink for them."
            )
        self.said: dict[str, Any] = {}
        self.models, self.students = list(models), [student_of(model) for model in models]
        self.mixer, self.records = mixer, records
        self.alphas = [1.0 for _ in models]
        self.epochs_done = 0
        self._peers: Peers | None = None  # as far as they are built
        self._state: State | None = None
        self._steps = 0
        self._counted = 0, 0  # whole epochs, and the steps in them
        self._put_off: Moment | None = None  # to the beginning of the next epoch
        self._begun = self._in_epoch = self._warned = self._restored = self._let_in = (
            self._parted
        ) = False
        self._sick: set[int] = set()
        self._trains: list[int] = []  # the variables that the plan was made for

    @property
    def epoch(self) -> int | None:
        """The epoch that is on, counted from 0 over all fits; None between two."""
        return self.epochs_done if self._in_epoch else None

    def is_of(self, models: Sequence[keras.Model], mixer: Mixer) -> bool:
        """Whether it is the grafting of these models, by this mixer."""
        return [*map(id, (mixer, *models))] == [*map(id, (self.mixer, *self.models))]

    def check(self) -> bool:
        """Compare the models; anew in every fit, some of their layers may be frozen since.

        Returns:
            Whether they are built, so that `begin` may be called.

        Raises:
            UserError: they do not match.
        """
        self._begun = self._in_epoch = False
        built = all(map(_is_built, self.students))
        self._peers = self._compared() if built else None
        return built

    def begin(self, *, same_batches: bool = False, steps: int | None = None) -> None:
        """Once a fit, when all models are built and have what an earlier fit has left.

        Args:
            same_batches: whether all learn from the very same batches.
            steps: how many an epoch has, None where nobody knows.

        Raises:
            UserError: the models do not match, or processes that have to step together do not.
        """
        if self._begun:
            return
        self._peers = self._peers or self._compared()
        if not self.link.returning:
            steps = steps if self.mixer.between_steps else None
            policy = self.link.on_lost_peer
            said = {"on_lost_peer": policy, "steps an epoch": steps, **self.said}
            equal = check_alike(self._peers, self.mixer, said)
            if equal is not None and not (self.epochs_done or self._restored):
                _log.warning(_EQUAL, *[k + 1 for k in equal])
        elif not self._restored:
            raise LostPeerError("there is no checkpoint that this rank could come back with.")
        if not self._restored:  # else it is in the middle of what it began
            self._state = self.mixer.init(self._peers, self._state)
            check_state(self.mixer, self._state)
        self._begun, self._restored = True, False
        preflight(self.models, self.link.here.start + 1)
        self._name_chance()
        if same_batches and not (self._warned or isinstance(self.mixer, Independent)):
            self._warned = _warn_of_twins(self.models)

    def _name_chance(self) -> None:
        """Say what of several processes is not what it would be in one."""
        if isinstance(self.link, Here):
            return
        layers = flat_layers(self.models[0])
        if drawing := [layer.name for layer in layers if BACKEND.draws_elsewhere(layer)]:
            _log.warning(
                "%s: without a seed of its own a layer draws from its process' random numbers, "
                "which are others than in one process; give it one (seed=) for the same results.",
                ", ".join(drawing[:3]),
            )

    def begin_epoch(self, epoch: int, steps: int | None = None) -> None:
        """Do what was put off.

        Args:
            epoch: its number, counted from 0 over all fits.
            steps: how many it has, None where nobody knows.
        """
        if not self._let_in:
            self.link.begin_epoch(epoch)
        self.epochs_done, self._in_epoch, self._let_in = epoch, True, False
        self.alphas = [1.0 for _ in self.models]
        goes_on = epoch == self._counted[0]  # epochs may be of different lengths
        known = goes_on or steps is None
        self._steps = self._counted[1] if known else epoch * (steps or 0)
        self._notice_frozen()
        if self._put_off is not None:
            self._mix(self._put_off)
            self._put_off = None

    def part(self) -> bool:
        """Whether the models' replicas have still to draw masks of their own; said once."""
        parted, self._parted = self._parted, True
        return not parted

    def rejoin(self, steps: int | None) -> int:
        """Be in the ring again, which went on without these models, with an epoch that begins.

        Args:
            steps: how many an epoch has; schedules of learning rates are where the others' are.

        Returns:
            Its number, counted from 0 over all fits.
        """
        assert isinstance(self.link, RingLink)
        epoch = self.link.rejoin()
        ended = Moment(epoch - 1)
        put_off = self.mixer.evaluate == "before" and self.mixer.due(ended)
        self._put_off = ended if put_off else None  # the others do it now
        missed, self._let_in = epoch - self.epochs_done, True
        missed -= self._in_epoch  # whose steps it has taken, left out at its end
        for optimizer in (own for model in self.models for own in optimizers_of(model)):
            optimizer.iterations.assign_add(max(missed, 0) * (steps or 0))
        self._counted = epoch, epoch * (steps or 0)
        return epoch

    def end_of_step(self) -> None:
        """What the mixer does between steps."""
        moment = Moment(self.epochs_done, self._steps, ends_epoch=False)
        self._steps += 1
        if self.mixer.between_steps and self.mixer.due(moment):
            self._mix(moment)

    def end_of_epoch(self) -> None:
        """Graft, or put it off; before the epoch's validation. Said again, nothing happens.

        Raises:
            DivergedError: no model has finite weights any more.
        """
        if not self._in_epoch:
            return
        moment = Moment(self.epochs_done, self._steps - 1)
        self._notice_frozen()
        self._check_alive(moment.epoch)
        if self.mixer.due(moment):
            if self.mixer.evaluate == "after":
                self._mix(moment)
            else:
                self._put_off = moment
                if self._peers is not None:
                    self.mixer.ahead(self._peers)
        if self._begun:
            check_state(self.mixer, self._state)
        self.epochs_done, self._in_epoch = self.epochs_done + 1, False
        self._counted = self.epochs_done, self._steps

    def end(self, trained: Iterable[keras.Model] = ()) -> None:
        """Leave the models as networks to be used.

        Args:
            trained: those whose optimizers' averaged weights (`use_ema`) take their place, as
                Keras' `fit` does it to its model; none where the training was broken off.
        """
        trained = list(trained)
        for model in trained:
            if isinstance(model.optimizer, keras.Optimizer) and model.optimizer.built:
                model.optimizer.finalize_variable_values(model.trainable_weights)
        if self._begun and self._peers is not None and self._state is not None:
            self._state = self.mixer.finish(self._with_averages(self._peers), self._state)
            if trained:  # else something else has gone wrong, which may be this very state
                check_state(self.mixer, self._state)
        self._begun = self._in_epoch = False

    def resume(self, epoch: int, *, before_grafting: bool) -> None:
        """Go on from weights that somebody else has saved and restored.

        Args:
            epoch: whole epochs that they have seen.
            before_grafting: whether a grafting that is put off was still to come.
        """
        self.epochs_done, moment = epoch, Moment(epoch - 1)
        put_off = before_grafting and self.mixer.evaluate == "before" and self.mixer.due(moment)
        self._put_off = moment if put_off else None

    def save(self) -> dict[str, Any]:
        """What `restore` needs to go on from the end of an epoch; the models are not in it.

        Returns:
            JSON-able values and NumPy arrays.
        """
        return {
            "epochs_done": self.epochs_done,
            "steps": self._steps,
            "put_off": self._put_off and asdict(self._put_off),
            "mixer": self._state,
        }

    def restore(self, saved: dict[str, Any], *, begins: bool = False) -> None:
        """Go on from what `save` gave, with the models' weights of that time.

        Args:
            saved: that.
            begins: whether it was before `begin`, so that the mixer has still to begin.
        """
        self.epochs_done, self._steps = saved["epochs_done"], saved["steps"]
        self._counted = self.epochs_done, self._steps
        self._put_off = saved["put_off"] and Moment(**saved["put_off"])
        self._state = saved["mixer"]
        self._restored = self._state is not None and not begins

    def _check_alive(self, epoch: int) -> None:
        if self._peers is None:
            return
        weights = self._peers.population()
        if not any(weights.is_finite(k) for k in range(len(self._peers))):
            who = "no peer has" if len(self._peers) > 1 else "the model has no"
            raise DivergedError(
                f"epoch {epoch + 1}: {who} finite weights any more, there is nothing left to "
                "train. A lower learning rate, a warm-up or clipnorm may keep them alive."
            )

    def _compared(self) -> Peers:
        self._trains = self._training()
        return Peers(self.students, self.mixer.plan(self.students), link=self.link)

    def _notice_frozen(self) -> None:
        """Compare the models anew where some of their layers were frozen, or thawed, in a fit."""
        if self._peers is not None and self._trains != self._training():
            self._peers = self._compared()

    def _training(self) -> list[int]:
        return [id(own) for student in self.students for own in student.trainable_variables]

    def _with_averages(self, peers: Peers) -> Peers:
        """The peers with the averages that take their weights' place when the fit ends."""
        pairs = zip(self.models, self.students, strict=True)
        averages = [averages_of(own, net.weights) for own, net in pairs]
        return replace(peers, averages=averages, trained=self.models)

    def _mix(self, moment: Moment) -> None:
        self.begin()
        assert self._peers is not None and self._state is not None
        peers = self._with_averages(self._peers) if moment.ends_epoch else self._peers
        while True:
            try:
                done = self.mixer.apply(peers, self._state, moment)
                break
            except ChangedError:  # a peer was lost, nothing was assigned
                continue
        gave = f"{type(self.mixer).__name__}.apply gave"
        if not (isinstance(done, tuple) and len(done) == 2):
            raise UserError(
                f"{gave} {told(done)}: expected a state and a GraftRecord, or None for no record."
            )
        self._state, record = done
        if not isinstance(record, GraftRecord | None):
            raise UserError(f"{gave} {told(record)} for a record: expected a GraftRecord, or None.")
        if record is not None:
            warn_of_sick_peers(record, self._sick)
            self.records.append((moment.epoch, record))
            self.alphas = record.mean_coefficients[self.link.here].tolist()


def replicas_of(link: Link) -> Replicas | None:
    """What averages gradients over a link's lanes, None where there is one.

    Args:
        link: joined.

    Raises:
        UserError: the backend cannot.
    """
    return None if link.lanes == 1 else Replicas(link.lane, link.lanes, link.add)


def _is_built(model: keras.Model) -> bool:
    """Whether it has all its weights: a built backbone may have an unbuilt head."""
    return bool(model.weights) and all(layer.built for layer in flat_layers(model))


def _warn_of_twins(models: Sequence[keras.Model]) -> bool:
    """Say so when two peers that see the same batches have the same learning rate."""
    if len(models) != 2:
        return False
    first, second = learning_rates(models)
    if first == second:
        _log.warning(
            "2 peers learn from the same batches with the same learning rate and are equal right "
            "after each grafting, the weakest setting of the papers: GraftCallback(data=...), or "
            "fit without shared_batches, gives the peer an order of its own."
        )
    return first == second
