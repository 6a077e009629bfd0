"""Which weights of which layers are kernels, and which of their axes count the filters."""

from typing import Any, Literal

import keras

from kgraft.convolutions import CONVOLUTIONS, DEPTHWISE, SEPARABLE, TRANSPOSED
from kgraft.keras_private import flat_layers

Kind = Literal["convolution", "dense"]

ATTENTION = (
    keras.layers.MultiHeadAttention,
    keras.layers.GroupQueryAttention,
    keras.layers.Attention,
    keras.layers.AdditiveAttention,
)
_DENSE = (  # attention and recurrent layers are built of these
    keras.layers.Dense,
    keras.layers.EinsumDense,
    keras.layers.SimpleRNNCell,
    keras.layers.LSTMCell,
    keras.layers.GRUCell,
)
_FOREIGN = (
    keras.layers.TorchModuleWrapper,
    keras.layers.FlaxLayer,
    keras.layers.JaxLayer,
)
_LAYER_NORMS = (keras.layers.LayerNormalization, keras.layers.RMSNormalization)
_RIDERS = (  # whatever the rank of their weights
    keras.layers.Embedding,
    keras.layers.BatchNormalization,
    keras.layers.GroupNormalization,
    keras.layers.PReLU,
    *_LAYER_NORMS,
)


def kind_of(layer: keras.Layer, weight: Any, created_trainable: bool) -> Kind | None:
    """What kind of kernel a layer's weight is, None for one that rides with a kernel.

    A custom layer's trainable weight of rank 4 or 5 is a convolution's. One of rank 2 is a dense
    kernel, and one of rank 3 a convolution's, where its second last axis is as long as the last of
    what the layer was built for: an embedding of positions has another length there. What another
    library's module holds says nothing of its use: every matrix counts as a dense kernel.

    Args:
        layer: the layer that holds the weight.
        weight: one of its variables.
        created_trainable: whether the layer made it to be trained, frozen or not.
    """
    rank = len(weight.shape)
    if isinstance(layer, CONVOLUTIONS):
        return "convolution" if rank >= 3 else None
    if not created_trainable or rank < 2 or isinstance(layer, _RIDERS):
        return None
    if isinstance(layer, _DENSE):
        return None if weight is layer.bias else "dense"
    if rank in (4, 5):
        return "convolution"
    if isinstance(layer, _FOREIGN):
        return "dense"
    if weight.shape[-2] != _features(layer):
        return None
    return "dense" if rank == 2 else "convolution"


def filter_axes(layer: keras.Layer, weight: Any) -> tuple[int, ...]:
    """The axes of a kernel that count its filters.

    Args:
        layer: the layer that holds the kernel.
        weight: the kernel.
    """
    rank = len(weight.shape)
    if isinstance(layer, keras.layers.TorchModuleWrapper):
        return (0,)
    if isinstance(layer, TRANSPOSED):
        return (rank - 2,)
    if isinstance(layer, DEPTHWISE):
        return (rank - 2, rank - 1)
    if isinstance(layer, SEPARABLE) and weight is layer.depthwise_kernel:
        return (rank - 2, rank - 1)
    if isinstance(layer, keras.layers.EinsumDense):
        inputs, outputs = layer.equation.replace(" ", "").split("->")
        letters = inputs.split(",")[1]
        kept = tuple(axis for axis, letter in enumerate(letters) if letter in outputs)
        if kept and len(letters) == rank:
            return kept
    return (rank - 1,)


def is_block(layer: keras.Layer) -> bool:
    """Whether a layer is a block of its own, for lack of a graph that would say where one begins.

    It holds attention, or layer normalisation and at least two dense kernels and no convolution:
    a transformer's or a mixer's block, but no squeeze-excitation and no classifier.

    Args:
        layer: a layer, the layers in it included.
    """
    inside = flat_layers(layer)
    if any(isinstance(part, ATTENTION) for part in inside):
        return True
    if any(isinstance(part, CONVOLUTIONS) for part in inside):
        return False
    dense = sum(isinstance(part, _DENSE) for part in inside)
    return dense >= 2 and any(isinstance(part, _LAYER_NORMS) for part in inside)


def frozen_weights(model: keras.Model) -> frozenset[int]:
    """Indices in `model.weights` of the floating-point weights that no training moves.

    A kernel, bias or scale with `trainable=False`, by itself or by its layer or a model around it;
    running statistics of a layer with `trainable=False`.

    Args:
        model: a built model.
    """
    trained = {id(weight) for weight in model.trainable_variables}
    made_to_train: set[int] = set()
    moving: set[int] = set()
    for layer in flat_layers(model):
        made_to_train.update(id(weight) for weight in layer._trainable_variables)
        if layer.trainable and model.trainable:
            moving.update(id(weight) for weight in layer._non_trainable_variables)
    return frozenset(
        index
        for index, weight in enumerate(model.weights)
        if keras.backend.is_float_dtype(weight.dtype)
        and id(weight) not in (trained if id(weight) in made_to_train else moving)
    )


def _features(layer: keras.Layer) -> int | None:
    """The last axis of what a layer was built for, None if it does not say."""
    shape = (layer.get_build_config() or {}).get("input_shape")
    return shape[-1] if isinstance(shape, tuple | list) and shape else None
