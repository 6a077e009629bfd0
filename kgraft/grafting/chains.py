"""Convolutions with the batch normalisation that scales their filters, from a model's graph."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras

_CHANNELWISE = (
    keras.layers.Activation,
    keras.layers.ReLU,
    keras.layers.LeakyReLU,
    keras.layers.Dropout,
    keras.layers.SpatialDropout2D,
    keras.layers.MaxPooling2D,
    keras.layers.AveragePooling2D,
    keras.layers.ZeroPadding2D,
)


@dataclass(frozen=True)
class Chain:
    """A convolution, the batch normalisation after it, and the one convolution that reads it.

    Attributes:
        kernel: index of the convolution's kernel in `model.weights`.
        depthwise: whether its filters are on the second last axis.
        scale: index of the batch normalisation's gamma.
        shift: index of its beta, None without one.
        bias: index of the convolution's bias, None without one.
        statistics: indices of the running mean and variance.
        reader: index of the kernel of the only convolution that reads the output, None if there is
            not exactly one.
    """

    kernel: int
    depthwise: bool
    scale: int
    shift: int | None
    bias: int | None
    statistics: tuple[int, int]
    reader: int | None

    @property
    def axis(self) -> int:
        """The kernel's axis that counts the filters."""
        return -2 if self.depthwise else -1

    @property
    def vectors(self) -> tuple[int, ...]:
        """Indices of the weights that hold one number a filter."""
        optional = [index for index in (self.bias, self.shift) if index is not None]
        return (self.scale, *optional, *self.statistics)

    @property
    def weights(self) -> tuple[int, ...]:
        """Indices of all weights in which a filter has entries."""
        reader = () if self.reader is None else (self.reader,)
        return (self.kernel, *self.vectors, *reader)


def chains(model: keras.Model) -> list[Chain]:
    """Every convolution that batch normalisation, and nothing else, reads; in layer order.

    Args:
        model: a built model; layers of a subclassed one are outside any graph and give none.
    """
    index = {id(weight): i for i, weight in enumerate(model.weights)}
    found = []
    for layer in layers_of(model):
        if not isinstance(layer, keras.layers.Conv2D | keras.layers.DepthwiseConv2D):
            continue
        norm = _only_reader(layer)
        if not isinstance(norm, keras.layers.BatchNormalization) or norm.gamma is None:
            continue
        reader = _only_reader(norm)
        while isinstance(reader, _CHANNELWISE):
            reader = _only_reader(reader)
        reads = isinstance(reader, keras.layers.Conv2D) and reader.groups == 1
        found.append(
            Chain(
                kernel=index[id(layer.kernel)],
                depthwise=isinstance(layer, keras.layers.DepthwiseConv2D),
                scale=index[id(norm.gamma)],
                shift=None if norm.beta is None else index[id(norm.beta)],
                bias=None if layer.bias is None else index[id(layer.bias)],
                statistics=(index[id(norm.moving_mean)], index[id(norm.moving_variance)]),
                reader=index[id(reader.kernel)] if reads else None,
            )
        )
    return found


def layers_of(model: Any) -> Iterator[Any]:
    """The layers of a model, those inside of models in it included, models themselves left out."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from layers_of(layer)
        else:
            yield layer


def _only_reader(layer: Any) -> Any:
    """The layer that reads a layer's output, None if there is not exactly one."""
    readers = {id(node.operation): node.operation for node in layer._outbound_nodes}
    return next(iter(readers.values())) if len(readers) == 1 else None
