"""Means over seeds, and paired differences with their confidence intervals."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


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
        """Spread of at least one value."""
        std = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), std, len(values))


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences with a confidence interval (Student's t).

    Attributes:
        mean: arithmetic mean of the differences.
        low: lower end of the interval; None for a single pair.
        high: upper end.
    """

    mean: float
    low: float | None
    high: float | None

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low is not None and self.high is not None and self.low * self.high > 0


def paired_difference(
    values: Sequence[float], baseline: Sequence[float], confidence: float = 0.95
) -> Difference:
    """How much larger `values` are than `baseline`, seed by seed.

    Args:
        values: one a seed.
        baseline: of the same seeds, in the same order.
        confidence: level of the interval, in (0, 1).

    Returns:
        Mean and interval.

    Raises:
        ValueError: different numbers of values, or none.

    Example:
        >>> found = paired_difference([3.0, 5.0, 4.0], [1.0, 2.0, 3.0])
        >>> found.mean, round(found.low, 3), round(found.high, 3)
        (2.0, -0.484, 4.484)
    """
    differences = [own - other for own, other in zip(values, baseline, strict=True)]
    mean = statistics.fmean(differences)
    if len(differences) < 2:
        return Difference(mean, None, None)
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    half = t_quantile((1 + confidence) / 2, len(differences) - 1) * error
    return Difference(mean, mean - half, mean + half)


def t_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t distribution.

    Bisection on the distribution function, itself by the trigonometric series for whole degrees of
    freedom (Abramowitz and Stegun 26.7.3 and 26.7.4).

    Args:
        probability: in [0.5, 1).
        freedom: degrees of freedom, 1 or more.

    Example:
        >>> round(t_quantile(0.975, 2), 4), round(t_quantile(0.975, 4), 4)
        (4.3027, 2.7764)
    """
    low, high = 0.0, 1.0
    while _t_below(high, freedom) < probability:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if _t_below(middle, freedom) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _t_below(t: float, freedom: int) -> float:
    angle = math.atan2(t, math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    term = cosine if freedom % 2 else 1.0
    total = 0.0
    first = 3 if freedom % 2 else 2
    for k in range(first, freedom + 1, 2):
        total += term
        term *= cosine**2 * (k - 1) / k
    if freedom % 2:
        within = 2 / math.pi * (angle + sine * total)
    else:
        within = sine * total
    return (1 + within) / 2
