"""What stands between a network's features and its classifier where images are searched.

Source: Luo et al., "Bag of tricks and a strong baseline for deep person re-identification", CVPRW
2019, section 3.5: a batch normalisation without a shift, and a classifier without a bias.
"""

from typing import Any

import keras

from kgraft.models.batch_norm import BatchNormalization

_NECK, _DROPOUT = "neck", "neck_dropout"
_SPREAD = 0.001  # of the classifier's first weights


def with_neck(model: keras.Model, *, normalised: bool, dropout: float = 0.0) -> keras.Model:
    """A classifier whose features are normalised, or dropped in part, before they are decided on.

    Args:
        model: A functional or Sequential classifier whose last layer is dense; its other layers are
            shared with what is returned.
        normalised: Whether there is a batch normalisation; the classifier then has no bias.
        dropout: Share of the features that are dropped in training.

    Returns:
        A functional model of the same name.
    """
    head = model.layers[-1]
    x, options = head.input, head.get_config()
    if normalised:
        x = BatchNormalization(center=False, name=_NECK)(x)
        start = keras.initializers.RandomNormal(stddev=_SPREAD)
        options |= {"use_bias": False, "kernel_initializer": start}
    if dropout:
        x = keras.layers.Dropout(dropout, name=_DROPOUT)(x)
    logits = keras.layers.Dense.from_config(options)(x)
    return keras.Model(_inputs(model), logits, name=model.name)


def heads_of(model: keras.Model) -> list[str]:
    """Names of the layers that decide on features: the last one with weights, and its neck.

    Args:
        model: A classifier.
    """
    weighty = [layer.name for layer in model.layers if layer.weights]
    return [name for name in weighty if name == _NECK or name == weighty[-1]]


def before_neck(model: keras.Model) -> str | None:
    """The layer whose output are the features before a neck.

    Args:
        model: What `with_neck` has returned, or any other, of which nothing is known: None.
    """
    first = _first_of(model)
    if first is None:
        return None
    features = model.get_layer(first).input
    return next(layer.name for layer in model.layers if layer.output is features)


def _first_of(model: keras.Model) -> str | None:
    """The first layer that `with_neck` has put into a model."""
    names = [layer.name for layer in model.layers]
    return next((name for name in (_NECK, _DROPOUT) if name in names), None)


def without_neck(model: keras.Model) -> keras.Model:
    """The classifier that `with_neck` was given, with a head of its own; all other layers shared.

    Args:
        model: What `with_neck` has returned, or any other: that is given back.
    """
    first = _first_of(model)
    if first is None:
        return model
    features: Any = model.get_layer(first).input
    head = model.layers[-1]
    plain = keras.layers.Dense(head.units, name=head.name)
    return keras.Model(_inputs(model), plain(features), name=model.name)


def _inputs(model: keras.Model) -> Any:
    """One alone, not in a list: Keras warns of arrays that are in none."""
    return model.inputs if len(model.inputs) > 1 else model.inputs[0]
