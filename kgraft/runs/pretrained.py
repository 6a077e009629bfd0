"""What networks start from: weights of a file, the same for all, and layers that are frozen."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kgraft.errors import UserError, suggest
from kgraft.files import is_directory, is_file
from kgraft.models.layouts import best_layout, load_state, to_state
from kgraft.runs import state_dict
from kgraft.runs.finished import best_peer_file
from kgraft.runs.keras_file import read_model

_log = logging.getLogger("kgraft")


def start_from(networks: Sequence[keras.Model], file: str) -> None:
    """Give networks of one architecture the weights of a file.

    Where the file's are for another number of classes, the head is that of the first network, which
    is said in the log: the head begins anew, and all networks are the same.

    Args:
        networks: built, one or more.
        file: a `.keras` file of that architecture, a PyTorch state dict of one of kgraft's, or the
            directory of a finished run, whose best peer is taken.

    Raises:
        UserError: there is no such file, or its weights do not fit; names the first that does not.
    """
    path, name = Path(file), f"model.weights {file}"
    if path.suffix in (".h5", ".hdf5", ".npz"):
        raise UserError(f"{name}: expected .keras, {', '.join(state_dict.SUFFIXES)}, or a run.")
    if not is_directory(path) and not is_file(path):
        raise UserError(
            f"{name}: no such file. Expected .keras, {', '.join(state_dict.SUFFIXES)}, or the "
            "directory of a finished run."
        )
    first, *others = networks
    if is_directory(path) or path.suffix == ".keras":
        source = best_peer_file(path) if is_directory(path) else path
        _take(first, read_model(source, name), name)
    else:
        _take_state(first, path, name)
    for weight, values in zip(first.weights, first.get_weights(), strict=True):
        if not np.isfinite(values).all():
            raise UserError(f"{name}: {weight.path} holds values that are no finite numbers.")
    for other in others:
        other.set_weights(first.get_weights())


def freeze(model: keras.Model, first: str) -> None:
    """Freeze all layers before one, in the order of `model.layers`.

    Frozen batch normalisation is that of inference, as everywhere in Keras.

    Args:
        model: a built network.
        first: the first layer that trains.

    Raises:
        UserError: there is no such layer, or no weight that trains then.
    """
    names = [layer.name for layer in model.layers]
    if first not in names:
        raise UserError(
            f"model.trainable_from = {first!r}: {model.name!r} has no such layer."
            + suggest(first, [layer.name for layer in model.layers if layer.weights])
        )
    for layer in model.layers[: names.index(first)]:
        layer.trainable = False
    if not model.trainable_weights:
        raise UserError(
            f"model.trainable_from = {first!r}: nothing trains then, no layer from there on has "
            "weights."
        )


def _take(model: keras.Model, other: keras.Model, name: str) -> None:
    """Weights of a model of the same architecture, in order; its head where that fits."""
    own, theirs = model.weights, other.weights
    if len(own) != len(theirs):
        raise UserError(
            f"{name}: {other.name!r} has {len(theirs)} weights, {model.name!r} {len(own)}: "
            "expected a network of the same architecture."
        )
    head = _head(model)
    kept = {id(weight) for weight in head.weights}
    unlike = [k for k in range(len(own)) if tuple(own[k].shape) != tuple(theirs[k].shape)]
    for k in unlike:
        here, there = tuple(own[k].shape), tuple(theirs[k].shape)
        if id(own[k]) not in kept or here[:-1] != there[:-1]:
            raise UserError(
                f"{name}: {theirs[k].path} is {there}, {own[k].path} of {model.name!r} {here}: "
                "expected a network of the same architecture."
            )
    values = [
        here if unlike and id(weight) in kept else there
        for weight, here, there in zip(own, model.get_weights(), other.get_weights(), strict=True)
    ]
    if unlike:
        _say(name, head.name, theirs[unlike[0]].shape[-1], own[unlike[0]].shape[-1])
    model.set_weights(values)


def _take_state(model: keras.Model, path: Path, name: str) -> None:
    """Weights of a PyTorch state dict, for an architecture whose layers' names are known."""
    state = state_dict.read(path)
    try:
        layout = best_layout(model, state)
    except UserError as error:
        raise UserError(f"{name}: {error} Others take a .keras file.") from None
    own, head = to_state(model, layout), f"{layout.modules['logits']}."
    ends = {key: own[key] for key in own if key.startswith(head) and key in state}
    classes = {
        key: state[key].shape[:1] for key in ends if state[key].shape[1:] == own[key].shape[1:]
    }
    unlike = [key for key, found in classes.items() if found != own[key].shape[:1]]
    if unlike and len(classes) == len(ends):
        _say(name, "logits", state[unlike[0]].shape[0], own[unlike[0]].shape[0])
        state |= ends
    load_state(model, state, layout, name)


def _head(model: keras.Model) -> Any:
    """The last layer with weights."""
    return [layer for layer in model.layers if layer.weights][-1]


def _say(name: str, head: str, theirs: int, own: int) -> None:
    _log.info(
        "%s: for %d classes, the data have %d: the head %r begins anew, the same in all networks",
        name,
        theirs,
        own,
        head,
    )
