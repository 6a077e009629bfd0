"""Native layers: Keras layers as torch operations on channels-first views of channels-last memory.

What a `network` is made of, one a layer. A native layer computes what the Keras layer computes, to
rounding: fused batch normalisation instead of a dozen operations, convolutions without the copies
around them. What is not in the table (or not exactly in it: subclasses, masks, float16,
LoRA, quantisation) stays a Keras layer. Settings are read when the layer runs; `native_steps`
compares those that decide whether it is native and what may be overwritten.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import keras
import torch
from torch.nn import functional

from kgraft.models.batch_norm import BatchNormalization

Layout = Literal["first", "last", "any"]
Pair = tuple[int, int]
Shape = tuple[int | None, ...]
Inputs = Sequence[torch.Tensor]
TO_FIRST, TO_LAST = (0, 3, 1, 2), (0, 2, 3, 1)  # permutations of the axes of images


@dataclass(frozen=True)
class NativeLayer:
    """A layer's native computation.

    Attributes:
        run: `(inputs, training, in_place)` -> output; `in_place` allows it to overwrite its first
            input.
        layout: where the channels of rank-4 inputs lie; `"any"` keeps that of the first.
        fresh: whether the output is new memory that the backward pass of `run` does not read, so
            that whoever comes next may overwrite it.
        pads: whether `padding` (rows, columns) of the input can be added to its own.
    """

    run: Callable[[Sequence[torch.Tensor], bool, bool], torch.Tensor]
    layout: Layout
    fresh: bool = False
    pads: bool = False


def native_layer(layer: Any, shapes: Sequence[Shape], padding: Pair = (0, 0)) -> NativeLayer | None:
    """The native computation of a layer, None where it has none.

    Args:
        layer: a built Keras layer or operation.
        shapes: of its inputs, as Keras has them, None where unknown.
        padding: rows and columns of zeros that are added around its input first.
    """
    make = _TABLE.get(type(layer))
    if make is None or not _is_plain(layer):
        return None
    return make(layer, shapes, padding)


def padding_of(layer: Any) -> Pair | None:
    """Rows and columns that a symmetric zero padding adds, None for any other layer."""
    if type(layer) is not keras.layers.ZeroPadding2D or layer.data_format != "channels_last":
        return None
    (top, bottom), (left, right) = layer.padding
    return (top, left) if top == bottom and left == right and _is_plain(layer) else None


# What layers compute in, and their variables: bfloat16 over float32, whose batch statistics and
# sums are float32, as Keras' are.
_TYPES = (("float32", "float32"), ("float64", "float64"), ("bfloat16", "float32"))


def _is_plain(layer: Any) -> bool:
    """Whether nothing but `call` happens when the layer is called, and casts to its float type."""
    return (
        "call" not in vars(layer)
        and layer.activity_regularizer is None
        and layer.dtype_policy.quantization_mode is None
        and (layer.compute_dtype, layer.variable_dtype) in _TYPES
        and layer.autocast
        and not vars(layer).get("lora_enabled", False)
        and not layer._losses
        and not layer._forward_hooks
        and not layer._forward_pre_hooks
    )


def _convolution(layer: Any, shapes: Sequence[Shape], padding: Pair) -> NativeLayer | None:
    if layer.data_format != "channels_last" or layer.padding not in ("valid", "same"):
        return None
    same = layer.padding == "same"
    if same and padding != (0, 0):
        return None
    depthwise = type(layer) is keras.layers.DepthwiseConv2D
    size, stride, dilation = layer.kernel_size, layer.strides, layer.dilation_rate

    def run(inputs: Inputs, training: bool, in_place: bool) -> torch.Tensor:
        (x,) = inputs
        kernel = layer.kernel.value.to(x.dtype)
        if depthwise:  # (kh, kw, channels, multiplier)
            kernel = kernel.permute(2, 3, 0, 1).flatten(0, 1).unsqueeze(1)
        else:
            kernel = kernel.permute(3, 2, 0, 1)
        bias = layer.bias.value.to(x.dtype) if layer.use_bias else None
        x = x.contiguous(memory_format=torch.channels_last)  # a copy only behind a Keras layer
        x, pad = _same(x, size, stride, dilation) if same else (x, padding)
        groups = x.shape[1] // kernel.shape[1]
        y = functional.conv2d(x, kernel, bias, stride, pad, dilation, groups)
        return _activated(layer.activation, y)

    return NativeLayer(run, "first", fresh=_is_identity(layer.activation), pads=not same)


def _same(x: torch.Tensor, size: Any, stride: Any, dilation: Any) -> tuple[torch.Tensor, Pair]:
    """Pad as Keras' `"same"`: the odd row or column at the far end."""
    pads = [
        max((-(-length // s) - 1) * s + d * (k - 1) + 1 - length, 0)
        for length, k, s, d in zip(x.shape[2:], size, stride, dilation, strict=True)
    ]
    rows, columns = pads
    if rows % 2 == 0 and columns % 2 == 0:
        return x, (rows // 2, columns // 2)
    sides = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
    return functional.pad(x, sides), (0, 0)


def _batch_norm(layer: Any, shapes: Sequence[Shape], padding: Pair) -> NativeLayer | None:
    if layer.renorm or layer.synchronized or not isinstance(layer.axis, int):
        return None
    rank = len(shapes[0])
    if layer.axis not in (-1, rank - 1) or rank not in (2, 4):
        return None
    unbiased = type(layer) is BatchNormalization

    def run(inputs: Inputs, training: bool, in_place: bool) -> torch.Tensor:
        (x,) = inputs
        mean, variance = layer.moving_mean.value, layer.moving_variance.value
        scale = layer.gamma.value if layer.scale else None
        offset = layer.beta.value if layer.center else None
        training, kept = training and layer.trainable, layer.momentum
        count = x.numel() // x.shape[1]
        if training and (count < 2 or not unbiased):
            # torch gives the batch's unbiased variance, and none for a single value
            batch_mean, batch_variance = torch.zeros_like(mean), torch.zeros_like(variance)
            y = torch.batch_norm(
                x, scale, offset, batch_mean, batch_variance, True, 1.0, layer.epsilon, True
            )
            share = (count - 1) / count
            with torch.no_grad():
                batch_variance = batch_variance * share if count > 1 else torch.zeros_like(variance)
                mean.mul_(kept).add_(batch_mean, alpha=1 - kept)
                variance.mul_(kept).add_(batch_variance, alpha=1 - kept)
            return y
        return torch.batch_norm(
            x, scale, offset, mean, variance, training, 1 - kept, layer.epsilon, True
        )

    return NativeLayer(run, "first", fresh=True)


def _relu(layer: Any, shapes: Sequence[Shape], padding: Pair) -> NativeLayer | None:
    if not _is_plain_relu(layer):
        return None

    def run(inputs: Inputs, training: bool, in_place: bool) -> torch.Tensor:
        (x,) = inputs
        slope = _slope(layer)
        if slope:
            return functional.leaky_relu(x, slope, in_place)
        return torch.relu_(x) if in_place else torch.relu(x)

    # in place, the backward pass reads the sign from the output: not with a negative slope
    return NativeLayer(run, "any") if _slope(layer) >= 0 else None


def _is_plain_relu(layer: Any) -> bool:
    if type(layer) is keras.layers.Activation:
        return layer.activation is keras.activations.relu
    return type(layer) is keras.layers.LeakyReLU or (
        layer.max_value is None and layer.threshold == 0
    )


def _slope(layer: Any) -> float:
    return 0.0 if type(layer) is keras.layers.Activation else float(layer.negative_slope)


def _add(layer: Any, shapes: Sequence[Shape], padding: Pair) -> NativeLayer | None:
    if any(shape != shapes[0] for shape in shapes):
        return None

    def run(inputs: Inputs, training: bool, in_place: bool) -> torch.Tensor:
        first, second, *others = inputs
        if first.shape != second.shape:  # a side of unknown length that is 1
            return sum(inputs[1:], start=first)
        total = first.add_(second) if in_place else first + second
        for term in others:
            total = total + term
        return total

    return NativeLayer(run, "any", fresh=True)


def _average_everywhere(layer: Any, shapes: Sequence[Shape], padding: Pair) -> NativeLayer | None:
    if layer.data_format != "channels_last":
        return None

    def run(inputs: Inputs, training: bool, in_place: bool) -> torch.Tensor:
        return inputs[0].mean((2, 3), layer.keepdims)

    return NativeLayer(run, "first")


def _pool(layer: Any, shapes: Sequence[Shape], padding: Pair) -> NativeLayer | None:
    if layer.data_format != "channels_last" or not _fits(layer, shapes[0]):
        return None
    largest = type(layer) is keras.layers.MaxPooling2D
    pool = functional.max_pool2d if largest else functional.avg_pool2d

    def run(inputs: Inputs, training: bool, in_place: bool) -> torch.Tensor:
        return pool(inputs[0], layer.pool_size, layer.strides)

    return NativeLayer(run, "first")


def _fits(layer: Any, shape: Shape) -> bool:
    """Whether pooling needs no padding."""
    if layer.padding == "valid":
        return True
    sides = zip(shape[1:3], layer.pool_size, layer.strides, strict=True)
    return all(side is not None and side % s == 0 and k == s for side, k, s in sides)


def _dense(layer: Any, shapes: Sequence[Shape], padding: Pair) -> NativeLayer | None:
    if len(shapes[0]) != 2:
        return None

    def run(inputs: Inputs, training: bool, in_place: bool) -> torch.Tensor:
        (x,) = inputs
        kernel = layer.kernel.value.to(x.dtype).t()
        bias = None if layer.bias is None else layer.bias.value.to(x.dtype)
        return _activated(layer.activation, functional.linear(x, kernel, bias))

    return NativeLayer(run, "last", fresh=_is_identity(layer.activation))


_ELEMENTWISE = (
    keras.activations.celu,
    keras.activations.elu,
    keras.activations.exponential,
    keras.activations.gelu,
    keras.activations.hard_shrink,
    keras.activations.hard_sigmoid,
    keras.activations.hard_silu,
    keras.activations.hard_tanh,
    keras.activations.leaky_relu,
    keras.activations.log_sigmoid,
    keras.activations.mish,
    keras.activations.relu6,
    keras.activations.selu,
    keras.activations.sigmoid,
    keras.activations.silu,
    keras.activations.soft_shrink,
    keras.activations.softplus,
    keras.activations.softsign,
    keras.activations.sparse_plus,
    keras.activations.sparse_sigmoid,
    keras.activations.squareplus,
    keras.activations.tanh,
    keras.activations.tanh_shrink,
    keras.activations.threshold,
)


def _is_identity(function: Any) -> bool:
    return function is None or function is keras.activations.linear


def _activated(function: Any, x: torch.Tensor) -> torch.Tensor:
    """An activation of a layer's output; channels-first where it has four axes.

    What is not known to work element by element, e.g. a softmax, finds the channels where Keras has
    them.
    """
    if _is_identity(function):
        return x
    if function is keras.activations.relu:
        return torch.relu(x)
    if x.ndim != 4 or any(function is known for known in _ELEMENTWISE):
        return function(x)
    return function(x.permute(TO_LAST)).permute(TO_FIRST)


_TABLE: dict[type, Callable[[Any, Sequence[Shape], Pair], NativeLayer | None]] = {
    keras.layers.Conv2D: _convolution,
    keras.layers.DepthwiseConv2D: _convolution,
    keras.layers.BatchNormalization: _batch_norm,
    BatchNormalization: _batch_norm,
    keras.layers.Activation: _relu,
    keras.layers.ReLU: _relu,
    keras.layers.LeakyReLU: _relu,
    keras.layers.Add: _add,
    keras.layers.GlobalAveragePooling2D: _average_everywhere,
    keras.layers.MaxPooling2D: _pool,
    keras.layers.AveragePooling2D: _pool,
    keras.layers.Dense: _dense,
}
