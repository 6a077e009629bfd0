"""What JSON from elsewhere has to look like before anything of it is used."""

import math
from collections.abc import Mapping
from typing import Any

_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "a string",
    bool: "true or false",
    None: "null",
}
_MOST = 2**63  # what a whole number may be; NumPy and files know no larger ones


def fault(value: Any, like: Any, where: str = "") -> str:
    """What is wrong with a value, `""` for nothing.

    Args:
        value: what JSON gave.
        like: what it has to look like: `int`, `float` (a finite number), `str`, `bool` or None; a
            tuple of those, one of which it is; `[like]`, a list of these; `{"key": like}`, an
            object that has these keys, and maybe others; `{str: like}`, an object of these;
            `object`, anything.
        where: the value's place.

    Example:
        >>> fault({"peers": [{"lr": "x"}]}, {"peers": [{"lr": float}]})
        "peers[0].lr is 'x': expected a number"
        >>> fault({}, {"peers": [{"lr": float}]})
        'peers is missing'
    """
    if isinstance(like, dict):
        if not isinstance(value, Mapping):
            return _wrong(value, "an object", where)
        keys = dict.fromkeys(value, like[str]) if str in like else like
        for key, own in keys.items():
            place = f"{where}.{key}" if where else key
            said = fault(value[key], own, place) if key in value else f"{place} is missing"
            if said:
                return said
        return ""
    if isinstance(like, list):
        if not isinstance(value, list):
            return _wrong(value, "a list", where)
        parts = (fault(part, like[0], f"{where}[{k}]") for k, part in enumerate(value))
        return next(filter(None, parts), "")
    kinds = like if isinstance(like, tuple) else (like,)
    if any(_is(value, kind) for kind in kinds):
        return ""
    return _wrong(value, " or ".join(_WORDS[kind] for kind in kinds), where)


def _is(value: Any, kind: Any) -> bool:
    if kind is object:
        return True
    if kind is None:
        return value is None
    if kind is float:
        return type(value) in (int, float) and abs(value) < _MOST and math.isfinite(value)
    return type(value) is kind and (kind is not int or abs(value) < _MOST)


def _wrong(value: Any, expected: str, where: str) -> str:
    short = value if isinstance(value, str | float | bool | None) else type(value).__name__
    return f"{where or 'it'} is {_cut(repr(short))}: expected {expected}"


def _cut(text: str) -> str:
    return text if len(text) < 40 else f"{text[:36]}..."
