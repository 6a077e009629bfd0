"""What a model costs: parameters, filters, multiply-adds; read from its graph."""

import math
from collections.abc import Iterator
from typing import Any

import keras

from kgraft.convolutions import CONVOLUTIONS, TRANSPOSED
from kgraft.errors import UserError
from kgraft.keras_private import graph_of, nodes_of
from kgraft.settings import argument


def parameters(model: keras.Model) -> int:
    """Number of trainable numbers in a built model.

    Raises:
        UserError: It is no model.
    """
    argument("model", model, keras.Model)
    return sum(math.prod(weight.shape) for weight in model.trainable_weights)


def macs(model: keras.Model) -> int:
    """Multiply-adds of one image's forward pass.

    Convolutions (depthwise, separable, grouped and transposed ones included) and dense layers
    count, as often as the graph calls them, in nested models too; biases, normalisation,
    activations, pooling, additions and all other layers do not. This is what most papers' tables
    call FLOPs.

    Args:
        model: Functional or sequential model whose convolutions see images of a fixed size.

    Returns:
        Multiply-adds.

    Raises:
        UserError: The model has no graph, or leaves the size of its images open.

    Example:
        >>> import keras
        >>> images = keras.Input((8, 8, 3))
        >>> macs(keras.Model(images, keras.layers.Conv2D(4, 3, padding="same")(images)))
        6912
    """
    return sum(_node_macs(node) for node in _nodes(model))


def flops(model: keras.Model) -> int:
    """Floating-point operations of one image's forward pass: 1 multiply-add = 2 operations.

    Args:
        model: As for `macs`.

    Returns:
        `2 * macs(model)`.

    Raises:
        UserError: As for `macs`.
    """
    return 2 * macs(model)


def filters(model: keras.Model) -> int:
    """Number of convolution filters of a model with a graph, those of shortcuts included.

    A depthwise convolution has one filter per output channel; shared layers count once.

    Raises:
        UserError: The model has no graph.
    """
    layers = {id(node.operation): node for node in _nodes(model)}
    return sum(
        _channels(node) for node in layers.values() if isinstance(node.operation, CONVOLUTIONS)
    )


def _nodes(model: Any) -> Iterator[Any]:
    """Calls of layers in the graph, those of nested models included."""
    argument("model", model, keras.Model)
    graph = graph_of(model)
    if graph is None:
        raise UserError(
            f"model {model.name!r} has no graph to count in: it must be functional or a built "
            "Sequential."
        )
    for node in nodes_of(graph):
        if isinstance(node.operation, keras.Model):
            yield from _nodes(node.operation)
        else:
            yield node


def _node_macs(node: Any) -> int:
    layer = node.operation
    if isinstance(layer, keras.layers.Dense):
        return math.prod(layer.kernel.shape) * _fixed(layer, node.output_tensors[0].shape[1:-1])
    if isinstance(layer, TRANSPOSED):
        return _kernel_sizes(layer) * _positions(layer, node.input_tensors[0].shape)
    if isinstance(layer, CONVOLUTIONS):
        return _kernel_sizes(layer) * _positions(layer, node.output_tensors[0].shape)
    return 0


def _kernel_sizes(layer: Any) -> int:
    return sum(math.prod(weight.shape) for weight in layer.weights if len(weight.shape) > 2)


def _positions(layer: Any, shape: tuple[int | None, ...]) -> int:
    spatial = shape[1:-1] if layer.data_format == "channels_last" else shape[2:]
    return _fixed(layer, spatial)


def _fixed(layer: Any, sizes: tuple[int | None, ...]) -> int:
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes):
        raise UserError(
            f"layer {layer.name!r} sees images of any size: build the model with a fixed input "
            "size to count its multiply-adds."
        )
    return math.prod(known)


def _channels(node: Any) -> int:
    shape = node.output_tensors[0].shape
    return int(shape[-1] if node.operation.data_format == "channels_last" else shape[1])
