"""TOML as somebody has written it: a run file's text, and `key=value` of the command line."""

import tomllib
from pathlib import Path
from typing import Any

from kgraft.errors import UserError
from kgraft.files import read_text

MOST_TOML = 1 << 20
"""Bytes of a run or comparison file: the longest in configs/ has some thousands."""


def text_of(path: Path, what: str) -> str:
    """A TOML file's text, without the mark (BOM) that some editors put before it.

    Args:
        path: the file.
        what: to call it in an error, e.g. `"run file"`.

    Raises:
        UserError: the file is missing, is no UTF-8, or is empty.
    """
    try:
        text = read_text(path, MOST_TOML).removeprefix("\ufeff")
    except FileNotFoundError:
        raise UserError(f"{what} {path}: no such file.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{what} {path} cannot be read: {error}.") from None
    if not text.strip():
        raise UserError(f"{what} {path} is empty: expected TOML; kgraft configs lists examples.")
    return text


def toml(text: str, source: str) -> dict[str, Any]:
    """The tables in a TOML file's text.

    Args:
        text: TOML.
        source: the file's name, for errors.

    Raises:
        UserError: it is none, or nested without end.
    """
    try:
        return tomllib.loads(text)
    except ValueError as error:
        raise UserError(f"{source} is not TOML: {error}.") from None
    except RecursionError:
        raise UserError(f"{source} is not TOML that can be read: it is nested too deep.") from None


def parse_assignment(text: str) -> tuple[str, Any]:
    """`key=value` of the command line; the value is TOML, a bare word is a string.

    Args:
        text: e.g. `"optimizer.lr=0.05"`.

    Returns:
        Key and value.

    Raises:
        UserError: there is no `=`, or more than one value.

    Example:
        >>> parse_assignment("model.name=resnet20")
        ('model.name', 'resnet20')
    """
    key, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--set {text}: expected table.key=value, e.g. optimizer.lr=0.05.")
    try:
        found = tomllib.loads(f"value = {value}")
    except (ValueError, RecursionError):
        return key.strip(), value.strip()
    if len(found) > 1:
        raise UserError(f"--set {key.strip()}: expected one value, found {value!r}.")
    return key.strip(), found["value"]
