"""`BACKEND`: what kgraft needs of the backend in use and Keras does not offer.

A method for each such thing (`base`) and a file for each backend, of which one is read: Keras
settles its backend when it is imported.
"""

import keras

from kgraft.engines.backends.base import Backend


def _chosen() -> Backend:
    match keras.config.backend():
        case "torch":
            from kgraft.engines.backends.torch import Torch

            return Torch()
        case "jax":
            from kgraft.engines.backends.jax import Jax

            return Jax()
        case _:
            from kgraft.engines.backends.tensorflow import TensorFlow

            return TensorFlow()


BACKEND = _chosen()
