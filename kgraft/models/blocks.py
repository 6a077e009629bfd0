"""The layers that every architecture is built of, as PyTorch's reference networks have them.

Padding is symmetric, convolutions have no bias (a batch normalisation follows each), kernels start
from the fan-in that PyTorch counts, and every kernel has an initializer of its own. All layers are
Keras' own and say `channels_last`, so that a saved model loads without kgraft and under any
`keras.json`.
"""

import math
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import keras

from kgraft.errors import UserError

SMALLEST_SIDE = 8
"""Pixels: at 8x8 the last stage of MobileNetV2, three halvings on, still has one position."""

Initialise = Callable[[int], Any]
"""Fan-in -> a new Keras initializer."""


def kaiming_normal(fan_in: int) -> Any:
    """`torch.nn.init.kaiming_normal_`: N(0, 2 / fan_in), not truncated as Keras' `HeNormal` is."""
    return keras.initializers.RandomNormal(stddev=math.sqrt(2.0 / fan_in))


def torch_uniform(fan_in: int) -> Any:
    """What PyTorch's layers start from if told nothing: U(-1 / sqrt(fan_in), 1 / sqrt(fan_in))."""
    bound = 1.0 / math.sqrt(fan_in)
    return keras.initializers.RandomUniform(-bound, bound)


def image_input(input_shape: Sequence[int], classes: int) -> Any:
    """Input of an image classifier, once both of its ends are known to make sense.

    Args:
        input_shape: (height, width, channels), pixels; at least 8x8 and one channel.
        classes: Number of classes, at least 2.

    Returns:
        Symbolic float32 images `(n, height, width, channels)`.

    Raises:
        UserError: Either is out of range or of the wrong kind.
    """
    sizes = tuple(input_shape) if isinstance(input_shape, Sequence) else input_shape
    if not isinstance(sizes, tuple) or len(sizes) != 3:
        raise UserError(
            f"input_shape={input_shape!r} is not (height, width, channels), e.g. (32, 32, 3)."
        )
    if any(not isinstance(size, Integral) or size < 1 for size in sizes):
        raise UserError(f"input_shape={sizes} must hold whole numbers from 1 up.")
    if min(sizes[:2]) < SMALLEST_SIDE:
        raise UserError(
            f"input_shape={sizes}: images of {sizes[0]}x{sizes[1]} are too small, the models need "
            f"at least {SMALLEST_SIDE}x{SMALLEST_SIDE} pixels."
        )
    if not isinstance(classes, Integral) or classes < 2:
        raise UserError(f"classes={classes!r}: a classifier needs at least 2 classes.")
    return keras.Input(tuple(map(int, sizes)), dtype="float32", name="images")


def convolution(
    x: Any, filters: int, size: int, *, name: str, strides: int = 1, initialise: Initialise
) -> Any:
    """Square convolution without bias, padded by `size // 2` on every side as PyTorch pads.

    Keras' `"same"` does that at stride 1; at stride 2 it would pad the far sides only.

    Args:
        x: `(n, h, w, c)`.
        filters: Number of filters.
        size: Side of the kernel, odd.
        name: Of the layer.
        strides: Step in both directions.
        initialise: What the kernel starts from, given its fan-in `size * size * c`.

    Returns:
        `(n, ceil(h / strides), ceil(w / strides), filters)`.
    """
    fan_in = size * size * x.shape[-1]
    x, padding = _padded(x, size, strides, name)
    return keras.layers.Conv2D(
        filters,
        size,
        strides=strides,
        padding=padding,
        data_format="channels_last",
        use_bias=False,
        kernel_initializer=initialise(fan_in),
        name=name,
    )(x)


def depthwise_convolution(
    x: Any, size: int, *, name: str, strides: int = 1, initialise: Initialise
) -> Any:
    """One filter per channel; like `convolution` otherwise.

    The fan-in is `size * size`, as in PyTorch; Keras' own count would be `c` times that.
    """
    x, padding = _padded(x, size, strides, name)
    return keras.layers.DepthwiseConv2D(
        size,
        strides=strides,
        padding=padding,
        data_format="channels_last",
        use_bias=False,
        depthwise_initializer=initialise(size * size),
        name=name,
    )(x)


def batch_norm(x: Any, *, name: str, scale: Any = "ones") -> Any:
    """Batch normalisation with PyTorch's constants: its momentum 0.1 is Keras' 0.9.

    Args:
        x: `(n, h, w, c)`.
        name: Of the layer.
        scale: Initializer of the scale.

    Returns:
        Same shape as `x`.
    """
    return keras.layers.BatchNormalization(
        momentum=0.9, epsilon=1e-5, gamma_initializer=scale, name=name
    )(x)


def relu(x: Any, *, name: str) -> Any:
    """Rectifier, any shape."""
    return keras.layers.Activation("relu", name=name)(x)


def add(x: Any, shortcut: Any, *, name: str) -> Any:
    """Sum of a block's main branch and its shortcut, same shapes."""
    return keras.layers.Add(name=name)([x, shortcut])


def subsampled_shortcut(x: Any, filters: int, *, strides: int) -> Any:
    """Shortcut without weights: every `strides`-th position, new channels zero on both sides.

    Option A of He et al., CVPR 2016, section 4.2.

    Args:
        x: `(n, h, w, c)`.
        filters: Channels of the result; `filters - c` is even.
        strides: Step in both directions.

    Returns:
        `(n, ceil(h / strides), ceil(w / strides), filters)`.
    """
    side = (filters - x.shape[-1]) // 2
    return keras.ops.pad(x[:, ::strides, ::strides, :], ((0, 0), (0, 0), (0, 0), (side, side)))


def classifier(x: Any, classes: int, *, initialise: Initialise, bias: Any) -> Any:
    """Global average pooling and a dense layer.

    Args:
        x: `(n, h, w, c)`, any h and w.
        classes: Number of logits.
        initialise: What the kernel starts from, given its fan-in `c`.
        bias: Initializer of the bias.

    Returns:
        Logits `(n, classes)`.
    """
    channels = x.shape[-1]
    x = keras.layers.GlobalAveragePooling2D(data_format="channels_last", name="pool")(x)
    return keras.layers.Dense(
        int(classes), kernel_initializer=initialise(channels), bias_initializer=bias, name="logits"
    )(x)


def _padded(x: Any, size: int, strides: int, name: str) -> tuple[Any, str]:
    if strides == 1:
        return x, "same"
    if size == 1:
        return x, "valid"
    pad = keras.layers.ZeroPadding2D(size // 2, data_format="channels_last", name=f"{name}_pad")
    return pad(x), "valid"
