"""Grafting filter by filter, weighted by the scales of batch normalisation."""

from collections.abc import Sequence
from dataclasses import dataclass

import keras
import numpy as np

from kgraft.errors import UserError
from kgraft.grafting.arrays import on_host
from kgraft.grafting.chains import chains
from kgraft.grafting.mixer import Mixer, plan_of
from kgraft.grafting.plan import GraftPlan
from kgraft.grafting.population import population
from kgraft.grafting.ring import GraftRecord, donors, sick_of


@dataclass(frozen=True)
class FilterGraft(Mixer):
    """The ring with a coefficient for every filter: alpha = |gamma| / (|gamma| + |gamma_donor|).

    gamma is the scale of the batch normalisation that follows the convolution. A filter's alpha
    blends its weights, its entries in the batch normalisation and, where exactly one convolution
    reads its output, that convolution's weights for it: there the shares multiply, so that every
    filter's alpha is applied once. Convolutions without batch normalisation and dense layers keep
    what they have.

    When: for networks without shortcuts (VGG), as the authors do. Cost: that of a grafting.

    Source: the authors' filter-level script (VGG16; the table is in its readme, in neither paper);
    it blends whole batch normalisation vectors once a channel, kgraft once.
    """

    def check(self, models: Sequence[keras.Model]) -> GraftPlan:
        """See `Mixer`; refuses a model without a convolution that batch normalisation follows."""
        plan = plan_of(models)
        if not chains(models[0]):
            raise UserError(
                f"model {models[0].name!r} has no convolution followed by batch normalisation: "
                "filter-level grafting is weighted by its scale."
            )
        return plan

    def apply(
        self, models: Sequence[keras.Model], plan: GraftPlan | None = None, epoch: int = 0
    ) -> GraftRecord:
        """See `Mixer`."""
        plan = plan or self.check(models)
        peers = population(models)
        healthy = [peers.is_finite(k) for k in range(len(models))]
        ring = donors(healthy)
        links = chains(models[0])
        blended = sorted({index for chain in links for index in chain.weights})
        before = [
            dict(zip(blended, map(on_host, peers.weights(k, blended)), strict=True))
            for k in range(len(models))
        ]
        means = np.ones((len(models), len(plan.groups)))
        group_of = {kernel: g for g, kernel in enumerate(plan.kernels)}
        for k, donor in enumerate(ring):
            if donor is None:
                continue
            own, theirs = before[k], before[donor]
            shares = {index: np.ones(own[index].shape) for index in blended}
            for chain in links:
                alpha = scale_coefficient(own[chain.scale], theirs[chain.scale])
                means[k, group_of[chain.kernel]] = alpha.mean()
                _multiply(shares[chain.kernel], alpha, chain.axis)
                for index in chain.vectors:
                    shares[index] *= alpha
                if chain.reader is not None:
                    _multiply(shares[chain.reader], alpha, -2)
            for index, share in shares.items():
                mixed = own[index] * share + theirs[index] * (1 - share)
                peers.replace(k, index, mixed.astype(own[index].dtype))
        peers.commit()
        return GraftRecord(
            groups=tuple(group.name for group in plan.groups),
            information=np.full(means.shape, np.nan),
            coefficients=means,
            donors=ring,
            sick=sick_of(healthy),
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


def _multiply(share: np.ndarray, alpha: np.ndarray, axis: int) -> None:
    form = [1] * share.ndim
    form[axis] = -1
    share *= alpha.reshape(form)
