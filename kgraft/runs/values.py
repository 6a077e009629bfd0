"""Values of settings: what one may be, and how it is written."""

import dataclasses
import math
import types
import typing
from typing import Any

from kgraft.errors import UserError, suggest

_MOST = 3.4028234663852886e38  # what float32 holds: more is infinite as soon as it is used


def checked_value(table: type, table_name: str, key: str, value: Any, source: str) -> Any:
    """A setting's value, if it may be that.

    Args:
        table: the dataclass that describes the table.
        table_name: its name.
        key: the setting.
        value: what was given.
        source: where it comes from, for errors.

    Returns:
        The value, of the setting's own type.

    Raises:
        UserError: an unknown key, a wrong type, or an impossible value.
    """
    fields = {f.name: f for f in dataclasses.fields(table)}
    where = f"{source}: [{table_name}]"
    if key not in fields:
        raise UserError(f"{where} unknown key {key!r}." + suggest(key, fields))
    kinds = _kinds(typing.get_type_hints(table)[key])
    value, found = _typed(value, kinds)
    if found not in kinds:
        expected = " or ".join(_NAMES[kind] for kind in kinds if kind is not types.NoneType)
        raise UserError(f"{where} {key} = {to_toml(value)}: expected {expected}.")
    rule = fields[key].metadata
    if "choices" in rule and value is not None and value not in rule["choices"]:
        raise UserError(f"{where} {key} = {to_toml(value)}." + suggest(value, rule["choices"]))
    numbers = value if isinstance(value, tuple) else (value,)
    if value is not None and "above" in rule and not all(n > rule["above"] for n in numbers):
        raise UserError(f"{where} {key} = {to_toml(value)}: expected more than {rule['above']}.")
    if value is not None and "low" in rule:
        high = rule["high"]
        if not rule["low"] <= value <= (float("inf") if high is None else high):
            limit = f"{rule['low']} or more" if high is None else f"{rule['low']}..{high}"
            raise UserError(f"{where} {key} = {to_toml(value)}: expected {limit}.")
    finite = "finite numbers" if isinstance(value, tuple) else "a finite number"
    if any(isinstance(number, float) and not abs(number) <= _MOST for number in numbers):
        raise UserError(f"{where} {key} = {to_toml(value)}: expected {finite}.")
    return value


_NAMES: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a string",
    tuple[str, ...]: "a list of strings",
    tuple[float, ...]: "a list of numbers",
}


def _typed(value: Any, kinds: tuple[Any, ...]) -> tuple[Any, Any]:
    """A value as one of the kinds where it can be read as one, and the kind it then is."""
    if float in kinds and type(value) is int:
        value = _as_float(value)
    if type(value) not in (list, tuple):
        return value, type(value)
    if tuple[float, ...] in kinds and all(type(part) in (int, float) for part in value):
        return tuple(map(_as_float, value)), tuple[float, ...]
    if tuple[str, ...] in kinds and all(type(part) is str for part in value):
        return tuple(value), tuple[str, ...]
    return value, list


def _as_float(number: float) -> float:
    """A number as a float, infinite where there is none so large."""
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def _kinds(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


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
