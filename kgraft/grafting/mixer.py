"""What every mixer answers to: what is done to the weights of K peers while they train, and when.

A mixer is a method in one class: its word in run files, what it needs, its settings as fields, its
schedule, and what it does, with a state that can be saved. To write one's own:

    @dataclass(frozen=True)
    class Swap(EpochMixer):
        '''Two peers exchange a share of their weights.'''

        name = "swap"                              # method = "my_package.my_module:Swap"
        peers = least = 2
        share: float = setting(0.5, low=0, high=1)     # share = 0.3 under [swap]

        def apply(self, peers, state, moment):
            ...
            return state, None
"""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import keras
import numpy as np

from kgraft import settings
from kgraft.errors import UserError, told
from kgraft.grafting.peers import Moment, Peers, checked_models, plan_of
from kgraft.grafting.plan import GraftPlan
from kgraft.grafting.ring import GraftRecord
from kgraft.settings import setting

State = dict[str, Any]
"""What a mixer knows between two moments: JSON-able values and NumPy arrays, by name."""


def check_state(mixer: "Mixer", state: Any) -> None:
    """Refuse a state that could not be saved.

    Args:
        mixer: whose it is, for the error.
        state: what its `init`, `apply` or `finish` gave.

    Raises:
        UserError: names the first value that is neither JSON-able nor a NumPy array.
    """
    wrong = _unsaved(state, "state") if isinstance(state, dict) else f"state is {told(state)}"
    if wrong:
        raise UserError(
            f"{type(mixer).__name__}: its {wrong}: expected JSON-able values and NumPy arrays, by "
            "name."
        )


def _unsaved(value: Any, path: str) -> str:
    """What of a value could not be saved, `""` for nothing."""
    if value is None or isinstance(value, bool | int | float | str):
        return ""
    if isinstance(value, np.ndarray) and value.dtype != object:
        return ""
    parts: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, list | tuple):
        parts = enumerate(value)
    elif isinstance(value, dict) and all(isinstance(name, str) for name in value):
        parts = value.items()
    else:
        return f"{path} is {told(value)}"
    return next(filter(None, (_unsaved(own, f"{path}[{name!r}]") for name, own in parts)), "")


RESERVED = (
    *("run", "data", "photos", "retrieval", "model", "peers", "teachers", "optimizer", "schedule"),
    *("checkpoint", "ring"),
    *("scion", "result", "runs_of", "budget"),  # of old run files, and of comparisons
)
"""What stands beside the methods' tables in a run file: no method's table may be called so."""

MIXERS: dict[str, type["Mixer"]] = {}
"""Mixers that have a name, by it."""


class Mixer:
    """Mixes K peers in place; the base of all that do.

    One overrides `apply`, and `due` unless it acts at the end of every epoch; settings are fields
    of a dataclass, made by `kgraft.settings.setting`. Frozen weights (`trainable=False`) belong to
    no group of the plan: what is in no group is left alone.

    Attributes:
        name: its word in run files; a class that has one can be asked for by it.
        table: the table of a run file that holds its settings, named as itself by default.
        peers: how many networks a run has where nobody says.
        least: how many a run has at least; in Python a single peer is trained alone.
        taught: whether its peers learn from teachers; they have none otherwise.
        teachers: how many teachers it then has where nobody says.
        answer: what answers a question after training, `"peer"` or `"ensemble"`.
        between_steps: whether it acts after steps too.
        evaluate: whether the validation comes `"after"` or `"before"` an epoch's mixing.
    """

    name: ClassVar[str] = ""
    table: ClassVar[str] = ""
    peers: ClassVar[int] = 1
    least: ClassVar[int] = 1
    taught: ClassVar[bool] = False
    teachers: ClassVar[int] = 1
    answer: ClassVar[Literal["peer", "ensemble"]] = "peer"
    between_steps: ClassVar[bool] = False
    evaluate: Literal["after", "before"] = "after"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if vars(cls).get("name"):
            cls.table = vars(cls).get("table", cls.name)
            if cls.table in RESERVED or not re.fullmatch("[A-Za-z0-9_-]+", cls.table):
                raise UserError(
                    f"mixer {cls.__qualname__}: its settings cannot stand in a table [{cls.table}] "
                    "of a run file: give it another name."
                )
            other = MIXERS.setdefault(cls.name, cls)
            if (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
                raise UserError(
                    f"mixer {cls.__qualname__} is named {cls.name!r}, as {other.__module__}."
                    f"{other.__qualname__} is: give it another name."
                )
            MIXERS[cls.name] = cls

    def __new__(cls, *arguments: Any, **given: Any) -> Self:
        """Refuse settings that it has not, in kgraft's words."""
        settings.check_names(cls, given)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        settings.check(self)

    @classmethod
    def check_class(cls) -> None:
        """Refuse a class that says when to act and not what to do.

        Raises:
            UserError: it has no `apply` of its own.
        """
        if cls.apply is Mixer.apply and not issubclass(cls, Independent):
            raise UserError(f"mixer {cls.__name__} has no apply(peers, state, moment) of its own.")

    def plan(self, models: Sequence[keras.Model]) -> GraftPlan:
        """The plan of the first peer, after comparing the others with it.

        Which weights are frozen belongs to it: whoever trains asks for it when a training begins.

        Args:
            models: the K peers, built.

        Raises:
            UserError: no peer, a model given twice, peers that do not match (names the first
                difference), or that cannot be mixed so.
        """
        return plan_of(models)

    def check_epochs(self, epochs: int) -> None:
        """Refuse a training that ends before this has done what it is for.

        Args:
            epochs: how many the training has.

        Raises:
            UserError: says how many it needs.
        """

    def due(self, moment: Moment) -> bool:
        """Whether this is a moment to act."""
        return moment.ends_epoch

    def acts_in(self, epochs: range, steps: int | None = None) -> bool:
        """Whether any moment of a training is one to act.

        Args:
            epochs: the training's, counted from 0 over all trainings.
            steps: how many an epoch has, None where nobody knows.
        """
        if self.between_steps and steps is None:
            return True
        ends = epochs if self.evaluate == "after" else epochs[:-1]  # the last one's is put off
        taken = range(epochs.start * (steps or 0), epochs.stop * (steps or 0))
        return any(self.due(Moment(epoch)) for epoch in ends) or any(
            self.between_steps and self.due(Moment(step // (steps or 1), step, ends_epoch=False))
            for step in taken
        )

    def init(self, peers: Peers, last: State | None = None) -> State:
        """What is known before the first step of a training; by default what was known at last.

        Args:
            peers: the peers.
            last: what an earlier training of theirs has ended with, None for none.
        """
        return {} if last is None else last

    def apply(self, peers: Peers, state: State, moment: Moment) -> tuple[State, GraftRecord | None]:
        """Mix the peers in place; called when it is `due`.

        Args:
            peers: the peers.
            state: what is known.
            moment: when it is.

        Returns:
            What is known then, and what was measured and done, None for nothing.
        """
        return state, None

    def ahead(self, peers: Peers) -> None:
        """What can be done before a mixing that is put off, while the peers are validated.

        Args:
            peers: the peers; in several processes a ring may send what it will need.
        """

    def finish(self, peers: Peers, state: State) -> State:
        """Leave all peers as networks to be used; called when a training has ended.

        Args:
            peers: the peers.
            state: what is known.

        Returns:
            What is known then.
        """
        return state

    def mix(self, models: Sequence[keras.Model], epoch: int = 0) -> GraftRecord | None:
        """Mix models here and now, as at the end of an epoch.

        Args:
            models: the K peers, in ring order: peer k receives from peer k - 1.
            epoch: which one has ended, counted from 0.

        Returns:
            What was measured and done, None for nothing.

        Raises:
            UserError: the peers do not match, or are no list of models.
        """
        settings.argument("epoch", epoch, int, low=0)
        models = checked_models(models, "models", "model")
        peers = Peers(models, self.plan(models))
        return self.apply(peers, self.init(peers), Moment(epoch))[1]

    def scheduled(self, **changes: Any) -> Self:
        """The same with another schedule.

        Args:
            changes: fields of its schedule, None for what stays.

        Raises:
            UserError: it has no such field, or not such a value.
        """
        changes = {name: value for name, value in changes.items() if value is not None}
        own = settings.described(self)
        for name in changes:
            if name not in own:
                raise UserError(
                    f"{type(self).__name__} has a schedule of its own: {name}= has no part in it."
                )
        return dataclasses.replace(self, **changes) if changes else self  # type: ignore[type-var]

    def get_config(self) -> dict[str, Any]:
        """Class and settings, JSON-able."""
        return {"mixer": type(self).__name__, **settings.described(self)}


@dataclass(frozen=True)
class EpochMixer(Mixer):
    """A mixer that acts at the ends of epochs.

    Args:
        every: at the end of every n-th epoch.
        epochs: at the end of the first n epochs only; None for all.
        evaluate: `"after"` mixes before the validation, so that a logged metric belongs to the
            weights that a checkpoint holds; `"before"` is the authors' order: train, validate,
            save, then mix when the next epoch begins, so that the last epoch's metrics belong to
            weights that were not mixed.
    """

    every: int = setting(1, low=1, kw_only=True)
    epochs: int | None = setting(None, low=0, kw_only=True)
    evaluate: Literal["after", "before"] = setting("after", kw_only=True)

    def due(self, moment: Moment) -> bool:
        """See `Mixer`."""
        return (
            moment.ends_epoch
            and (moment.epoch + 1) % self.every == 0
            and (self.epochs is None or moment.epoch < self.epochs)
        )


class StepMixer(Mixer):
    """A mixer that acts between steps.

    Attributes:
        every_steps: after every n-th step.
    """

    between_steps = True
    every_steps: int = 1

    def due(self, moment: Moment) -> bool:
        """See `Mixer`."""
        return not moment.ends_epoch and (moment.step + 1) % self.every_steps == 0


@dataclass(frozen=True)
class Independent(Mixer):
    """K networks that are left alone, whose predictions can be averaged."""

    name = "baseline"

    def due(self, moment: Moment) -> bool:
        """See `Mixer`: never."""
        return False
