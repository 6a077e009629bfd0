"""Who receives from whom, and the synchronous update of all peers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kgraft import equations
from kgraft.equations import Float64


def donors(healthy: Sequence[bool]) -> tuple[int | None, ...]:
    """The donor of every peer: the nearest healthy peer before it in the ring.

    Args:
        healthy: for each peer whether all its weights are finite.

    Returns:
        For each peer the position of its donor; None for a peer that is not healthy (no blend can
        bring it back) and for one that has no healthy peer beside itself.

    Example:
        >>> donors([True, True, True])
        (2, 0, 1)
        >>> donors([True, False, True])
        (2, None, 0)
    """
    count = len(healthy)

    def before(k: int) -> int | None:
        if not healthy[k]:
            return None
        candidates = ((k - step) % count for step in range(1, count))
        return next((j for j in candidates if healthy[j]), None)

    return tuple(before(k) for k in range(count))


def heirs(healthy: Sequence[bool]) -> dict[int, int]:
    """For every peer that is not healthy the nearest healthy one before it in the ring, if any.

    Args:
        healthy: for each peer whether all its weights are finite.

    Example:
        >>> heirs([True, False, False])
        {1: 0, 2: 0}
    """
    count = len(healthy)
    found = {}
    for k in (k for k in range(count) if not healthy[k]):
        before = ((k - step) % count for step in range(1, count))
        source = next((j for j in before if healthy[j]), None)
        if source is not None:
            found[k] = source
    return found


def sick_of(healthy: Sequence[bool]) -> frozenset[int]:
    """Peers whose weights are not finite, counted from 0."""
    return frozenset(k for k, well in enumerate(healthy) if not well)


def ring_mix(
    values: Sequence[Any], alphas: Sequence[float], ring: Sequence[int | None]
) -> list[Any]:
    """One weight of all peers after grafting; every donor is the value *before* it.

    Args:
        values: the weight in each peer, equal shapes.
        alphas: for each peer the share of its own value that it keeps.
        ring: for each peer its donor, None for a peer that keeps what it has.

    Returns:
        The K new values; for a peer without a donor, its value itself.

    Example:
        >>> weights = list(np.float32([1, 2, 3]))
        >>> [float(v) for v in ring_mix(weights, [0.5] * 3, donors([True] * 3))]
        [2.0, 1.5, 2.5]

    Source: arXiv 2004.12311, Alg. 1.
    """
    return [
        own if donor is None else equations.blend(own, values[donor], alpha)
        for own, alpha, donor in zip(values, alphas, ring, strict=True)
    ]


@dataclass(frozen=True)
class GraftRecord:
    """What one grafting measured and did.

    Attributes:
        groups: name of every plan group, G of them.
        information: each peer's information before the blend, shape `(K, G)`, float64.
        coefficients: share of its own weights that each peer kept, shape `(K, G)`, float64; 1
            where a peer had no donor.
        donors: each peer's donor, None where it had none.
        sick: peers whose weights were not finite, counted from 0: they give nothing to others.
    """

    groups: tuple[str, ...]
    information: Float64
    coefficients: Float64
    donors: tuple[int | None, ...]
    sick: frozenset[int] = frozenset()

    @property
    def mean_coefficients(self) -> Float64:
        """Mean coefficient of each peer over its groups, shape `(K,)`."""
        return self.coefficients.mean(axis=1)

    def to_rows(self, **extra: Any) -> list[dict[str, Any]]:
        """One JSON-able row per peer and group; peers are counted from 1.

        Args:
            extra: entries that stand in every row, e.g. `epoch=3`.

        Returns:
            Rows with `peer`, `group`, `information`, `donor`, `donor_information`, `coefficient`.
        """
        return [
            {
                **extra,
                "peer": k + 1,
                "group": name,
                "information": _number(self.information[k, g]),
                "donor": None if donor is None else donor + 1,
                "donor_information": None if donor is None else _number(self.information[donor, g]),
                "coefficient": _number(self.coefficients[k, g]),
            }
            for k, donor in enumerate(self.donors)
            for g, name in enumerate(self.groups)
        ]


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
