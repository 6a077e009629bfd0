"""Data sets that a function of the user's own returns."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kgraft.data.arrays import KEYS, check_labels, check_size, checked_split, classification_set
from kgraft.data.dataset import Dataset, Split
from kgraft.errors import UserError, told
from kgraft.parts import Part, load

_EXAMPLE = "mypkg.data:load"
_DIRECTORY = "directory"  # an argument that it may have, see `read_own`


def loader(name: str | Path) -> Part | None:
    """What loads a set of the user's own; None for any other name.

    Args:
        name: `module:function`.

    Raises:
        UserError: there is no such module or function, or it cannot be imported.
    """
    if not isinstance(name, str) or name.endswith(".npz") or not _looks_own(name):
        return None
    what = f"data set {name!r}"
    given = (
        (_DIRECTORY,)
        if Part(what, found := load(name, "data set", _EXAMPLE)).has(_DIRECTORY)
        else ()
    )
    return Part(what, found, given, reference=name)


def read_own(part: Part, own: Mapping[str, Any], directory: str | Path | None) -> Dataset:
    """The whole set that a function returns.

    Args:
        part: what `loader` gave. It returns a `Dataset`, whose validation part may be None, or
            `(x_train, y_train), (x_test, y_test)`, as `keras.datasets` do: images uint8
            `(n, height, width)` or with channels behind, labels integers `(n,)` or `(n, 1)`.
        own: its arguments.
        directory: where prepared sets are; for one that has an argument `directory`.

    Raises:
        UserError: it has failed, or returned something else.
    """
    if directory is not None and not part.has(_DIRECTORY):
        raise UserError(
            f"{part.what} takes no {_DIRECTORY}, and data.directory (--data-dir) is {directory}: "
            "take that out."
        )
    given = {} if directory is None else {_DIRECTORY: str(directory)}
    found = part.made(own, **given)
    if isinstance(found, Dataset):
        return _checked(found, part)
    try:
        (x_train, y_train), (x_test, y_test) = found
    except (TypeError, ValueError):
        raise UserError(
            f"{part.what} returned {told(found)}: expected a kgraft.data.Dataset, or (x_train, "
            "y_train), (x_test, y_test)."
        ) from None
    parts = dict(zip(KEYS, (x_train, y_train, x_test, y_test), strict=True))
    arrays = {key: _array(value, key) for key, value in parts.items()}
    return classification_set(
        arrays, part.what, name=part.reference, source=part.reference, licence="not stated"
    )


def _looks_own(name: str) -> bool:
    """Also what is meant to be a reference and is none; behind TFDS' names there are versions."""
    _, colon, attribute = name.partition(":")
    return bool(colon) and not attribute[:1].isdigit() and attribute[:1] != "*"


def _checked(found: Dataset, part: Part) -> Dataset:
    """A set with the parts that kgraft's own have."""
    splits: dict[str, Split | None] = {}
    for key in ("train", "validation", "test"):
        own = getattr(found, key)
        if own is None and key == "validation":
            splits[key] = None
            continue
        if not isinstance(own, Split):
            raise UserError(f"{part.what}: its {key} is {told(own)}: expected a kgraft.data.Split.")
        arrays = {f"x_{key}": np.asarray(own.images), f"y_{key}": np.asarray(own.labels)}
        splits[key] = checked_split(arrays, part.what, key)
    train = splits["train"]
    assert train is not None
    for key, other in splits.items():
        if other is not None:
            check_size(other, f"x_{key}", train, part.what)
            check_labels(other, f"y_{key}", found.classes, part.what)
    return replace(found, name=part.reference, **splits)  # type: ignore[arg-type]


def _array(value: Any, key: str) -> np.ndarray:
    """An array with the axes that others have: grey images' channels, labels without a column."""
    array = np.asarray(value)
    if key.startswith("x") and array.ndim == 3:
        return array[..., None]
    if key.startswith("y") and array.ndim == 2 and array.shape[1] == 1:
        return array[:, 0]
    return array
