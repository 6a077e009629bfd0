"""From a classifier to what it sees in an image: the features that its last layer decides on."""

from typing import Any

import keras

from kgraft.errors import UserError, suggest
from kgraft.settings import argument


def embedder(model: keras.Model, layer: str | None = None) -> keras.Model:
    """A model that gives features, and shares all weights with a classifier.

    Args:
        model: A functional or Sequential classifier.
        layer: The layer whose output are the features; None for what goes into the last layer with
            weights, which is the classifier's head.

    Returns:
        Model, images `(n, ...)` -> features `(n, d)`.

    Raises:
        UserError: it has no graph, no such layer, or what comes out there are no features.

    Example:
        >>> import kgraft
        >>> model = kgraft.models.build("resnet8", input_shape=(8, 8, 3), classes=10)
        >>> embedder(model).output_shape
        (None, 64)
    """
    argument("model", model, keras.Model)
    features = _features(model, layer)
    if len(features.shape) != 2:
        where = f"layer {layer!r} gives" if layer else "its head takes"
        raise UserError(
            f"{model.name!r}: {where} {tuple(features.shape)}; expected (None, d), features."
        )
    inputs = model.inputs if len(model.inputs) > 1 else model.inputs[0]
    return keras.Model(inputs, features, name=f"{model.name}_features")


def head_of(model: keras.Model) -> Any:
    """The last layer with weights of a classifier.

    Args:
        model: It.

    Raises:
        UserError: it has none.
    """
    found = [layer for layer in model.layers if layer.weights]
    if not found:
        raise UserError(f"{model.name!r} has no layer with weights: expected a classifier.")
    return found[-1]


def _features(model: keras.Model, layer: str | None) -> Any:
    try:
        if layer is None:
            return head_of(model).input
        return model.get_layer(layer).output
    except UserError:
        raise
    except AttributeError as error:  # no graph
        raise UserError(f"{model.name!r} has no graph: expected a functional model.") from error
    except ValueError:
        names = [own.name for own in model.layers]
        raise UserError(
            f"{model.name!r} has no layer {layer!r}." + suggest(str(layer), names)
        ) from None
