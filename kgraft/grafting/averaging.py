"""Mixers that know no entropy: a constant ring, and a shuffle."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras
import numpy as np

from kgraft.grafting.arrays import on_host
from kgraft.grafting.mixer import Mixer
from kgraft.grafting.plan import GraftPlan
from kgraft.grafting.population import Population, population
from kgraft.grafting.ring import GraftRecord, donors, ring_mix, sick_of
from kgraft.grafting.settings import check_count, check_share


@dataclass(frozen=True)
class FixedGraft(Mixer):
    """The ring with one coefficient for every layer, whatever the layers hold.

    When: to see what the entropy adds to the blending. Cost: a grafting's without the counting.

    Args:
        alpha: share of its own weights that every peer keeps, in [0, 1].

    Raises:
        UserError: `alpha` is out of range.

    Source: arXiv 2004.12311, eq. 2 with a constant alpha; 0.5 is what their grafting+ script
    computes, by mistake.
    """

    alpha: float = 0.5

    def __post_init__(self) -> None:
        check_share(self, "alpha")

    def apply(
        self, models: Sequence[keras.Model], plan: GraftPlan | None = None, epoch: int = 0
    ) -> GraftRecord:
        """See `Mixer`."""
        plan = plan or self.check(models)
        peers = population(models)
        healthy = healthy_of(peers, len(models))
        ring = donors(healthy)
        alphas = [1.0 if donor is None else self.alpha for donor in ring]
        peers.mix(plan.blended, partial(ring_mix, alphas=alphas, ring=ring))
        peers.commit()
        return record_of(plan, alphas, ring, healthy)


@dataclass(frozen=True)
class Rotation(FixedGraft):
    """Peers pass their weights on: each goes on training with those of the peer before it.

    When: as an ablation; every network is seen by every peer's data order and learning rate, and
    none is blended. Cost: a grafting's without the counting.

    Source: a reader's report on the authors' grafting+ script; their master branch has none.
    """

    alpha: float = 0.0


@dataclass(frozen=True)
class Wash(Mixer):
    """After every step a small random share of the parameters is shuffled among the peers.

    Each chosen parameter is dealt anew: every peer gets the value of some peer, each value goes to
    one. Early layers are shuffled most: the share falls linearly from `share` in the first group
    of the plan to 0 in the last. Optimizer state and batch statistics stay where they are.

    When: to end with peers that can be averaged into one (`kgraft select`). Cost: one pass over all
    weights after every step.

    Args:
        share: probability that a parameter of the first layer is shuffled, in [0, 1].
        by_depth: False for the same share in all layers.
        seed: which parameters, and how, follows from it and from the step's number.
        every_steps: shuffle after every n-th step.

    Raises:
        UserError: an argument is out of range.

    Source: Fournier et al., "WASH: Train your Ensemble with Communication-Efficient Weight
    Shuffling, then Average", arXiv 2405.17517.
    """

    share: float = 0.001
    by_depth: bool = True
    seed: int = 0
    every_steps: int | None = 1

    def __post_init__(self) -> None:
        check_share(self, "share")
        check_count(self, "every_steps")
        check_count(self, "seed", least=0)

    def step(self, models: Sequence[keras.Model], plan: GraftPlan, number: int) -> None:
        """See `Mixer`."""
        peers = population(models)
        healthy = np.flatnonzero(healthy_of(peers, len(models))).tolist()
        if len(healthy) < 2:
            return
        random = np.random.default_rng([self.seed, number])
        trained = {id(v) for v in models[0].trainable_variables}
        moves = [id(weight) in trained for weight in models[0].weights]
        last = max(len(plan.groups) - 1, 1)
        for g, group in enumerate(plan.groups):
            share = self.share * (1 - g / last) if self.by_depth else self.share
            members = [index for index in group.members if moves[index]]
            peers.mix(members, partial(_shuffled, share=share, random=random, among=healthy))
        peers.commit()


def _shuffled(
    values: list[Any], *, share: float, random: np.random.Generator, among: Sequence[int]
) -> list[Any]:
    size = int(np.prod(values[0].shape))
    chosen = random.choice(size, random.binomial(size, share), replace=False)
    if not len(chosen):
        return values
    flat = {k: on_host(values[k]).reshape(-1) for k in among}
    dealt = np.argsort(random.random((len(among), len(chosen))), axis=0)
    drawn = np.take_along_axis(np.stack([flat[k][chosen] for k in among]), dealt, axis=0)
    for k, own in zip(among, drawn, strict=True):
        flat[k][chosen] = own
    return [flat[k].reshape(value.shape) if k in flat else value for k, value in enumerate(values)]


def healthy_of(peers: Population, count: int) -> list[bool]:
    """For each of `count` peers whether all its weights are finite."""
    return [peers.is_finite(k) for k in range(count)]


def record_of(
    plan: GraftPlan,
    alphas: Sequence[float],
    ring: tuple[int | None, ...],
    healthy: Sequence[bool],
) -> GraftRecord:
    """What a mixing with one coefficient for all groups did; nothing was measured.

    Args:
        plan: the peers' plan.
        alphas: each peer's coefficient.
        ring: each peer's donor.
        healthy: for each peer whether its weights were finite.
    """
    shape = (len(alphas), len(plan.groups))
    return GraftRecord(
        groups=tuple(group.name for group in plan.groups),
        information=np.full(shape, np.nan),
        coefficients=np.broadcast_to(np.asarray(alphas, np.float64)[:, None], shape).copy(),
        donors=ring,
        sick=sick_of(healthy),
    )
