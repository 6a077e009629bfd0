"""K peers with what they have in common, and the moments at which they are mixed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from kgraft.errors import UserError, told
from kgraft.grafting.averages import Averages, WithAverages, forget
from kgraft.grafting.plan import GraftPlan, Grouping
from kgraft.grafting.population import Population, population


@dataclass(frozen=True)
class Peers:
    """K built models of one architecture.

    Attributes:
        models: in ring order: peer k receives from peer k - 1.
        plan: what is blended with what in all of them.
        averages: what their optimizers keep as averages of the weights and is mixed with them, one
            a model; none of any by default.
        trained: the models whose optimizers move them, e.g. the Distillers around them; themselves
            by default.
    """

    models: Sequence[keras.Model]
    plan: GraftPlan
    averages: Sequence[Averages] = ()
    trained: Sequence[keras.Model] = ()

    def __len__(self) -> int:
        return len(self.models)

    def population(self) -> Population:
        """Their weights as they are now, to be read and mixed, with their averages."""
        weights = population(self.models)
        return WithAverages(weights, self.averages) if any(self.averages) else weights

    def restart(self, k: int) -> None:
        """Let the optimizer of peer k, counted from 0, forget how the weights have moved."""
        forget((self.trained or self.models)[k])


@dataclass(frozen=True)
class Moment:
    """When a mixer may act: after a step, or at the end of an epoch.

    Attributes:
        epoch: which one, counted from 0 over the whole training.
        step: the last one taken, counted from 0 over all epochs.
        ends_epoch: whether the epoch has ended.
    """

    epoch: int = 0
    step: int = 0
    ends_epoch: bool = True


def plan_of(
    models: Sequence[keras.Model], grouping: Grouping = "default", *, blend_frozen: bool = False
) -> GraftPlan:
    """The plan that K peers have in common.

    Args:
        models: the K peers, built.
        grouping: see `GraftPlan.of`.
        blend_frozen: see `GraftPlan.of`.

    Raises:
        UserError: no peer, a model given twice, weights that two peers share and train, or peers
            that do not match; names the first difference.
    """
    models = checked_models(models, "peers", "peer")
    if not models:
        raise UserError("no peers: grafting needs at least one model.")
    check_distinct(models)
    owner: dict[int, int] = {}
    for k, model in enumerate(models, start=1):
        for variable in model.trainable_variables:
            first = owner.setdefault(id(variable), k)
            if first != k:
                raise UserError(
                    f"peer {first} and peer {k} share {variable.path}, which would be trained "
                    "twice: every peer needs weights of its own."
                )
    plan, *others = (GraftPlan.of(m, grouping, blend_frozen=blend_frozen) for m in models)
    for k, other in enumerate(others, start=2):
        plan.check_matches(other, "peer 1", f"peer {k}")
    return plan


def checked_models(given: Any, name: str, one: str) -> list[keras.Model]:
    """Models in a list.

    Args:
        given: what was given.
        name: of the argument.
        one: what each of them is called.

    Raises:
        UserError: it is no list, or one with something else.
    """
    if isinstance(given, keras.Model):
        raise UserError(f"{name} is the model {given.name!r}: expected a list, [{one}, ...].")
    if isinstance(given, str | bytes | dict | type) or not isinstance(given, Iterable):
        raise UserError(f"{name} is {told(given)}: expected a list of Keras models.")
    found = list(given)
    for k, model in enumerate(found, start=1):
        if isinstance(model, keras.Model):
            continue
        if isinstance(model, str):
            todo = "load it with keras.models.load_model first"
        elif callable(model):
            todo = "call it, and pass the model that it makes"
        else:
            todo = "expected a Keras model"
        raise UserError(f"{one} {k} is {told(model)}: {todo}.")
    return found


def check_distinct(peers: Sequence[keras.Model]) -> None:
    """Refuse a model that is several peers at once.

    Args:
        peers: models.

    Raises:
        UserError: names the first two that are one.
    """
    first: dict[int, int] = {}
    for k, peer in enumerate(peers, start=1):
        if first.setdefault(id(peer), k) != k:
            raise UserError(
                f"peers holds {peer.name!r} twice, at places {first[id(peer)]} and {k}: every peer "
                "must be a model of its own."
            )
