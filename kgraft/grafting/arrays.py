"""Weights as NumPy arrays: views without a copy, where they lie on the host, and copies."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from kgraft.engines.backends import BACKEND


def host_view(value: Any) -> NDArray[Any] | None:
    """A weight's memory as a NumPy array, or None when it does not lie on the host.

    `layer.get_weights()` copies every weight; on the CPU reading it in place is several times
    faster. Half-precision weights are widened to float32, which is exact.

    Args:
        value: a backend tensor (or TensorFlow variable), any shape; or a NumPy array.

    Returns:
        An array of the same shape, float32 or float64, not to be written to; None for a tensor on
        an accelerator.
    """
    if isinstance(value, np.ndarray):
        return value
    if not BACKEND.is_on_host(value):
        return None
    view = BACKEND.view(value)
    return view if view.dtype in (np.float32, np.float64) else view.astype(np.float32)


def host_array(value: Any) -> NDArray[Any]:
    """A weight to be read on the host: its view, or a float32 copy where it lies elsewhere.

    Args:
        value: as for `host_view`.
    """
    view = host_view(value)
    if view is not None:
        return view
    return keras.ops.convert_to_numpy(keras.ops.stop_gradient(value)).astype(np.float32, copy=False)


def parted(row: NDArray[Any], shapes: Sequence[tuple[int, ...]]) -> list[NDArray[Any]]:
    """Weights that lie one after the other in a row.

    Args:
        row: one-dimensional, as long as all of them.
        shapes: one a weight; there may be none.
    """
    ends = np.cumsum([0, *(int(np.prod(shape)) for shape in shapes)])
    return [row[a:b].reshape(shape) for (a, b), shape in zip(pairwise(ends), shapes, strict=True)]


def host_copy(value: Any) -> NDArray[Any]:
    """A copy on the host, to be written to.

    Args:
        value: a backend tensor, wherever it lies, or a NumPy array.
    """
    return np.array(value if isinstance(value, np.ndarray) else keras.ops.convert_to_numpy(value))
