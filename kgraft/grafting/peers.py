"""K peers with what they have in common, and the moments at which they are mixed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import keras
import numpy as np

from kgraft.errors import UserError, told
from kgraft.grafting.averages import Averages, Kept, WithAverages, forget
from kgraft.grafting.linked import Linked, LinkedAverages
from kgraft.grafting.plan import GraftPlan, Grouping
from kgraft.grafting.population import Local, Population, population
from kgraft.links.link import Here, Link


@dataclass(frozen=True)
class Peers:
    """K peers of one architecture, of which this process holds some, usually all.

    Attributes:
        models: those of this process, built, in ring order: peer k receives from peer k - 1.
        plan: what is blended with what in all of them.
        averages: what their optimizers keep as averages of the weights and is mixed with them, one
            a model; none of any by default.
        trained: the models whose optimizers move them, e.g. the Distillers around them; themselves
            by default.
        link: how the others are reached; by default there are none.
    """

    models: Sequence[keras.Model]
    plan: GraftPlan
    averages: Sequence[Averages] = ()
    trained: Sequence[keras.Model] = ()
    link: Link = field(default_factory=Here)

    def __post_init__(self) -> None:
        if not self.link.holds:
            self.link.join(len(self.models))

    def __len__(self) -> int:
        """K, wherever they are."""
        return self.link.count

    @property
    def places(self) -> range:
        """Where in the ring each of `models` is, counted from 0."""
        return self.link.here

    @property
    def lost(self) -> frozenset[int]:
        """Places of peers that are in the ring no more."""
        return self.link.lost

    def gather(self, values: Sequence[Any], *, opens: bool = False) -> list[Any]:
        """What all K peers have to say, some kilobytes each.

        Args:
            values: one for each of `models`, JSON-able or NumPy arrays.
            opens: see `Link.gather_small`.

        Returns:
            One a peer; None for one that is lost.
        """
        found: list[Any] = [None] * len(self)
        for rank, own in self.link.gather_small(list(values), opens=opens).items():
            for k, value in zip(self.link.holds[rank], own, strict=True):
                found[k] = value
        return found

    def population(self) -> Population:
        """All K peers' weights as they are now, to be read and mixed, with their averages."""
        own, averages = population(self.models), self.averages or [{}] * len(self.models)
        kept = [*map(bool, averages)]
        if isinstance(self.link, Here):
            return WithAverages(own, self._averages(averages)) if any(kept) else own
        well = [own.is_finite(k) for k in range(len(self.models))]
        told = self.gather([[*pair] for pair in zip(well, kept, strict=True)], opens=True)
        healthy = [bool(said and said[0]) for said in told]
        weights = Linked(own, self.link, healthy)
        if not any(said and said[1] for said in told):
            return weights
        return WithAverages(weights, LinkedAverages(self._averages(averages), self.link, healthy))

    def alone(self) -> "Peers":
        """Those of this process as a ring of their own, which waits for nobody."""
        return replace(self, link=Here())

    def _averages(self, averages: Sequence[Averages]) -> Local:
        return population(list(map(Kept.of, self.models, averages)))

    def send_ahead(self) -> None:
        """Send the last peer here to the next one's process while other things are done.

        A ring of healthy peers needs just that; whatever else it needs is sent when it does.
        """
        link = self.link
        if len(link.members) == 1:
            return
        after, before = link.here.stop % link.count, (link.here.start - 1) % link.count
        if {after, before} & link.lost:
            return
        own, members = population(self.models), self.plan.blended
        row = own.flat(len(self.models) - 1, members)
        link.send_ahead({link.owner(after): row}, {link.owner(before): np.empty_like(row)})

    def restart(self, k: int) -> None:
        """Let the optimizer of peer k, counted from 0, forget how the weights have moved."""
        if k in self.places:
            forget((self.trained or self.models)[k - self.places.start])


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
