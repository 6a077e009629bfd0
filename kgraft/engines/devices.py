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
