"""The one place where a backend's array is unwrapped: NumPy views of weights, without a copy."""

from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray


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
    match keras.config.backend():
        case "torch":
            if value.device.type != "cpu":
                return None
            value = value.detach()
            if keras.backend.standardize_dtype(value.dtype) == "bfloat16":
                value = value.float()
            view = value.numpy()
        case "jax":
            if any(device.platform != "cpu" for device in value.devices()):
                return None
            view = np.asarray(value)
        case _:
            if "CPU" not in value.device:
                return None
            view = value.numpy()
    return view if view.dtype in (np.float32, np.float64) else view.astype(np.float32)


def on_host(value: Any) -> NDArray[Any]:
    """A copy on the host, to be written to.

    Args:
        value: a backend tensor, wherever it lies, or a NumPy array.
    """
    return np.array(value if isinstance(value, np.ndarray) else keras.ops.convert_to_numpy(value))
