"""Weights of runs and models, to PyTorch and back."""

from pathlib import Path

import keras

from kgraft import models
from kgraft.errors import UserError, suggest
from kgraft.files import check_place, whole
from kgraft.models.layouts import (
    Layout,
    State,
    best_layout,
    expected,
    layouts,
    load_state,
    to_state,
)
from kgraft.runs import state_dict
from kgraft.runs.finished import peer_file, read_run
from kgraft.runs.keras_file import read_model


def import_weights(
    source: Path, name: str, out: Path, *, peer: int = 1, size: int | None = None
) -> keras.Model:
    """A Keras model with weights from elsewhere, saved to a file.

    The numbers of classes and of channels are those that the weights are for.

    Args:
        source: a PyTorch state dict, a `.keras` file or the directory of a run.
        name: the architecture, as in `models.names()`.
        out: a new `.keras` file.
        peer: whose weights are taken of a run, counted from 1.
        size: side of the images, pixels; None for that of the source's model or, where weights
            alone do not tell it, the architecture's usual one.

    Returns:
        The model.

    Raises:
        UserError: a file is missing, damaged or in the way, or the weights do not fit; names the
            first key that does not.
    """
    if out.suffix != ".keras":
        raise UserError(f"{out}: expected a name that ends in .keras.")
    _check_new(out)
    side = size or models.default_size(name)
    state, text, sides = _read(source, peer)
    height, width = sides if sides and size is None else (side, side)
    model = models.build(name, input_shape=(height, width, 3), classes=2)
    layout = best_layout(model, state)
    channels, classes = _ends(model, state, layout)
    if (channels, classes) != (3, 2):
        model = models.build(name, input_shape=(height, width, channels), classes=classes)
    load_state(model, state, layout, text)
    with whole(out) as partial:
        model.save(partial)
    return model


def export_weights(source: Path, out: Path, *, peer: int = 1, layout: str | None = None) -> State:
    """A PyTorch state dict of a Keras model's weights, saved to a file.

    Args:
        source: a `.keras` file of one of kgraft's architectures, or the directory of a run.
        out: a new `.pt`, `.pth` or `.safetensors` file.
        peer: whose weights are taken of a run, counted from 1.
        layout: whose names the keys have; None for the architecture's usual ones.

    Returns:
        The state dict.

    Raises:
        UserError: a file is missing or in the way, the model is not one of kgraft's, or the layout
            is not one of its.
    """
    state_dict.check_suffix(out)
    _check_new(out)
    model, _ = _model(source, peer)
    known = {known.name: known for known in layouts(model)}
    if layout is not None and layout not in known:
        raise UserError(f"layout {layout!r} does not fit {model.name}." + suggest(layout, known))
    state = to_state(model, known[layout] if layout else next(iter(known.values())))
    state_dict.write(out, state)
    return state


def _read(source: Path, peer: int) -> tuple[State, str, tuple[int, int] | None]:
    """Weights in PyTorch's form, what to call them, and the images' sides where they are known."""
    if not source.is_dir() and source.suffix != ".keras":
        return state_dict.read(source), str(source), None
    model, text = _model(source, peer)
    return to_state(model, layouts(model)[0]), text, model.input_shape[1:3]


def _model(source: Path, peer: int) -> tuple[keras.Model, str]:
    file = source
    if source.is_dir():
        _, summary = read_run(source)
        file = peer_file(source, summary, peer)
    return read_model(file, str(file)), str(file)


def _ends(model: keras.Model, state: State, layout: Layout) -> tuple[int, int]:
    """Channels and classes that weights are for, where they tell; else those of the model.

    They tell by arrays that have the model's own shape besides, so that what is built then is as
    large as they are.
    """
    own = expected(model, layout)
    first = next(iter(own))
    last = f"{layout.modules['logits']}.weight"
    channels = _side(state, first, own[first], 1)
    return channels, max(2, _side(state, last, own[last], 0))


def _side(state: State, key: str, own: tuple[int, ...], axis: int) -> int:
    """An array's length along an axis, where it is like the model's along all others."""
    shape = state[key].shape if key in state else own
    alike = len(shape) == len(own) and shape[axis] > 0
    alike = alike and all(
        side == other for k, (side, other) in enumerate(zip(shape, own, strict=True)) if k != axis
    )
    return int(shape[axis] if alike else own[axis])


def _check_new(out: Path) -> None:
    if out.exists():
        raise UserError(f"{out} exists already: choose another -o, or remove it.")
    check_place(out)
