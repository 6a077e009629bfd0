"""Scions that need no peer: noise, and a layer's own strongest filters."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kgraft import equations
from kgraft.grafting.mixer import Mixer
from kgraft.grafting.plan import GraftPlan, Group
from kgraft.grafting.population import population
from kgraft.grafting.ring import GraftRecord
from kgraft.grafting.settings import check_count, check_positive, check_share


@dataclass(frozen=True)
class Noise(Mixer):
    """Invalid filters get noise added at the end of every epoch (eq. 1).

    When: as the weakest of the papers' three scions; it works with a single network. Cost: one
    pass over the kernels.

    Args:
        decay: a, in (0, 1): the noise of epoch t has the standard deviation a^t. The papers do not
            say theirs; the authors' code of February 2020 has 0.975, with a threshold of 0.1.
        threshold: gamma; a filter with a smaller l1 norm is invalid.
        seed: the noise follows from it, from the epoch and from the peer.

    Raises:
        UserError: an argument is out of range.

    Source: arXiv 2004.12311, eq. 1; a and gamma, which it does not name, are the authors' code's.
    """

    decay: float = 0.975
    threshold: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        check_share(self, "decay", ends=False)
        check_positive(self, "threshold")
        check_count(self, "seed", least=0)

    def apply(
        self, models: Sequence[keras.Model], plan: GraftPlan | None = None, epoch: int = 0
    ) -> GraftRecord | None:
        """See `Mixer`."""
        scale = equations.noise_scale(self.decay, epoch)

        def grown(kernel: Any, group: Group, k: int) -> Any:
            random = np.random.default_rng([self.seed, epoch, k, group.kernel])
            noise = random.normal(0.0, scale, group.kernel_shape).astype("float32")
            return equations.noise_scion(
                kernel,
                keras.ops.convert_to_tensor(noise, kernel.dtype),
                threshold=self.threshold,
                filter_axes=group.filter_axes,
            )

        _each_kernel(models, plan or self.check(models), grown)
        return None


@dataclass(frozen=True)
class Internal(Mixer):
    """Invalid filters get the weights of the layer's strongest ones added, at every epoch's end.

    The i-th largest filter (by l1 norm) is added to the i-th smallest, where that is invalid.

    When: with a single network, where there is no peer to graft from. Cost: one pass over the
    kernels.

    Args:
        threshold: gamma; a filter with a smaller l1 norm is invalid.

    Raises:
        UserError: `threshold` is not a positive, finite number.

    Source: arXiv 2004.12311, internal scion (theorem 1).
    """

    threshold: float = 0.1

    def __post_init__(self) -> None:
        check_positive(self, "threshold")

    def apply(
        self, models: Sequence[keras.Model], plan: GraftPlan | None = None, epoch: int = 0
    ) -> GraftRecord | None:
        """See `Mixer`."""

        def grown(kernel: Any, group: Group, k: int) -> Any:
            return equations.internal_scion(
                kernel, threshold=self.threshold, filter_axes=group.filter_axes
            )

        _each_kernel(models, plan or self.check(models), grown)
        return None


def _each_kernel(
    models: Sequence[keras.Model], plan: GraftPlan, grown: Callable[[Any, Group, int], Any]
) -> None:
    """Replace every group's kernel in every peer whose weights are finite."""
    peers = population(models)
    for k in range(len(models)):
        if not peers.is_finite(k):
            continue
        for group, kernel in zip(plan.groups, peers.weights(k, plan.kernels), strict=True):
            peers.replace(k, group.kernel, grown(keras.ops.convert_to_tensor(kernel), group, k))
    peers.commit()
