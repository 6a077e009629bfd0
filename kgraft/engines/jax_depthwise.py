"""Depthwise convolutions as sums of shifted products, for steps that XLA compiles for a CPU.

XLA is slow at depthwise convolutions there, and slower at their gradients. The same sums as
products of whole images,

    y[n, r, q, c] = sum_ij x[n, r s + i d, q s + j d, c] k[i, j, c],

run over all channels at once. The kernel's gradient is added up row by row, in one array of
columns and channels for each of the kernel's elements; XLA's own sum of such products is slow too.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import keras

from kgraft.keras_private import flat_layers

Pair = tuple[int, int]

MOST_PRODUCTS = 49  # 7x7: larger kernels were not tried
STEPS = ("train_step", "test_step", "predict_step")
_placing = threading.RLock()


@contextlib.contextmanager
def shifted_products(model: Any) -> Iterator[None]:
    """While it is open, the model's plain depthwise convolutions are sums of shifted products.

    To be open while a step is traced, and only then. Numbers are Keras' up to rounding.

    Args:
        model: a built model; layers with a `call` of their own, in their class or set on them,
            stay as they are. So does a model with steps of its own: they may ask for forward-mode
            derivatives, and there are none here.
    """
    with _placing:
        keras_own = all(getattr(type(model), name) is getattr(keras.Model, name) for name in STEPS)
        replaced = [layer for layer in flat_layers(model) if keras_own and is_plain(layer)]
        try:
            for layer in replaced:
                vars(layer)["call"] = _call_of(layer)
            yield
        finally:
            for layer in replaced:
                vars(layer).pop("call", None)


def is_plain(layer: Any) -> bool:
    """Whether a layer is Keras' own depthwise convolution, over images whose channels come last."""
    return (
        type(layer) is keras.layers.DepthwiseConv2D
        and "call" not in vars(layer)
        and layer.data_format == "channels_last"
        and layer.kernel_size[0] * layer.kernel_size[1] <= MOST_PRODUCTS
    )


def _call_of(layer: Any) -> Callable[[Any], Any]:
    """What stands in for the layer's `call`."""

    def call(inputs: Any) -> Any:
        kernel = keras.ops.convert_to_tensor(layer.kernel)
        padded = _padded(inputs, layer)
        if not _fits(padded, kernel, layer.dilation_rate):
            return type(layer).call(layer, inputs)
        outputs = depthwise(padded, kernel, layer.strides, layer.dilation_rate)
        if layer.use_bias:
            outputs = keras.ops.add(outputs, layer.bias)
        return outputs if layer.activation is None else layer.activation(outputs)

    return call


def _fits(padded: Any, kernel: Any, dilation: Pair) -> bool:
    """Whether there is a sum to form; what to say of other inputs is Keras' business."""
    sides = zip(padded.shape[1:3], _extent(kernel.shape, dilation), strict=True)
    return padded.dtype == kernel.dtype and all(side >= extent for side, extent in sides)


def _padded(images: Any, layer: Any) -> Any:
    """Images with the zeros around them that the layer's padding asks for."""
    import jax

    if layer.padding == "valid":
        return images
    extents = _extent(layer.kernel_size, layer.dilation_rate)
    sides = jax.lax.padtype_to_pads(images.shape[1:3], extents, layer.strides, "SAME")
    return jax.numpy.pad(images, ((0, 0), *sides, (0, 0)))


def depthwise(images: Any, kernel: Any, strides: Pair, dilation: Pair) -> Any:
    """Depthwise convolution without padding; sums are float32 or wider.

    Args:
        images: x, shape `(n, h, w, c)`, not smaller than the kernel.
        kernel: k, shape `(kh, kw, c, m)`, of the same dtype.
        strides: s, of rows and columns.
        dilation: d, of rows and columns.

    Returns:
        y, shape `(n, (h - (kh-1) d - 1) // s + 1, ..., c m)`, of the dtype of `images`.
    """
    import jax

    if kernel.shape[-1] > 1:
        images = jax.numpy.repeat(images, kernel.shape[-1], axis=-1)
    return _with_gradient()(images, kernel.reshape(*kernel.shape[:2], -1), strides, dilation)


@functools.cache
def _with_gradient() -> Callable[..., Any]:
    """The sum with the gradients that this file has for it."""
    import jax

    def forward(images: Any, kernel: Any, strides: Pair, dilation: Pair) -> Any:
        return _sum(images, kernel, strides, dilation), (images, kernel)

    def backward(strides: Pair, dilation: Pair, known: tuple[Any, Any], change: Any) -> Any:
        images, kernel = known
        of_images = jax.linear_transpose(lambda x: _sum(x, kernel, strides, dilation), images)
        of_kernel = _kernel_gradient(images, change, kernel.shape, strides, dilation)
        return (*of_images(change), of_kernel.astype(kernel.dtype))

    convolution = jax.custom_vjp(_sum, nondiff_argnums=(2, 3))
    convolution.defvjp(forward, backward)
    return convolution


def _sum(images: Any, kernel: Any, strides: Pair, dilation: Pair) -> Any:
    """The convolution, all shifted images at once."""
    wide = _wide(images)
    rows, columns = _sides_out(images.shape[1:3], kernel.shape, strides, dilation)
    total: Any = 0.0
    for (i, j), (top, left) in _offsets(kernel.shape, dilation):
        shifted = images[
            :, _along(top, rows, strides[0]), _along(left, columns, strides[1])
        ].astype(wide)
        total = total + shifted * kernel[i, j].astype(wide)
    return total.astype(images.dtype)


def _kernel_gradient(images: Any, change: Any, shape: Any, strides: Pair, dilation: Pair) -> Any:
    """dL/dk[i, j, c] = sum over n, r, q of x[n, r s + i d, q s + j d, c] dL/dy[n, r, q, c].

    Args:
        images: x, padded.
        change: dL/dy, shape `(n, rows, columns, c)`.
        shape: the kernel's.
        strides: s.
        dilation: d.

    Returns:
        Shape `(kh, kw, c)`.
    """
    import jax

    wide = _wide(images)
    count, rows, columns, channels = change.shape
    height = _extent(shape, dilation)[0]
    offsets = [offset for _, offset in _offsets(shape, dilation)]

    def add_row(sums: tuple[Any, ...], number: Any) -> tuple[tuple[Any, ...], None]:
        n, row = number // rows, number % rows
        lines = jax.lax.dynamic_slice(
            images, (n, row * strides[0], 0, 0), (1, height, images.shape[2], channels)
        )[0].astype(wide)
        own = jax.lax.dynamic_slice(change, (n, row, 0, 0), (1, 1, columns, channels))[0, 0]
        products = [
            lines[top, _along(left, columns, strides[1])] * own.astype(wide)
            for top, left in offsets
        ]
        return tuple(map(jax.numpy.add, sums, products)), None

    start = tuple(jax.numpy.zeros((columns, channels), wide) for _ in offsets)
    sums, _ = jax.lax.scan(add_row, start, jax.numpy.arange(count * rows))
    return jax.numpy.stack([part.sum(axis=0) for part in sums]).reshape(shape)


def _wide(images: Any) -> Any:
    import jax

    return jax.numpy.promote_types(images.dtype, "float32")


def _extent(kernel: Any, dilation: Pair) -> Pair:
    """How many rows and columns of an image a kernel of this shape reaches over."""
    return (kernel[0] - 1) * dilation[0] + 1, (kernel[1] - 1) * dilation[1] + 1


def _sides_out(sides: Any, kernel: Any, strides: Pair, dilation: Pair) -> Pair:
    reach = _extent(kernel, dilation)
    return (sides[0] - reach[0]) // strides[0] + 1, (sides[1] - reach[1]) // strides[1] + 1


def _offsets(kernel: Any, dilation: Pair) -> list[tuple[Pair, Pair]]:
    """Each element of a kernel of this shape, and where in the image its first product begins."""
    elements = [(i, j) for i in range(kernel[0]) for j in range(kernel[1])]
    return [((i, j), (i * dilation[0], j * dilation[1])) for i, j in elements]


def _along(first: int, count: int, stride: int) -> slice:
    return slice(first, first + (count - 1) * stride + 1, stride)
