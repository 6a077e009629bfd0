"""Fewer points of a line and fewer columns of a map, so that a page of a long run stays small."""

from itertools import pairwise

import numpy as np

CODES = 255
"""Steps that a map's values are told in; the code above them is for where there is none."""


def thinned(values: np.ndarray, most: int) -> np.ndarray:
    """Places of a line's points that are kept: its ends, and what is lowest and highest between.

    The line is cut into parts of equal length, and of each the lowest and the highest point stay,
    so that no peak is lost.

    Args:
        values: `(points,)`; nan where there is none.
        most: how many may stay, 4 or more.

    Returns:
        Rising places, int64 `(kept,)`; all of them where there are few enough.

    Example:
        >>> thinned(np.array([0.0, 1, 2, 9, 3, 2, 1, 0, 0, 0]), 6)
        array([0, 3, 5, 7, 9])
    """
    if len(values) <= most:
        return np.arange(len(values))
    bounds = np.linspace(0, len(values), (most - 2) // 2 + 1).round().astype(int)
    kept = [0, len(values) - 1]
    for first, end in pairwise(bounds.tolist()):
        part = values[first:end]
        known = np.flatnonzero(np.isfinite(part))
        if len(known):
            kept += [first + known[part[known].argmin()], first + known[part[known].argmax()]]
        else:
            kept.append(first)  # a gap stays one
    return np.unique(kept)


def columns(count: int, most: int) -> np.ndarray:
    """Places of the columns that are kept, at even distances, the first and the last among them.

    Args:
        count: how many there are.
        most: how many may stay, 2 or more.

    Example:
        >>> columns(10, 4)
        array([0, 3, 6, 9])
    """
    return np.linspace(0, count - 1, min(count, most)).round().astype(int)


def coded(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Values as bytes: 0 for the lowest, `CODES` - 1 for the highest, `CODES` for nan.

    Args:
        values: any shape.
        low: what 0 means.
        high: what `CODES` - 1 means; as much as `low` where all are the same.

    Returns:
        uint8, of the same shape; decoded they are within half a step, (high - low) / 508.

    Example:
        >>> coded(np.array([1.0, 1.5, 2.0, np.nan]), 1.0, 2.0)
        array([  0, 127, 254, 255], dtype=uint8)
    """
    span = high - low or 1.0
    scaled = np.rint((values - low) / span * (CODES - 1))
    return np.where(np.isfinite(values), np.clip(scaled, 0, CODES - 1), CODES).astype(np.uint8)
