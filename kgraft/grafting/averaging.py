"""Mixers that know no entropy: a constant ring, and a shuffle."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from kgraft.grafting.arrays import host_copy
from kgraft.grafting.mixer import EpochMixer, State, StepMixer
from kgraft.grafting.peers import Moment, Peers
from kgraft.grafting.population import Population
from kgraft.grafting.ring import GraftRecord, donors, sick_of
from kgraft.settings import setting


@dataclass(frozen=True)
class FixedGraft(EpochMixer):
    """The ring with one coefficient for every layer, whatever the layers hold.

    When: to see what the entropy adds to the blending. Cost: a grafting's without the counting.

    Args:
        alpha: share of its own weights that every peer keeps, in [0, 1].
        every: see `EpochMixer`, as `epochs` and `evaluate`.

    Raises:
        UserError: `alpha` is out of range.

    Source: arXiv 2004.12311, eq. 2 with a constant alpha; 0.5 is what their grafting+ script
    computes, by mistake.
    """

    name = "fixed"
    peers = 4
    least = 2
    alpha: float = setting(0.5, low=0.0, high=1.0)

    def ahead(self, peers: Peers) -> None:
        """See `Mixer`."""
        peers.send_ahead()

    def apply(self, peers: Peers, state: State, moment: Moment) -> tuple[State, GraftRecord]:
        """See `Mixer`."""
        return state, _ring(peers, self.alpha)


@dataclass(frozen=True)
class Rotation(EpochMixer):
    """Peers pass their weights on: each goes on training with those of the peer before it.

    When: as an ablation; every network is seen by every peer's data order and learning rate, and
    none is blended. Cost: a grafting's without the counting.

    Args:
        every: see `EpochMixer`, as `epochs` and `evaluate`.

    Source: a reader's report on the authors' grafting+ script; their master branch has none.
    """

    name = "rotation"
    peers = 4
    least = 2

    def ahead(self, peers: Peers) -> None:
        """See `Mixer`."""
        peers.send_ahead()

    def apply(self, peers: Peers, state: State, moment: Moment) -> tuple[State, GraftRecord]:
        """See `Mixer`."""
        return state, _ring(peers, 0.0)


@dataclass(frozen=True)
class Wash(StepMixer):
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

    name = "wash"
    peers = 4
    least = 2
    share: float = setting(0.001, low=0.0, high=1.0)
    by_depth: bool = setting(True)
    seed: int = setting(0, low=0, key=False)
    every_steps: int = setting(1, low=1)

    def apply(self, peers: Peers, state: State, moment: Moment) -> tuple[State, None]:
        """See `Mixer`."""
        weights, model, groups = peers.population(), peers.models[0], peers.plan.groups
        healthy = np.flatnonzero(healthy_of(weights, len(peers))).tolist()
        if len(healthy) < 2:
            return state, None
        random = np.random.default_rng([self.seed, moment.step])
        trained = {id(v) for v in model.trainable_variables}
        moves = [id(weight) in trained for weight in model.weights]
        last = max(len(groups) - 1, 1)
        for g, group in enumerate(groups):
            share = self.share * (1 - g / last) if self.by_depth else self.share
            members = [index for index in group.members if moves[index]]
            weights.mix(members, partial(_shuffled, share=share, random=random, among=healthy))
        weights.commit()
        return state, None


def _ring(peers: Peers, alpha: float) -> GraftRecord:
    """Blend every peer with the one before it by one coefficient."""
    weights = peers.population()
    healthy = healthy_of(weights, len(peers))
    ring = donors(healthy)
    alphas = [1.0 if donor is None else alpha for donor in ring]
    weights.graft([peers.plan.blended], np.array(alphas)[:, None], ring)
    weights.commit()
    return record_of(peers, alphas, ring, healthy)


def _shuffled(
    values: list[Any], *, share: float, random: np.random.Generator, among: Sequence[int]
) -> list[Any]:
    size = int(np.prod(values[0].shape))
    chosen = random.choice(size, random.binomial(size, share), replace=False)
    if not len(chosen):
        return values
    flat = {k: host_copy(values[k]).reshape(-1) for k in among}
    dealt = np.argsort(random.random((len(among), len(chosen))), axis=0)
    drawn = np.take_along_axis(np.stack([flat[k][chosen] for k in among]), dealt, axis=0)
    for k, own in zip(among, drawn, strict=True):
        flat[k][chosen] = own
    return [flat[k].reshape(value.shape) if k in flat else value for k, value in enumerate(values)]


def healthy_of(peers: Population, count: int) -> list[bool]:
    """For each of `count` peers whether all its weights are finite."""
    return [peers.is_finite(k) for k in range(count)]


def record_of(
    peers: Peers,
    alphas: Sequence[float],
    ring: tuple[int | None, ...],
    healthy: Sequence[bool],
) -> GraftRecord:
    """What a mixing with one coefficient for all groups did; nothing was measured.

    Args:
        peers: all of them.
        alphas: each peer's coefficient.
        ring: each peer's donor.
        healthy: for each peer whether its weights were finite.
    """
    groups = peers.plan.groups
    shape = (len(alphas), len(groups))
    return GraftRecord(
        groups=tuple(group.name for group in groups),
        information=np.full(shape, np.nan),
        coefficients=np.broadcast_to(np.asarray(alphas, np.float64)[:, None], shape).copy(),
        donors=ring,
        sick=sick_of(healthy) - peers.lost,
    )
