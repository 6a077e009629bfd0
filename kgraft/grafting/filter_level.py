"""Grafting filter by filter, weighted by the scales of batch normalisation."""

from collections.abc import Sequence
from dataclasses import dataclass

import keras
import numpy as np

from kgraft.errors import UserError
from kgraft.grafting.chains import Chain, chains
from kgraft.grafting.mixer import EpochMixer, State
from kgraft.grafting.peers import Moment, Peers, plan_of
from kgraft.grafting.plan import GraftPlan
from kgraft.grafting.ring import GraftRecord, donors, sick_of
from kgraft.settings import setting


@dataclass(frozen=True)
class FilterGraft(EpochMixer):
    """The ring with a coefficient for every filter: alpha = |gamma| / (|gamma| + |gamma_donor|).

    gamma is the scale of the batch normalisation that follows the convolution. A filter's alpha
    blends its weights, its entries in the batch normalisation and, where exactly one convolution
    reads its output, that convolution's weights for it: there the shares multiply, so that every
    filter's alpha is applied once. Convolutions without batch normalisation, dense layers and
    frozen weights keep what they have.

    When: for networks without shortcuts (VGG), as the authors do. Cost: that of a grafting.

    Args:
        biases: whether the convolutions' biases are blended too; in the authors' script they never
            are.
        every: see `EpochMixer`, as `epochs` and `evaluate`.

    Source: the authors' filter-level script (VGG16, the table in their code's readme); it blends
    whole batch normalisation vectors once a channel, kgraft once.
    """

    name = "filter-graft"
    peers = 4
    least = 2
    biases: bool = setting(True)

    def plan(self, models: Sequence[keras.Model]) -> GraftPlan:
        """See `Mixer`; refuses a model without a convolution that batch normalisation follows."""
        plan = plan_of(models)
        if not _blended_chains(models[0], plan):
            raise UserError(
                f"model {models[0].name!r} has no convolution followed by batch normalisation that "
                "trains: filter-level grafting is weighted by its scale."
            )
        return plan

    def apply(self, peers: Peers, state: State, moment: Moment) -> tuple[State, GraftRecord]:
        """See `Mixer`."""
        plan, weights = peers.plan, peers.population()
        healthy = [weights.is_finite(k) for k in range(len(peers))]
        ring = donors(healthy)
        links = _blended_chains(peers.models[0], plan)
        kept = set() if self.biases else {chain.bias for chain in links}
        touched = {index for chain in links for index in chain.weights}
        blended = sorted(touched & set(plan.blended) - kept)
        read = sorted(touched)

        def named(values: Sequence[np.ndarray]) -> dict[int, np.ndarray]:
            return dict(zip(read, map(np.array, values), strict=True))

        before = {k: named(weights.on_host(k, read)) for k in peers.places}
        of_donors = {k: named(own) for k, own in weights.of_donors(read, ring).items()}
        means = {k: np.ones(len(plan.groups)) for k in peers.places}
        group_of = {kernel: g for g, kernel in enumerate(plan.kernels)}
        for k, theirs in of_donors.items():
            own = before[k]
            shares = {index: np.ones(own[index].shape) for index in blended}
            for chain in links:
                alpha = scale_coefficient(own[chain.scale], theirs[chain.scale])
                means[k][group_of[chain.kernel]] = alpha.mean()
                for index, share in shares.items():
                    if index == chain.kernel:
                        share *= _along_filters(alpha, share.shape, chain.depthwise)
                    elif index in chain.vectors:
                        share *= alpha
                    elif index == chain.reader:
                        share *= alpha[:, None]
            for index, share in shares.items():
                mixed = own[index] * share + theirs[index] * (1 - share)
                weights.replace(k, index, mixed.astype(own[index].dtype))
        told = peers.gather([*means.values()])
        weights.commit()
        coefficients = np.array([np.ones(len(plan.groups)) if c is None else c for c in told])
        return state, GraftRecord(
            groups=tuple(group.name for group in plan.groups),
            information=np.full(coefficients.shape, np.nan),
            coefficients=coefficients,
            donors=ring,
            sick=sick_of(healthy) - peers.lost,
        )


def scale_coefficient(own: np.ndarray, donor: np.ndarray) -> np.ndarray:
    """Share of itself that every filter keeps: |gamma| / (|gamma| + |gamma_donor|).

    Args:
        own: the receiver's batch normalisation scales, shape `(filters,)`.
        donor: the donor's.

    Returns:
        Shape `(filters,)`, float64; 1/2 where both scales are 0.

    Example:
        >>> scale_coefficient(np.array([3.0, 0.0]), np.array([-1.0, 0.0])).tolist()
        [0.75, 0.5]
    """
    mine, theirs = np.abs(own.astype(np.float64)), np.abs(donor.astype(np.float64))
    total = mine + theirs
    return np.where(total > 0, mine / np.where(total > 0, total, 1.0), 0.5)


def _along_filters(alpha: np.ndarray, shape: tuple[int, ...], depthwise: bool) -> np.ndarray:
    """A number a filter, laid out to be multiplied with a kernel.

    A depthwise kernel holds channel c's m-th filter at [c, m]; its output has it at c M + m.
    """
    return alpha.reshape(shape[-2:]) if depthwise else alpha


def _blended_chains(model: keras.Model, plan: GraftPlan) -> list[Chain]:
    """Convolutions that train, with batch normalisation after them."""
    return [chain for chain in chains(model) if chain.kernel in plan.kernels]
