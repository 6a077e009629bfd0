"""Checks of mixers' settings: finite numbers within their range, or one line that says which."""

import math
from numbers import Integral, Real
from typing import Any

from kgraft.errors import UserError


def check_share(owner: Any, name: str, *, ends: bool = True) -> None:
    """Refuse a setting that is no number in [0, 1].

    Args:
        owner: whose setting it is.
        name: of the setting.
        ends: whether 0 and 1 themselves are allowed.

    Raises:
        UserError: it is none.
    """
    value = getattr(owner, name)
    if _is_number(value) and (0 < value < 1 or (ends and value in (0, 1))):
        return
    _refuse(owner, name, "a number in [0, 1]" if ends else "a number between 0 and 1")


def check_positive(owner: Any, name: str) -> None:
    """Refuse a setting that is no finite number above 0; arguments as in `check_share`."""
    value = getattr(owner, name)
    if not (_is_number(value) and value > 0):
        _refuse(owner, name, "a positive, finite number")


def check_count(owner: Any, *names: str, least: int = 1) -> None:
    """Refuse settings that are no whole numbers from `least` up.

    Args:
        owner: whose settings they are.
        names: of the settings.
        least: the smallest that is allowed.

    Raises:
        UserError: names the first that is none.
    """
    for name in names:
        value = getattr(owner, name)
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            _refuse(owner, name, f"a whole number, {least} or more")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _refuse(owner: Any, name: str, expected: str) -> None:
    value = getattr(owner, name)
    raise UserError(f"{type(owner).__name__}({name}={value}): expected {expected}.")
