"""Nests of values: as JSON has them, their arrays aside, and as bytes that a message may be."""

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy

_ASIDE = "__array__"  # the key that stands in JSON for an array, its value is the array's name
_TUPLE = "__tuple__"  # and for a tuple, its value is the list of its parts
_PAIRS = "__dict__"  # and for a dict whose keys are not all words, its value is a list of pairs
_NUMBER = "__number__"  # and for one of NumPy's numbers, its value is dtype and number

_NUMBERS = {np.dtype(code).name: np.dtype(code).type for code in "?bhilBHILefd"}


def flat(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """A nest of values as JSON has it, its arrays aside.

    Args:
        value: dicts, lists and tuples of these, JSON's values, NumPy's numbers; of exactly these
            types, for they come back as these.
        arrays: gets the arrays, copied.

    Raises:
        TypeError: there is something else in it.
    """
    if type(value) is dict:
        if all(isinstance(key, str) for key in value):
            return {key: flat(part, arrays) for key, part in value.items()}
        return {_PAIRS: [[flat(own, arrays) for own in pair] for pair in value.items()]}
    if type(value) is tuple:
        return {_TUPLE: [flat(part, arrays) for part in value]}
    if type(value) is list:
        return [flat(part, arrays) for part in value]
    if isinstance(value, np.bool_ | np.integer | np.floating) and value.itemsize <= 8:
        return {_NUMBER: [value.dtype.name, value.item()]}
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        name = f"aside-{len(arrays):06d}"
        arrays[name] = np.array(value, order="C")
        return {_ASIDE: name}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a {type(value).__name__}")


def nested(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """What `flat` was given.

    Args:
        value: what it has returned.
        arrays: what it has put aside.
    """
    if isinstance(value, dict):
        if [*value] == [_ASIDE]:
            return arrays[value[_ASIDE]]
        if [*value] == [_TUPLE]:
            return tuple(nested(part, arrays) for part in value[_TUPLE])
        if [*value] == [_PAIRS]:
            return {nested(key, arrays): nested(own, arrays) for key, own in value[_PAIRS]}
        if [*value] == [_NUMBER]:
            kind, number = value[_NUMBER]
            return _NUMBERS[kind](number)
        return {key: nested(part, arrays) for key, part in value.items()}
    return [nested(part, arrays) for part in value] if isinstance(value, list) else value


def packed(value: Any) -> bytes:
    """A nest as bytes: how many are its words', the words, its arrays as safetensors has them.

    Args:
        value: what `flat` takes.

    Raises:
        TypeError: see `flat`.
    """
    arrays: dict[str, np.ndarray] = {}
    words = json.dumps(flat(value, arrays)).encode()
    return struct.pack("<Q", len(words)) + words + safetensors.numpy.save(arrays)


def unpacked(content: bytes) -> Any:
    """What `packed` was given; nothing in it is executed.

    Args:
        content: what it has returned.

    Example:
        >>> unpacked(packed({"peers": (1, 2), "rows": np.arange(3)}))
        {'peers': (1, 2), 'rows': array([0, 1, 2])}
    """
    (size,) = struct.unpack_from("<Q", content)
    words, arrays = content[8 : 8 + size], safetensors.numpy.load(content[8 + size :])
    return nested(json.loads(words), arrays)
