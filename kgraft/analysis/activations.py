"""Which channels of a network's rectifiers never speak on real images."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kgraft.errors import UserError
from kgraft.keras_private import graph_of, nodes_of

_RECTIFIERS = (keras.activations.relu, keras.activations.relu6)
_BATCH = 128


@dataclass(frozen=True, eq=False)
class Rectified:
    """The channels behind one rectifier.

    Attributes:
        name: the layer.
        largest: of each channel the largest activation on any image at any place, `(channels,)`.
    """

    name: str
    largest: np.ndarray

    @property
    def dead(self) -> np.ndarray:
        """Which channels never exceed 0 on any image, bool `(channels,)`."""
        return self.largest <= 0


def rectified(model: keras.Model, batches: Any) -> tuple[Rectified, ...]:
    """The largest activations behind every rectifier of a model.

    Args:
        model: a functional or Sequential model.
        batches: images as the model takes them, `(n, ...)`, or tuples that begin with them; or all
            images in one array.

    Returns:
        One entry a call of a `ReLU` layer that gives 0 below its threshold, of
        `Activation("relu")` or `"relu6"`, or of a layer with such an activation; in the order of
        the graph. Layers inside of models inside are not looked at.

    Raises:
        UserError: the model has no graph or no rectifier, or there is no image.
    """
    graph = graph_of(model)
    if graph is None:
        raise UserError(f"{model.name!r} has no graph: expected a functional model.")
    calls = [node for node in nodes_of(graph) if _is_rectifier(node.operation)]
    if not calls:
        raise UserError(f"{model.name!r} has no rectifier.")
    inputs = graph.inputs if len(graph.inputs) > 1 else graph.inputs[0]
    seen = keras.Model(inputs, [call.outputs[0] for call in calls])
    largest: list[np.ndarray] = []
    for batch in _batches(batches):
        found = [
            keras.ops.convert_to_numpy(keras.ops.max(own, axis=tuple(range(len(own.shape) - 1))))
            for own in keras.tree.flatten(seen(batch, training=False))
        ]
        largest = [*map(np.maximum, largest, found)] if largest else found
    if not largest:
        raise UserError("no batch: expected images.")
    return tuple(
        Rectified(call.operation.name, own) for call, own in zip(calls, largest, strict=True)
    )


def has_rectifiers(model: keras.Model) -> bool:
    """Whether `rectified` has anything to look at in a model.

    Args:
        model: any.
    """
    graph = graph_of(model)
    return graph is not None and any(_is_rectifier(node.operation) for node in nodes_of(graph))


def dead_share(layers: Iterable[Rectified]) -> float:
    """Share of all channels that are dead, 0..1; of those that gave no nan, nan where all did.

    Args:
        layers: what `rectified` gave.

    Raises:
        UserError: there is none.
    """
    layers = tuple(layers)
    if not layers:
        raise UserError("layers: none; expected what rectified gives.")
    known = np.concatenate([layer.dead[~np.isnan(layer.largest)] for layer in layers])
    return float(known.mean()) if len(known) else float("nan")


def _batches(given: Any) -> Iterator[Any]:
    if isinstance(given, np.ndarray) or keras.ops.is_tensor(given):
        for first in range(0, len(given), _BATCH):
            yield given[first : first + _BATCH]
    else:
        for batch in given:
            yield batch[0] if isinstance(batch, tuple) else batch


def _is_rectifier(operation: Any) -> bool:
    if isinstance(operation, keras.layers.ReLU):
        return not operation.negative_slope
    return getattr(operation, "activation", None) in _RECTIFIERS
