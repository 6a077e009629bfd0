"""Settings: fields of a dataclass that say what they may be, checked alike wherever they are given.

A field's type says its kind (`Literal` its words) and `setting` its range; the same rule answers
for `Graft(sharpness=0)` in Python and for `sharpness = 0` in a run file.
"""

import dataclasses
import inspect
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import field
from numbers import Integral, Real
from typing import Any

from kgraft.errors import UserError, suggest, told
from kgraft.kinds import NAMES, read_as, to_toml

_MOST = 3.4028234663852886e38  # what float32 holds: more is infinite as soon as it is used
_NOTHING: Mapping[str, Any] = types.MappingProxyType({})


def setting(
    default: Any,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: Any = None,
    parts: Mapping[str, Any] | None = None,
    key: bool = True,
    kw_only: bool = False,
) -> Any:
    """A field of a dataclass whose values are checked.

    Args:
        default: its value where nobody gives one.
        low: the smallest value.
        high: the largest.
        above: what it must be larger than.
        below: what it must be smaller than.
        choices: the words that it may be, where `Literal` does not say them.
        parts: by the field's word, a class with settings of its own, which then stand beside this
            one in a run file's table. In Python the field may hold an object.
        key: False for one that no run file sets: it is the run's own, as `seed` is.
        kw_only: whether it is given by name only.
    """
    limits = {"low": low, "high": high, "above": above, "below": below}
    rule = {**limits, "choices": choices or parts, "parts": parts, "key": key}
    given = {name: limit for name, limit in rule.items() if limit is not None}
    return field(default=default, metadata={"rule": given}, kw_only=kw_only)


def check(owner: Any) -> None:
    """Refuse an object with a setting that it may not have.

    Args:
        owner: a dataclass's.

    Raises:
        UserError: names the first such setting.
    """
    for own in _fields(type(owner)).values():
        value = getattr(owner, own.name)
        if "parts" in _rule(own) and not isinstance(value, str):
            continue
        _, wrong = _read(type(owner), own.name, value, most=math.inf)
        if wrong:
            raise UserError(f"{type(owner).__name__}({own.name}={_shown(value)}){wrong}")


def check_names(owner: type, given: Iterable[str]) -> None:
    """Refuse arguments that a class has not, and say what it has.

    Args:
        owner: the class.
        given: names of arguments.

    Raises:
        UserError: names the first that it has not.
    """
    if not given:
        return
    own = [*inspect.signature(owner.__init__).parameters.values()][1:]  # type: ignore[misc]
    known = [parameter.name for parameter in own]
    for name in given:
        if name not in known and all(
            parameter.kind is not parameter.VAR_KEYWORD for parameter in own
        ):
            raise UserError(
                f"{owner.__name__}({name}=...): no such argument." + suggest(name, known)
            )


def argument(
    name: str,
    value: Any,
    kind: Any,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    where: str = "",
) -> Any:
    """An argument of a function, checked as a setting is.

    Args:
        name: of the argument.
        value: what was given.
        kind: what it may be, written as a setting's type: `float`, `int | None`, a `Literal`; or
            any other class.
        low: the smallest value.
        high: the largest.
        above: what it must be larger than.
        below: what it must be smaller than.
        where: what the line begins with.

    Returns:
        The value, of that kind.

    Raises:
        UserError: it is of another kind, or out of range.

    Example:
        >>> argument("epochs", 3, int, low=1)
        3
        >>> argument("epochs", "3", int, low=1)
        Traceback (most recent call last):
        kgraft.errors.UserError: epochs='3': expected a whole number.
    """
    if inspect.isclass(kind) and kind not in NAMES:
        if isinstance(value, kind):
            return value
        expected = f"{kind.__module__.partition('.')[0]}.{kind.__name__}"
        raise UserError(f"{where}{name} is {told(value)}: expected a {expected}.")
    rule = {"low": low, "high": high, "above": above, "below": below}
    value, wrong = read_as(kind, rule, value)
    if wrong:
        raise UserError(f"{where}{name}={_shown(value)}{wrong}")
    return value


def _shown(value: Any) -> str:
    """A value in an error: as it is written, where that is short."""
    return str(value) if isinstance(value, list | tuple) else told(value)


def checked(
    table: type, key: str, value: Any, where: str, values: Mapping[str, Any] = _NOTHING
) -> Any:
    """A value that a run file or a flag gives to a setting.

    Args:
        table: the class whose setting it is, or that of one of its parts.
        key: the setting.
        value: what was given.
        where: where it comes from, for errors.
        values: see `keys_of`.

    Returns:
        The value, of the setting's own type.

    Raises:
        UserError: an unknown key, a wrong type, or an impossible value.
    """
    owners = keys_of(table, values)
    if key not in owners:
        raise UserError(f"{where} unknown key {key!r}." + suggest(key, owners))
    value, wrong = _read(owners[key], key, value)
    if wrong:
        raise UserError(f"{where} {key} = {to_toml(value)}{wrong}")
    return value


def keys_of(table: type, values: Mapping[str, Any] = _NOTHING) -> dict[str, type]:
    """The keys of a class's table in a run file, and of each the class that has it.

    Args:
        table: a class with settings.
        values: what is set; a word of it may choose a part that is not among the listed ones, and
            has keys of its own.

    Raises:
        UserError: such a part has a key that the table has already.
    """
    found: dict[str, type] = {}
    for own in _fields(table).values():
        if _rule(own).get("key", own.default_factory is dataclasses.MISSING):
            found[own.name] = table
        for part in _rule(own).get("parts", {}).values():
            found = {**found, **{key: part for key in _fields(part) if key not in found}}
    for name in list(_fields(table)):
        part = _part(table, name, values)
        if part is None or part in _rule(_fields(table)[name])["parts"].values():
            continue
        for key in _fields(part):
            if found.get(key) is table:
                raise UserError(
                    f"{part.__name__} has a setting {key!r}, as {table.__name__} has, beside "
                    "whose settings it stands: give it another name."
                )
        found |= dict.fromkeys(_fields(part), part)
    return found


def default_of(table: type, key: str, values: Mapping[str, Any] = _NOTHING) -> Any:
    """What a key of a class's table is where nobody sets it; None where it must be set."""
    default = _fields(keys_of(table, values)[key])[key].default
    return None if default is dataclasses.MISSING else default


def read_of(table: type, values: Mapping[str, Any]) -> list[str]:
    """The keys of a class's table that count, which may depend on the words of its parts.

    Args:
        table: a class with settings.
        values: what is set; the rest is default.
    """
    keys = keys_of(table, values)
    own = [key for key, owner in keys.items() if owner is table]
    for name in list(own):
        part = _part(table, name, values)
        if part is not None:
            own += [key for key in _fields(part) if key not in own]
    return [key for key in keys if key in own]


def words_of(table: type, values: Mapping[str, Any]) -> dict[str, str]:
    """The words that choose the parts of a class, by key: what of its table counts hangs on them.

    Args:
        table: a class with settings.
        values: what is set; the rest is default.
    """
    return {
        key: values.get(key, own.default)
        for key, own in _fields(table).items()
        if "parts" in _rule(own)
    }


def made(table: type, values: Mapping[str, Any], **more: Any) -> Any:
    """An object from the settings of its table.

    Args:
        table: its class.
        values: what is set, its parts' settings too; the rest is default.
        more: arguments that are no settings.
    """
    arguments = dict(more)
    for key, owner in keys_of(table, values).items():
        if owner is not table:
            continue
        part = _part(table, key, values)
        if part is not None:
            arguments[key] = made(part, values)
        elif key in values:
            arguments[key] = values[key]
        elif _fields(table)[key].default is dataclasses.MISSING:
            raise UserError(f"{table.__name__} needs a {key}: set it in its table.")
    return table(**arguments)


def described(owner: Any) -> dict[str, Any]:
    """The settings of an object by name, JSON-able; of other objects in it, their names."""
    return {own.name: _described(getattr(owner, own.name)) for own in _fields(type(owner)).values()}


def _described(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Real):
        return int(value) if isinstance(value, Integral) else float(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"name": type(value).__name__, **described(value)}
    return value.__name__ if inspect.isroutine(value) else type(value).__name__


def _part(table: type, key: str, values: Mapping[str, Any]) -> Any:
    """The part that a key's word chooses, None for a key that chooses none."""
    own = _fields(table).get(key)
    parts = {} if own is None else _rule(own).get("parts", {})
    return None if own is None else parts.get(values.get(key, own.default))


def _fields(owner: type) -> dict[str, dataclasses.Field[Any]]:
    if not dataclasses.is_dataclass(owner):
        return {}
    return {own.name: own for own in dataclasses.fields(owner) if own.init}


def _hints(owner: type) -> dict[str, Any]:
    return typing.get_type_hints(owner)


def _rule(own: "dataclasses.Field[Any]") -> Mapping[str, Any]:
    return own.metadata.get("rule", {})


def _read(owner: type, name: str, value: Any, most: float = _MOST) -> tuple[Any, str]:
    """A value as the setting's own type, and what is wrong with it, `""` for nothing."""
    return read_as(_hints(owner)[name], _rule(_fields(owner)[name]), value, most)
