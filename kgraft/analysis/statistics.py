"""Means over seeds, and paired differences with their confidence intervals."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import stdtrit


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over seeds.

    Attributes:
        mean: arithmetic mean.
        std: sample standard deviation (n - 1); None for a single value.
        count: number of values.
    """

    mean: float
    std: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Spread of at least one value; nan where one is not finite."""
        std = _deviation(values) if len(values) > 1 else None
        return cls(_mean(values), std, len(values))


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences with its 95 % confidence interval (Student's t).

    Attributes:
        mean: arithmetic mean of the differences.
        low: lower end of the interval; None for a single pair.
        high: upper end.
    """

    mean: float
    low: float | None
    high: float | None


def paired_difference(values: Sequence[float], baseline: Sequence[float]) -> Difference:
    """How much larger `values` are than `baseline`, seed by seed.

    Args:
        values: one a seed.
        baseline: of the same seeds, in the same order.

    Returns:
        Mean and interval; nan where a difference is not finite.

    Raises:
        ValueError: different numbers of values, or none.

    Example:
        >>> found = paired_difference([3.0, 5.0, 4.0], [1.0, 2.0, 3.0])
        >>> found.mean, round(found.low, 3), round(found.high, 3)
        (2.0, -0.484, 4.484)
    """
    differences = [own - other for own, other in zip(values, baseline, strict=True)]
    mean = _mean(differences)
    if len(differences) < 2:
        return Difference(mean, None, None)
    error = _deviation(differences) / math.sqrt(len(differences))
    half = float(stdtrit(len(differences) - 1, 0.975)) * error
    return Difference(mean, mean - half, mean + half)


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if all(map(math.isfinite, values)) else math.nan


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan
