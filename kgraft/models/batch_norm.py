"""Batch normalisation that trains as PyTorch's does."""

import math
from typing import Any

import keras
from keras import ops

from kgraft.errors import UserError


class BatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` with PyTorch's running variance and constants.

    A batch is normalised by its biased variance, as in Keras; the *running* variance takes the
    unbiased one, n / (n - 1) times as large, over the n values that a channel has in a batch. With
    few values a channel that is no rounding matter: 1.07 at 16 images of 1x1.

    In inference the layer is Keras' own, and it is saved as that: a model file loads without
    kgraft. A model loaded from a file therefore goes on training with Keras' running variance;
    `keras.models.clone_model` keeps this layer.

    Args:
        axis: the channels' axis.
        momentum: share of the running statistics that a step keeps; Keras' 0.9 is torch's 0.1.
        epsilon: added to the variance.
        **options: what Keras' layer takes, without `renorm` and `synchronized`.

    Raises:
        UserError: `renorm` or `synchronized` is asked for.

    Example:
        >>> import numpy as np
        >>> layer = BatchNormalization()
        >>> _ = layer(np.array([[1.0], [3.0]], "float32"), training=True)
        >>> layer.get_weights()[3].round(4).tolist()       # 0.9 * 1 + 0.1 * (biased 1 * 2 / 1)
        [1.1]
    """

    # What a saved model calls this layer: Keras' own name, known where kgraft is not.
    __module__ = "keras.layers"

    def __init__(
        self, axis: int = -1, momentum: float = 0.9, epsilon: float = 1e-5, **options: Any
    ) -> None:
        for option in ("renorm", "synchronized"):
            if options.get(option):
                raise UserError(f"kgraft's BatchNormalization has no {option}: use Keras' layer.")
        super().__init__(axis=axis, momentum=momentum, epsilon=epsilon, **options)

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Normalise a batch; in training move the running statistics.

        Args:
            inputs: `(n, ..., channels)`, or channels on `axis`.
            training: whether the batch's own statistics are used.
            mask: must be None in training.

        Returns:
            Same shape and type as `inputs`.

        Raises:
            UserError: a mask, in training.
        """
        # sums of half-precision numbers overflow
        half = keras.backend.standardize_dtype(inputs.dtype) in ("float16", "bfloat16")
        x = ops.cast(inputs, "float32") if half else inputs
        if training and self.trainable:
            if mask is not None:
                raise UserError(f"{self.name}: no mask can be used in training.")
            axes = self._reduction_axes
            mean = ops.mean(x, axis=axes, keepdims=True)
            # not E[x^2] - E[x]^2, which loses the digits of a variance far below the mean
            centred = x - mean
            variance = ops.mean(ops.square(centred), axis=axes, keepdims=True)
            shape = ops.shape(x)
            count = math.prod(shape[axis] for axis in axes)
            self._move(self.moving_mean, mean)
            self._move(self.moving_variance, variance * _unbiased(count, x.dtype))
        else:
            centred = x - self._spread(self.moving_mean, x)
            variance = self._spread(self.moving_variance, x)
        scale = ops.rsqrt(variance + self.epsilon)
        if self.scale:
            scale = scale * self._spread(self.gamma, x)
        outputs = centred * scale
        if self.center:
            outputs = outputs + self._spread(self.beta, x)
        return ops.cast(outputs, self.compute_dtype)

    def _spread(self, weight: Any, x: Any) -> Any:
        """A weight of shape `(channels,)` as one of x's type that broadcasts along x's channels."""
        shape = [1] * len(x.shape)
        shape[self.axis] = -1
        return ops.reshape(ops.cast(weight, x.dtype), shape)

    def _move(self, running: Any, batch: Any) -> None:
        """Keep `momentum` of a running statistic, take the rest from the batch's."""
        kept = ops.cast(running, batch.dtype) * self.momentum
        running.assign(kept + ops.reshape(batch, (-1,)) * (1.0 - self.momentum))


def _unbiased(count: Any, dtype: Any) -> Any:
    """Bessel's n / (n - 1), and 1 for n = 1, where torch refuses; a tensor in TensorFlow graphs."""
    if isinstance(count, int):
        return count / max(count - 1, 1)
    return ops.cast(count, dtype) / ops.cast(ops.maximum(count - 1, 1), dtype)
