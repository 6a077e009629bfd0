"""Model soups: one network from the weights of several, with fresh batch statistics."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import numpy as np

from kgraft.errors import UserError
from kgraft.grafting.chains import layers_of
from kgraft.grafting.lawa import mean_weights
from kgraft.training.feeds import Batch


def greedy_soup(
    weights: Sequence[list[np.ndarray]], score: Callable[[list[np.ndarray]], float]
) -> tuple[list[np.ndarray], list[int]]:
    """The mean of those networks that make it better, tried in the order of their own scores.

    Args:
        weights: of each network, as from `get_weights`.
        score: how good a network with some weights is, on images held out; larger is better.

    Returns:
        The soup's weights, and which networks are in it, counted from 0, the best one first.

    Source: Wortsman et al., "Model soups", ICML 2022, recipe 1.
    """
    own = [score(part) for part in weights]
    order = sorted(range(len(weights)), key=lambda k: -own[k])
    chosen, best = [order[0]], own[order[0]]
    for k in order[1:]:
        tried = score(mean_weights([weights[j] for j in (*chosen, k)]))
        if tried >= best:
            chosen, best = [*chosen, k], tried
    return mean_weights([weights[k] for k in chosen]), chosen


def reestimate_statistics(model: keras.Model, batches: Iterable[Batch]) -> None:
    """Give a model's batch normalisations the mean statistics of some batches, by their sizes.

    The running mean and variance of averaged networks fit no network. Nothing else moves.

    Args:
        model: a built model; without batch normalisation it stays as it is.
        batches: training batches, augmented as in training, as tuples that begin with the images.

    Raises:
        UserError: there is no batch.
    """
    layers = [
        layer for layer in layers_of(model) if isinstance(layer, keras.layers.BatchNormalization)
    ]
    if not layers:
        return
    kept = [layer.momentum for layer in layers]
    others = _other_state(model, layers)
    seen = 0
    try:
        for images, *_ in batches:
            seen += len(images)
            for layer in layers:
                layer.momentum = 1 - len(images) / seen  # the mean of all so far
            model(images, training=True)
    finally:
        for layer, momentum in zip(layers, kept, strict=True):
            layer.momentum = momentum
        for variable, value in others:
            variable.assign(value)
    if not seen:
        raise UserError("no batch to estimate batch statistics from.")


def _other_state(model: keras.Model, layers: Sequence[Any]) -> list[tuple[Any, np.ndarray]]:
    """Non-trainable variables that are no batch statistics, e.g. seeds, and their values."""
    own = {id(v) for layer in layers for v in layer.non_trainable_variables}
    return [
        (v, np.array(keras.ops.convert_to_numpy(v)))
        for v in model.non_trainable_variables
        if id(v) not in own
    ]
