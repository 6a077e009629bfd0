"""Where the floating-point weights of a model lie in a row that holds all of them."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np


class Columns:
    """A row's layout: the floating-point weights one after another, as in `model.weights`.

    Attributes:
        of: for each index of `model.weights` where it lies in a row; None for a weight that is
            not floating-point.
        size: how many columns there are.
    """

    def __init__(self, weights: Sequence[Any]) -> None:
        self.of: list[slice | None] = []
        self.size = 0
        for weight in weights:
            if is_float(weight):
                start, self.size = self.size, self.size + int(np.prod(weight.shape))
                self.of.append(slice(start, self.size))
            else:
                self.of.append(None)

    def runs(self, members: Sequence[int], block: int) -> list[slice]:
        """Columns of some weights, neighbours joined, in blocks.

        Args:
            members: ascending indices of `model.weights`.
            block: the most columns that a block has.
        """
        joined: list[slice] = []
        for index in members:
            own = self.of[index]
            if own is None:
                continue
            if joined and joined[-1].stop == own.start:
                own = slice(joined.pop().start, own.stop)
            joined.append(own)
        return [part for run in joined for part in blocks(run, block)]


def blocks(columns: slice, most: int) -> list[slice]:
    """Columns in blocks.

    Args:
        columns: from where to where.
        most: the most that a block has.

    Example:
        >>> blocks(slice(2, 7), 3)
        [slice(2, 5, None), slice(5, 7, None)]
    """
    return [
        slice(start, min(start + most, columns.stop))
        for start in range(columns.start, columns.stop, most)
    ]


def is_float(weight: Any) -> bool:
    """Whether a Keras variable's dtype is a floating-point one."""
    return keras.backend.is_float_dtype(weight.dtype)


def ids(peers: Sequence[Sequence[Any]]) -> list[list[int]]:
    """What tells whether peers have the same weights as before."""
    return [[id(weight) for weight in weights] for weights in peers]
