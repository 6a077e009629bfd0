"""The layers that every architecture is built of, as PyTorch's reference networks have them.

Padding is symmetric, kernels start from the fan-in or fan-out that PyTorch counts, every kernel has
an initializer of its own, and batch normalisation keeps PyTorch's running variance. All layers are
saved as Keras' own and say `channels_last`, so that a model file loads without kgraft and under any
`keras.json`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import keras

from kgraft.errors import UserError
from kgraft.models.batch_norm import BatchNormalization

SMALLEST_SIDE = 8
"""Pixels: at 8x8 the last stage of MobileNetV2, three halvings on, still has one position."""

_LARGEST_SIDE = 65536
_MOST_CLASSES = 1_000_000  # behind 2048 features a classifier of as many holds 8 GB


@dataclass(frozen=True)
class Fan:
    """What a kernel's scale follows from, as PyTorch counts it.

    Attributes:
        inputs: Numbers that one output is a sum over, `kh * kw * channels / groups`.
        outputs: `kh * kw * filters`.
    """

    inputs: int
    outputs: int


Initialise = Callable[[Fan], Any]
"""Fan -> a new Keras initializer."""


def kaiming_normal(fan: Fan) -> Any:
    """`torch.nn.init.kaiming_normal_`: N(0, 2 / fan-in), not truncated as Keras' `HeNormal` is."""
    return keras.initializers.RandomNormal(stddev=math.sqrt(2.0 / fan.inputs))


def kaiming_normal_out(fan: Fan) -> Any:
    """`torch.nn.init.kaiming_normal_(mode="fan_out")`: N(0, 2 / fan-out)."""
    return keras.initializers.RandomNormal(stddev=math.sqrt(2.0 / fan.outputs))


def torch_uniform(fan: Fan) -> Any:
    """What PyTorch's layers start from if told nothing: U(-1 / sqrt(fan-in), 1 / sqrt(fan-in)).

    Kernels and biases alike; `kaiming_uniform_(a=sqrt(5))` is another name of it.
    """
    bound = 1.0 / math.sqrt(fan.inputs)
    return keras.initializers.RandomUniform(-bound, bound)


def zeros(fan: Fan) -> Any:
    """Zeros, whatever the fan."""
    del fan
    return keras.initializers.Zeros()


def image_input(input_shape: Sequence[int], classes: int) -> Any:
    """Input of an image classifier, once both of its ends are known to make sense.

    Args:
        input_shape: (height, width, channels), pixels; at least 8x8 and one channel.
        classes: Number of classes, at least 2 and at most a million.

    Returns:
        Symbolic images `(n, height, width, channels)` of Keras' default float type.

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
    if max(sizes) > _LARGEST_SIDE:
        raise UserError(f"input_shape={sizes}: expected at most {_LARGEST_SIDE} of each.")
    if min(sizes[:2]) < SMALLEST_SIDE:
        raise UserError(
            f"input_shape={sizes}: images of {sizes[0]}x{sizes[1]} are too small, the models need "
            f"at least {SMALLEST_SIDE}x{SMALLEST_SIDE} pixels."
        )
    if not isinstance(classes, Integral) or classes < 2:
        raise UserError(f"classes={classes!r}: a classifier needs at least 2 classes.")
    if classes > _MOST_CLASSES:
        raise UserError(f"classes={classes}: expected at most {_MOST_CLASSES}.")
    return keras.Input(tuple(map(int, sizes)), name="images")


def per_stage(network: str, depth: int, *, rest: int) -> int:
    """Blocks in each of three stages of a network of two-layer blocks.

    Args:
        network: What it is called, for the error.
        depth: Its layers, 6n + rest.
        rest: Layers outside the blocks.

    Returns:
        n, at least 1.

    Raises:
        UserError: `depth` is no such number.
    """
    if depth < 6 + rest or (depth - rest) % 6:
        nearest = max(6 + rest, rest + 6 * round((depth - rest) / 6))
        raise UserError(
            f"{network} depth {depth} is not 6n + {rest} with n >= 1: the nearest valid depth is "
            f"{nearest}."
        )
    return (depth - rest) // 6


def convolution(
    x: Any,
    filters: int,
    size: int,
    *,
    name: str,
    strides: int = 1,
    initialise: Initialise,
    bias: Initialise | None = None,
) -> Any:
    """Square convolution, padded by `size // 2` on every side as PyTorch pads.

    Keras' `"same"` does that at stride 1; at stride 2 it would pad the far sides only.

    Args:
        x: `(n, h, w, c)`.
        filters: Number of filters.
        size: Side of the kernel, odd.
        name: Of the layer.
        strides: Step in both directions.
        initialise: What the kernel starts from.
        bias: What the bias starts from; None for no bias, where a normalisation follows.

    Returns:
        `(n, ceil(h / strides), ceil(w / strides), filters)`.
    """
    fan = Fan(size * size * x.shape[-1], size * size * filters)
    x, padding = _padded(x, size, strides, name)
    return keras.layers.Conv2D(
        filters,
        size,
        strides=strides,
        padding=padding,
        data_format="channels_last",
        use_bias=bias is not None,
        kernel_initializer=initialise(fan),
        bias_initializer=(bias or zeros)(fan),
        name=name,
    )(x)


def depthwise_convolution(
    x: Any, size: int, *, name: str, strides: int = 1, initialise: Initialise
) -> Any:
    """One filter per channel, no bias; like `convolution` otherwise.

    The fan-in is `size * size`, as in PyTorch; Keras' own count would be `c` times that.
    """
    fan = Fan(size * size, size * size * x.shape[-1])
    x, padding = _padded(x, size, strides, name)
    return keras.layers.DepthwiseConv2D(
        size,
        strides=strides,
        padding=padding,
        data_format="channels_last",
        use_bias=False,
        depthwise_initializer=initialise(fan),
        name=name,
    )(x)


def batch_norm(x: Any, *, name: str, scale: Any = "ones") -> Any:
    """Batch normalisation with PyTorch's constants and running variance.

    Args:
        x: `(n, h, w, c)`.
        name: Of the layer.
        scale: Initializer of the scale.

    Returns:
        Same shape as `x`.
    """
    return BatchNormalization(gamma_initializer=scale, name=name)(x)


def check_last_stride(strides: Any) -> None:
    """Refuse a last stride that is neither 1 nor 2.

    Args:
        strides: What was given.

    Raises:
        UserError: it is another number.
    """
    if strides not in (1, 2):
        raise UserError(f"last_stride {strides}: expected 1 or 2.")


def relu(x: Any, *, name: str, negative_slope: float = 0.0) -> Any:
    """Rectifier, any shape; leaky where there is a slope."""
    if negative_slope:
        return keras.layers.LeakyReLU(negative_slope=negative_slope, name=name)(x)
    return keras.layers.Activation("relu", name=name)(x)


def max_pool(x: Any, size: int, *, name: str) -> Any:
    """Largest of every `size` x `size` positions at stride 2, padded as PyTorch's networks do.

    A size of 2 needs no padding (an odd last row is pooled alone, PyTorch's `ceil_mode`); a size of
    3 is padded by 1 on every side, with zeros: x must not be negative.

    Args:
        x: `(n, h, w, c)`.
        size: 2 or 3.
        name: Of the layer.

    Returns:
        `(n, ceil(h / 2), ceil(w / 2), c)`.
    """
    padding = "same"
    if size == 3:
        x, padding = _padded(x, size, 2, name)
    return keras.layers.MaxPooling2D(
        size, strides=2, padding=padding, data_format="channels_last", name=name
    )(x)


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


def classifier(x: Any, classes: int, *, initialise: Initialise, bias: Initialise) -> Any:
    """Global average pooling and a dense layer.

    Args:
        x: `(n, h, w, c)`, any h and w.
        classes: Number of logits.
        initialise: What the kernel starts from.
        bias: What the bias starts from.

    Returns:
        Logits `(n, classes)`.
    """
    fan = Fan(x.shape[-1], classes)
    x = keras.layers.GlobalAveragePooling2D(data_format="channels_last", name="pool")(x)
    return keras.layers.Dense(
        int(classes), kernel_initializer=initialise(fan), bias_initializer=bias(fan), name="logits"
    )(x)


def _padded(x: Any, size: int, strides: int, name: str) -> tuple[Any, str]:
    if strides == 1:
        return x, "same"
    if size == 1:
        return x, "valid"
    pad = keras.layers.ZeroPadding2D(size // 2, data_format="channels_last", name=f"{name}_pad")
    return pad(x), "valid"
