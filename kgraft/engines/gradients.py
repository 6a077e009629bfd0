"""Calls that nobody asks the gradients of."""

import contextlib
from contextlib import AbstractContextManager

import keras


def without_gradients() -> AbstractContextManager[object]:
    """On torch nothing that is computed inside is kept for a backward pass.

    jax and tensorflow decide by what the gradients are asked for: there it does nothing.
    """
    if keras.config.backend() != "torch":
        return contextlib.nullcontext()
    import torch

    return torch.no_grad()
