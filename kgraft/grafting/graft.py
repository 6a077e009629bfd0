"""Grafting: the entropy-weighted ring (external scion)."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import keras
import numpy as np

from kgraft import equations
from kgraft.errors import UserError
from kgraft.grafting import criteria
from kgraft.grafting.criteria import Criterion, Entropy, called_in_errors
from kgraft.grafting.mixer import EpochMixer, State
from kgraft.grafting.peers import Moment, Peers, plan_of
from kgraft.grafting.plan import GraftPlan, Grouping
from kgraft.grafting.population import Population
from kgraft.grafting.ring import GraftRecord, donors, heirs, sick_of
from kgraft.parts import called
from kgraft.settings import setting

_log = logging.getLogger("kgraft")


@dataclass(frozen=True)
class Graft(EpochMixer):
    """The external scion: each layer is blended with the same layer of the previous peer.

    When: at the end of every epoch, for K >= 2 peers of one architecture. Cost: one pass over the
    kernels to count bins and one over all weights to blend; meanwhile the memory of the weights
    once more on the CPU, about twice more on an accelerator.

    Args:
        criterion: what a layer's information is: `"entropy"` (eq. 6, the papers' choice),
            `"filter-entropy"` (eq. 5), `"l1"` (eq. 3), a `Criterion`, or a function of a kernel's
            NumPy weights.
        amplitude: A of eq. 7, in [0, 1]; 0 is the plain mean of the two peers.
        sharpness: c of eq. 7, 1/nats.
        grouping: which weights share a coefficient, see `GraftPlan.of`.
        decimals: coefficients are rounded to so many decimals; None for no rounding. At most 15:
            a float64 has no more that are sure, and rounding to them changes nothing.
        blend_frozen: blend frozen weights (`trainable=False`) too; by default they are left alone.
        revive: a peer whose weights are not finite starts again from those of its donor, with an
            optimizer whose momenta are 0; by default it keeps what it has and is no donor.
        every: see `EpochMixer`, as `epochs` and `evaluate`.

    Raises:
        UserError: an argument is out of range or unknown.

    Example:
        >>> Graft(criterion="l1", amplitude=0.2).coefficients(np.array([[3.0], [3.0]]), (1, 0))
        array([[0.5],
               [0.5]])

    Source: Meng et al., CVPR 2020, eq. 2, 6, 7 and Alg. 1.
    """

    name = "graft"
    peers = 4
    least = 2
    criterion: str | Criterion | Callable[[np.ndarray], float] = setting(
        "entropy", parts=criteria.BY_NAME
    )
    amplitude: float = setting(0.4, low=0.0, high=1.0)
    sharpness: float = setting(500.0, above=0)
    grouping: Grouping = setting("default")
    decimals: int | None = setting(None, low=1, high=15)
    blend_frozen: bool = setting(False)
    revive: bool = setting(False)

    def __post_init__(self) -> None:
        criteria.get(self.criterion)
        super().__post_init__()

    @classmethod
    def authors(cls, **changes: Any) -> "Graft":
        """The authors' code: its float32 binning, coefficients rounded to 2 decimals, its groups.

        Args:
            changes: arguments of `Graft` that differ from that.
        """
        return replace(
            cls(criterion=Entropy(binning="authors"), grouping="authors", decimals=2), **changes
        )

    def plan(self, models: Sequence[keras.Model]) -> GraftPlan:
        """See `Mixer`."""
        return plan_of(models, self.grouping, blend_frozen=self.blend_frozen)

    def coefficients(self, information: np.ndarray, ring: Sequence[int | None]) -> np.ndarray:
        """Share of its own weights that every peer keeps in every group (eq. 7).

        Args:
            information: shape `(K, G)`.
            ring: each peer's donor, None for a peer that keeps what it has.

        Returns:
            Shape `(K, G)`, float64; 1 where there is no donor.
        """
        alphas = np.ones(information.shape, np.float64)
        for k, donor in enumerate(ring):
            if donor is not None:
                alphas[k] = equations.graft_coefficient(
                    information[k],
                    information[donor],
                    amplitude=self.amplitude,
                    sharpness=self.sharpness,
                )
        return alphas if self.decimals is None else np.round(alphas, self.decimals)

    def ahead(self, peers: Peers) -> None:
        """See `Mixer`."""
        peers.send_ahead()

    def apply(self, peers: Peers, state: State, moment: Moment) -> tuple[State, GraftRecord]:
        """Graft K peers in place, all at once; the same in every epoch; see `Mixer`.

        Information is measured on the weights before the blend. A peer with a weight that is not
        finite is never a donor and the ring closes without it, which is logged as a warning; it
        keeps what it has, or takes what its donor has before the blend.
        """
        plan, weights = peers.plan, peers.population()
        healthy = [weights.is_finite(k) for k in range(len(peers))]
        ring = donors(healthy)
        inherits = heirs(healthy) if self.revive else {}
        revived = {k: donor for k, donor in inherits.items() if k not in peers.lost}
        if revived:
            everything = range(len(peers.models[0].weights))
            weights.mix(everything, partial(_inherited, heirs=revived))
        well = [k for k in peers.places if healthy[k]]
        measured = dict(zip(well, self._measure(weights, well, plan), strict=True))
        nothing = np.full(len(plan.groups), np.nan)
        told = peers.gather([measured.get(k, nothing) for k in peers.places])
        information = np.array([nothing if own is None else own for own in told])
        alphas = self.coefficients(information, ring)
        weights.graft([group.members for group in plan.groups], alphas, ring)
        weights.commit()
        for k in revived:
            peers.restart(k)
            alphas[k] = 0.0
        return state, GraftRecord(
            groups=tuple(group.name for group in plan.groups),
            information=information,
            coefficients=alphas,
            donors=tuple(revived.get(k, donor) for k, donor in enumerate(ring)),
            sick=sick_of(healthy) - peers.lost,
        )

    def _measure(self, weights: Population, peers: Sequence[int], plan: GraftPlan) -> np.ndarray:
        """Information of every group's kernel in some peers, which are healthy."""
        criterion = criteria.get(self.criterion)
        if type(criterion) is Entropy:
            counts = weights.counts(peers, plan.kernels, criterion.edges)
            if counts is not None:
                sizes = [int(np.prod(group.kernel_shape)) for group in plan.groups]
                return equations.entropy(counts, sizes)
        axes = [group.filter_axes for group in plan.groups]
        read = weights.on_host if isinstance(criterion, criteria.READ_ON_HOST) else weights.weights
        what = f"criterion {type(criterion).__name__}"
        found = [called(what, criterion.information, read(k, plan.kernels), axes) for k in peers]
        return np.array([self._checked(own, plan) for own in found]).reshape(-1, len(axes))

    def _checked(self, information: Any, plan: GraftPlan) -> np.ndarray:
        name = called_in_errors(self.criterion)
        if np.shape(information) != (len(plan.groups),):
            raise UserError(
                f"criterion {name} gave information of shape {np.shape(information)} "
                f"for {len(plan.groups)} kernels: it must return one number a kernel."
            )
        if not np.isfinite(information).all():
            worst = int(np.flatnonzero(~np.isfinite(information))[0])
            raise UserError(
                f"criterion {name} gave {information[worst]} for "
                f"{plan.groups[worst].name}, whose weights are finite: it must return a number."
            )
        return information


def warn_of_sick_peers(record: GraftRecord, told: set[int]) -> None:
    """Log, once a peer, that its weights are not finite, and what becomes of it.

    Args:
        record: the grafting just done.
        told: peers that were named before, counted from 0; grows.
    """
    for k in sorted(record.sick - told):
        donor = record.donors[k]
        _log.warning(
            "peer %d has weights that are not finite: %s. A lower learning rate may keep it alive.",
            k + 1,
            "it is no donor any more, its receiver takes from the peer before it"
            if donor is None
            else f"it starts again from those of peer {donor + 1}",
        )
    told.update(k for k in record.sick if record.donors[k] is None)


def _inherited(values: list[Any], *, heirs: dict[int, int]) -> list[Any]:
    return [values[heirs.get(k, k)] for k in range(len(values))]
