"""The devices that the backend in use sees."""

import keras


def devices() -> list[str]:
    """Names of the accelerators, or of the CPU where there is none, e.g. `["cuda:0 NVIDIA H200"]`.

    `keras.distribution.list_devices` has no answer on torch.
    """
    match keras.config.backend():
        case "torch":
            import torch

            found = range(torch.cuda.device_count())
            return [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in found] or ["cpu"]
        case "jax":
            import jax

            return [f"{d.platform}:{d.id} {d.device_kind}" for d in jax.devices()]
        case _:
            import tensorflow as tf

            listed = tf.config.list_physical_devices()
            return [d.name for d in listed if d.device_type == "GPU"] or ["cpu"]


def fits(count: int) -> bool:
    """Whether so many bytes leave the device room to train: at most half of what is free.

    Args:
        count: bytes.

    Returns:
        True also where the device is the host, or does not say.
    """
    match keras.config.backend():
        case "torch":
            import torch

            if not torch.cuda.is_available():
                return True
            return count <= torch.cuda.mem_get_info()[0] / 2
        case "jax":
            import jax

            told = jax.devices()[0].memory_stats() or {}
            free = told.get("bytes_limit", 0) - told.get("bytes_in_use", 0)
            return not told or count <= free / 2
        case _:
            return True
