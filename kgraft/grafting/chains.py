"""Convolutions with the batch normalisation that scales their filters, from a model's graph."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras

from kgraft.keras_private import graph_of, nodes_of

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
_IDENTITIES = (keras.layers.Activation, keras.layers.Identity)


@dataclass(frozen=True)
class Chain:
    """A convolution, the batch normalisation after it, and the one convolution that reads it.

    Attributes:
        kernel: index of the convolution's kernel in `model.weights`.
        depthwise: whether its filters are on the last two axes, channels and their multiplier.
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
    found = [c for graph in _graphs_in(model) for c in _chains_of(_Calls(graph), index)]
    return sorted(found, key=lambda chain: chain.kernel)


def normalised(model: keras.Model) -> Iterator[tuple[keras.Layer, keras.layers.BatchNormalization]]:
    """Every linear layer that batch normalisation, and nothing else, reads; and which that is.

    A layer is linear where it has no activation but the linear one. Such an activation, or an
    identity, may stand between the two as a layer of its own.

    Args:
        model: a built model; layers of a subclassed one are outside any graph and give none.
    """
    for graph in _graphs_in(model):
        calls = _Calls(graph)
        for layer, own in calls.of.items():
            if not _is_linear(layer):
                continue
            norm, at = calls.only_reader(own)
            while isinstance(norm, _IDENTITIES) and _is_linear(norm):
                norm, at = calls.only_reader(at)
            if calls.is_normalisation(norm, at):
                yield layer, norm


def layers_of(model: Any) -> Iterator[Any]:
    """The layers of a model, those inside of models in it included, models themselves left out."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from layers_of(layer)
        else:
            yield layer


class _Calls:
    """Which calls of a graph belong to which layer, and which read what.

    A layer that is called several times is followed call by call: one ReLU may serve a network.
    """

    def __init__(self, graph: Any) -> None:
        self.of: dict[Any, list[Any]] = {}
        self._readers: dict[int, list[Any]] = {}
        self._leaving = {id(tensor) for tensor in graph.outputs}
        for node in nodes_of(graph):
            self.of.setdefault(node.operation, []).append(node)
            for tensor in node.input_tensors:
                self._readers.setdefault(id(tensor), []).append(node)

    def only_reader(self, calls: list[Any]) -> tuple[Any, list[Any]]:
        """The layer that alone reads what some calls give, and its calls that do; or None."""
        tensors = [tensor for call in calls for tensor in call.output_tensors]
        readers = [node for tensor in tensors for node in self._readers.get(id(tensor), [])]
        layers = {id(node.operation) for node in readers}
        if len(layers) != 1 or any(id(tensor) in self._leaving for tensor in tensors):
            return None, []
        return readers[0].operation, readers

    def is_normalisation(self, reader: Any, calls: list[Any]) -> bool:
        """Whether it is batch normalisation, and these are all of its calls."""
        is_norm = isinstance(reader, keras.layers.BatchNormalization)
        return is_norm and self.reads_nothing_else(reader, calls)

    def reads_nothing_else(self, layer: Any, calls: list[Any]) -> bool:
        """Whether these are all calls of a layer."""
        return {id(call) for call in self.of[layer]} == {id(call) for call in calls}


def _normalised(calls: _Calls) -> Iterator[tuple[Any, Any, list[Any]]]:
    """A layer, the batch normalisation that alone reads it, and the calls of that one."""
    for layer, own in calls.of.items():
        norm, at = calls.only_reader(own)
        if calls.is_normalisation(norm, at):
            yield layer, norm, at


def _is_linear(layer: Any) -> bool:
    return getattr(layer, "activation", None) in (None, keras.activations.linear)


def _chains_of(calls: _Calls, index: dict[int, int]) -> Iterator[Chain]:
    for layer, norm, at in _normalised(calls):
        if not isinstance(layer, keras.layers.Conv2D | keras.layers.DepthwiseConv2D):
            continue
        if norm.gamma is None or id(layer.kernel) not in index:  # LoRA's is a sum, no weight
            continue
        reader, at = calls.only_reader(at)
        while isinstance(reader, _CHANNELWISE):
            reader, at = calls.only_reader(at)
        reads = (
            isinstance(reader, keras.layers.Conv2D)
            and reader.groups == 1
            and calls.reads_nothing_else(reader, at)
            and id(reader.kernel) in index
        )
        yield Chain(
            kernel=index[id(layer.kernel)],
            depthwise=isinstance(layer, keras.layers.DepthwiseConv2D),
            scale=index[id(norm.gamma)],
            shift=None if norm.beta is None else index[id(norm.beta)],
            bias=None if layer.bias is None else index[id(layer.bias)],
            statistics=(index[id(norm.moving_mean)], index[id(norm.moving_variance)]),
            reader=index[id(reader.kernel)] if reads else None,
        )


def _graphs_in(model: Any) -> Iterator[Any]:
    """The graph of a model and those of the models in it, each once."""
    graph = graph_of(model)
    if graph is not None:
        yield graph
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _graphs_in(layer)
