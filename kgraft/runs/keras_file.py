"""`.keras` files from anywhere: weighed before anything of them is built.

A `.keras` file is an archive with `config.json`, which says what to build, and `model.weights.h5`.
Nothing in it is code to kgraft: Keras refuses lambdas and classes that nobody has registered. And
nothing in it may cost more than the file has cost whoever has sent it: all of its parts are as
large unpacked as they are on the disk, or nearly; the model is first built without numbers, and
weights that it wants and the file has not are refused.
"""

import io
import json
import math
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

from kgraft.errors import UserError
from kgraft.files import is_file
from kgraft.keras_private import ObjectSharingScope, get_global_attribute, graph_of, nodes_of
from kgraft.models.classifier import check_classifier

_CONFIG, _METADATA, _WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
_MOST_JSON = 1 << 26  # bytes unpacked; ResNet110's config has half a million
_MOST_EXPANSION = 20  # unpacked over packed: Keras packs nothing, and a config packs 20 to 1
_MOST_MEMBERS = 1000  # Keras writes three
_SPARE = 1 << 16  # bytes of variables that a model has and does not save
_MOST_ACTIVATION = 1 << 26  # numbers in one layer's output for one image; VGG16's has 3 million
_MOST_SAID = 160  # characters of what Keras says; it may say a whole config


def read_model(file: Path, name: str) -> keras.Model:
    """A Keras model from a file, not compiled.

    Args:
        file: a `.keras` file.
        name: what to call it in an error.

    Raises:
        UserError: there is no such file, it holds no Keras model, code, or something else than what
            Keras saves; or it asks for more than it holds.
    """
    if not is_file(file):
        raise UserError(f"{name}: no such file.")
    try:
        with warnings.catch_warnings(record=True) as said:
            config, stored = _unpacked(file)
            _weigh(config, stored)
            model = keras.saving.load_model(file, compile=False, safe_mode=True)
    except MemoryError:
        raise
    except zipfile.BadZipFile:
        what = "it is empty, cut off or damaged; expected a .keras file."
        if h5py.is_hdf5(file):
            what = "it is an HDF5 file; expected a .keras file: load it with Keras, save it as one."
        raise UserError(f"{name} is no Keras model that can be loaded: {what}") from None
    except Exception as error:  # of Keras, HDF5 or zlib, by what stands in the file
        if isinstance(error, RuntimeError) and "memory" in str(error):
            raise MemoryError(_said(error)) from None
        raise UserError(f"{name} is no Keras model that can be loaded: {_said(error)}") from None
    for warning in said:  # not beside the line that refuses it
        warnings.warn(warning.message, stacklevel=2)
    return model


def read_classifier(
    file: Path, name: str, shape: tuple[int, ...], classes: int, data: str = "the data have"
) -> keras.Model:
    """A model that answers with one number a class for each image.

    Args:
        file: a `.keras` file.
        name: what to call it in an error.
        shape: height, width and channels of the images.
        classes: how many.
        data: who has such images and classes, for errors.

    Raises:
        UserError: what `read_model` raises, or it is a model for something else.
    """
    model = read_model(file, name)
    check_classifier(model, name, shape, classes, data)
    return model


class _Refused(ValueError):
    """Something in the file that Keras would not have saved."""


def _unpacked(file: Path) -> tuple[Any, int]:
    """The config, and how many bytes of weights there are, when all parts are as Keras saves them.

    Nothing is extracted.
    """
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        names = [member.filename for member in members[:_MOST_MEMBERS]]
        for needed in (_CONFIG, _WEIGHTS):
            if needed not in names:
                raise _Refused(f"it holds no {needed}.")
        foreign = [own for own in names if own not in (_CONFIG, _METADATA, _WEIGHTS)]
        if foreign or len(set(names)) < len(members):
            raise _Refused(
                f"it holds {_cut(repr(foreign[0]))}, which Keras does not save with images' models."
                if foreign
                else "it holds a part twice."
            )
        for member in members:
            most = max(_MOST_EXPANSION * member.compress_size, 1 << 16)
            if member.filename != _WEIGHTS:
                most = min(most, _MOST_JSON)
            if member.file_size > most:
                raise _Refused(
                    f"its {member.filename} unpacks to {member.file_size:,} bytes; at most "
                    f"{most:,} are read."
                )
        config = json.loads(archive.read(_CONFIG))
        if not isinstance(config, dict):
            raise _Refused(f"its {_CONFIG} is no object.")
        weights = archive.read(_WEIGHTS)
    with h5py.File(io.BytesIO(weights), "r") as opened:
        opened.visititems(_check_array)
    return config, len(weights)


def _check_array(place: str, found: Any) -> None:
    """Refuse an array of which less is stored than it says: Keras packs none."""
    if isinstance(found, h5py.Dataset) and found.id.get_storage_size() < found.nbytes:
        raise _Refused(
            f"its weights {_cut(place)} say to be of shape {found.shape}, {found.nbytes:,} bytes, "
            f"and {found.id.get_storage_size():,} are stored."
        )


def _weigh(config: dict[str, Any], stored: int) -> None:
    """Build the model without numbers, and refuse it if it is larger than what is stored."""
    waiting = get_global_attribute("uninitialized_variables", [], set_to_default=True)
    before = len(waiting)
    try:
        with keras.StatelessScope(initialize_variables=False), ObjectSharingScope():
            model = keras.saving.deserialize_keras_object(
                {**config, "compile_config": None}, safe_mode=True
            )
        if not isinstance(model, keras.Model):
            raise _Refused(f"it holds a {type(model).__name__}; expected a model.")
        wanted = sum(map(_bytes_of, waiting[before:]))
    finally:
        del waiting[before:]  # never to be filled
    if wanted > stored + _SPARE:
        raise _Refused(
            f"its layers want {wanted:,} bytes of weights, and the file holds {stored:,}."
        )
    for layer, numbers in _activations(model):
        if numbers > _MOST_ACTIVATION:
            raise _Refused(
                f"its layer {_cut(layer)} makes {numbers:,} numbers of an image; at most "
                f"{_MOST_ACTIVATION:,} are computed."
            )


def _bytes_of(variable: Any) -> int:
    return math.prod(variable.shape) * np.dtype(variable.dtype).itemsize


def _activations(model: Any) -> Iterable[tuple[str, int]]:
    """Layers and how many numbers they make of one image, as far as the model says it."""
    graph = graph_of(model)
    for node in () if graph is None else nodes_of(graph):
        if isinstance(node.operation, keras.Function):
            yield from _activations(node.operation)
        for tensor in node.outputs:
            yield node.operation.name, math.prod(side for side in tensor.shape if side is not None)


def _said(error: Exception) -> str:
    if isinstance(error, zipfile.BadZipFile):
        return "it is no archive, or damaged."
    if isinstance(error, RecursionError):
        return "it is nested too deep."
    lines = str(error).strip().splitlines()
    return _cut(" ".join(lines[0].split()), _MOST_SAID) if lines else type(error).__name__


def _cut(text: str, most: int = 60) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."
