"""Scions that need no peer: noise, and a layer's own strongest filters."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kgraft import equations
from kgraft.grafting.mixer import EpochMixer, State
from kgraft.grafting.peers import Moment, Peers
from kgraft.grafting.plan import Group
from kgraft.settings import setting


@dataclass(frozen=True)
class Noise(EpochMixer):
    """Invalid filters get noise added at the end of every epoch (eq. 1).

    When: as the weakest of the papers' three scions; it works with a single network. Cost: one
    pass over the kernels.

    Args:
        decay: a, in (0, 1): the noise of epoch t has the standard deviation a^t. The papers do not
            say theirs; the authors' code of February 2020 has 0.975, with a threshold of 0.1.
        threshold: gamma; a filter with a smaller l1 norm is invalid.
        seed: the noise follows from it, from the epoch and from the peer.
        every: see `EpochMixer`, as `epochs` and `evaluate`.

    Raises:
        UserError: an argument is out of range.

    Source: arXiv 2004.12311, eq. 1; a and gamma, which it does not name, are the authors' code's.
    """

    name = "noise"
    decay: float = setting(0.975, above=0, below=1)
    threshold: float = setting(0.1, above=0)
    seed: int = setting(0, low=0, key=False)

    def apply(self, peers: Peers, state: State, moment: Moment) -> tuple[State, None]:
        """See `Mixer`."""
        scale = equations.noise_scale(self.decay, moment.epoch)

        def grown(kernel: Any, group: Group, k: int) -> Any:
            random = np.random.default_rng([self.seed, moment.epoch, k, group.kernel])
            noise = random.normal(0.0, scale, group.kernel_shape).astype("float32")
            return equations.noise_scion(
                kernel,
                keras.ops.convert_to_tensor(noise, kernel.dtype),
                threshold=self.threshold,
                filter_axes=group.filter_axes,
            )

        _each_kernel(peers, grown)
        return state, None


@dataclass(frozen=True)
class Internal(EpochMixer):
    """Invalid filters get the weights of the layer's strongest ones added, at every epoch's end.

    The i-th largest filter (by l1 norm) is added to the i-th smallest, where that is invalid.

    When: with a single network, where there is no peer to graft from. Cost: one pass over the
    kernels.

    Args:
        threshold: gamma; a filter with a smaller l1 norm is invalid.
        every: see `EpochMixer`, as `epochs` and `evaluate`.

    Raises:
        UserError: `threshold` is not a positive, finite number.

    Source: arXiv 2004.12311, internal scion (theorem 1).
    """

    name = "internal"
    threshold: float = setting(0.1, above=0)

    def apply(self, peers: Peers, state: State, moment: Moment) -> tuple[State, None]:
        """See `Mixer`."""

        def grown(kernel: Any, group: Group, k: int) -> Any:
            return equations.internal_scion(
                kernel, threshold=self.threshold, filter_axes=group.filter_axes
            )

        _each_kernel(peers, grown)
        return state, None


def _each_kernel(peers: Peers, grown: Callable[[Any, Group, int], Any]) -> None:
    """Replace every group's kernel in every peer whose weights are finite."""
    plan, weights = peers.plan, peers.population()
    for k in peers.places:
        if not weights.is_finite(k):
            continue
        for group, kernel in zip(plan.groups, weights.weights(k, plan.kernels), strict=True):
            weights.replace(k, group.kernel, grown(keras.ops.convert_to_tensor(kernel), group, k))
    weights.commit()
