"""Kinds of values: what a type and its limits let a value be, and how it is written in TOML."""

import math
import types
import typing
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from kgraft.errors import suggest


def read_as(
    hint: Any, rule: Mapping[str, Any], value: Any, most: float = math.inf
) -> tuple[Any, str]:
    """A value as what a type says that it is, and what is wrong with it, `""` for nothing.

    Args:
        hint: the type: `float`, `int | None`, a `Literal`.
        rule: its limits, `low`, `high`, `above`, `below`, and `choices`.
        value: what was given.
        most: what it must be smaller than, by amount.
    """
    kinds, words = _kinds(hint, rule)
    words = rule.get("choices", words)
    if not all(kind in NAMES for kind in kinds if kind is not types.NoneType):
        return value, ""  # a kind that the class checks itself
    value, fits = _typed(value, kinds)
    if not fits:
        expected = " or ".join(NAMES[kind] for kind in kinds if kind is not types.NoneType)
        return value, f": expected {expected}."
    if value is None:
        return value, ""
    if words and value not in words:
        return value, "." + suggest(value, words)
    numbers = value if isinstance(value, tuple) else (value,)
    if not all(_is_inside(number, rule) for number in numbers):
        return value, f": expected {_limits(rule)}."
    floats = [number for number in numbers if isinstance(number, float)]
    if not all(math.isfinite(number) and abs(number) <= most for number in floats):
        finite = "finite numbers" if isinstance(value, tuple) else "a finite number"
        return value, f": expected {finite}."
    return value, ""


def _is_inside(number: Any, rule: Mapping[str, Any]) -> bool:
    low, high, above, below = map(rule.get, _ENDS)
    return (
        (low is None or number >= low)
        and (high is None or number <= high)
        and (above is None or number > above)
        and (below is None or number < below)
    )


def _limits(rule: Mapping[str, Any]) -> str:
    low, high, above, below = map(rule.get, _ENDS)
    if low is not None and high is not None:
        return f"{low}..{high}"
    if above is not None and below is not None:
        return f"between {above} and {below}"
    told = {"more than ": above, "less than ": below, "at most ": high}
    parts = [] if low is None else [f"{low} or more"]
    return ", ".join(parts + [f"{word}{end}" for word, end in told.items() if end is not None])


_ENDS = ("low", "high", "above", "below")
NAMES: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a string",
    tuple[str, ...]: "a list of strings",
    tuple[float, ...]: "a list of numbers",
    tuple[int, ...]: "a list of whole numbers",
}


def _typed(value: Any, kinds: tuple[Any, ...]) -> tuple[Any, bool]:
    """A value as one of the kinds, and whether it can be read as one."""
    if value is None or isinstance(value, bool | str):
        return value, type(value) in kinds
    if int in kinds and isinstance(value, Integral):
        return int(value), True
    if float in kinds and isinstance(value, Real):
        return _as_float(value), True
    if isinstance(value, list | tuple):
        if tuple[float, ...] in kinds and all(type(part) in (int, float) for part in value):
            return tuple(map(_as_float, value)), True
        if tuple[int, ...] in kinds and all(type(part) is int for part in value):
            return tuple(value), True
        if tuple[str, ...] in kinds and all(type(part) is str for part in value):
            return tuple(value), True
    return value, False


def _as_float(number: Any) -> float:
    """A number as a float, infinite where there is none so large."""
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def _kinds(hint: Any, rule: Mapping[str, Any]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """What a value may be, and the words of a `Literal`."""
    if "parts" in rule:  # in Python also an object
        return (str,), ()
    hints = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    kinds: list[Any] = []
    words: list[Any] = []
    for one in hints:
        literal = typing.get_args(one) if typing.get_origin(one) is typing.Literal else ()
        words += literal
        kinds += [str] if literal else [one]
    return tuple(kinds), tuple(words)


def to_toml(value: Any) -> str:
    """A value as TOML."""
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            escaped = value.replace("\\", "\\\\").replace('"', '\\"')
            return (
                '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in escaped) + '"'
            )
        case list() | tuple():
            return "[" + ", ".join(map(to_toml, value)) + "]"
        case _:
            return str(value)
