"""What a classifier of images has to be, whoever has built it."""

from typing import Any

import keras

from kgraft.errors import UserError, told
from kgraft.keras_private import graph_of


def check_classifier(
    model: Any, name: str, shape: tuple[int, ...], classes: int, data: str = "the data have"
) -> None:
    """Refuse what does not answer with one number a class for each image.

    Args:
        model: anything.
        name: what to call it in an error.
        shape: height, width and channels of the images.
        classes: how many.
        data: who has such images and classes, for errors.

    Raises:
        UserError: it is no model with a graph, or one for something else.
    """
    if not isinstance(model, keras.Model):
        raise UserError(f"{name} is {told(model)}: expected a keras.Model.")
    graph = graph_of(model)
    if graph is None:
        raise UserError(
            f"{name} has no graph, one input and one output: expected a functional model, or a "
            "Sequential one that begins with keras.Input."
        )
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise UserError(f"{name} has not one input and one output: expected a classifier.")
    takes, gives = tuple(graph.inputs[0].shape), tuple(graph.outputs[0].shape)
    if takes[1:] != tuple(shape):
        raise UserError(f"{name} takes images of {takes[1:]}, {data} {tuple(shape)}.")
    if len(gives) != 2 or gives[0] is not None:
        raise UserError(f"{name} gives {gives}: expected one number a class, (None, {classes}).")
    if gives[1] != classes:
        raise UserError(f"{name} tells {gives[1]} classes apart, {data} {classes}.")
