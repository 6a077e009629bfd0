"""Keras callbacks of the user's own in a run: `run.callbacks = ["package.module:Class"]`."""

import inspect
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras

from kgraft.errors import UserError, told
from kgraft.parts import Part, load

if TYPE_CHECKING:
    from kgraft.runs.config import Config

_EXAMPLE = "my_package.watch:Watch"
_GIVEN = ("peer", "run", "settings")

INSTEAD = {
    "keras.callbacks:TensorBoard": "--tensorboard, run.tensorboard = true, needs no TensorFlow and "
    "is for all peers."
}
"""What does it without the packages that one of Keras' own needs, by reference."""


def parts(config: "Config") -> dict[str, Part]:
    """What makes a run's callbacks, by reference.

    Args:
        config: the settings.

    Raises:
        UserError: one cannot be imported, is no function and no class of callbacks, or has an
            argument that nobody gives.
    """
    return {reference: _part(reference) for reference in config.run.callbacks}


def made(config: "Config", peer: int, run: Path) -> list[keras.callbacks.Callback]:
    """The callbacks of one peer.

    Args:
        config: the settings.
        peer: its number, counted from 1.
        run: the run's directory.

    Raises:
        UserError: see `parts`; what one has raised; something that it has made is no callback.
    """
    found = []
    for part in parts(config).values():
        callback = part.made({}, peer=peer, run=run, settings=_nested(config.flat()))
        if not isinstance(callback, keras.callbacks.Callback):
            raise UserError(f"{part.what} has made {told(callback)}: expected a Keras callback.")
        found.append(callback)
    return found


def files(config: "Config", watching: Sequence[keras.callbacks.Callback]) -> dict[str, str | None]:
    """Where the classes of one peer's callbacks are written: also Keras' own, made by whomever.

    Args:
        config: the settings.
        watching: the callbacks, as `made` gives them.

    Returns:
        File by reference, None where nobody knows.
    """
    modules = [sys.modules.get(type(own).__module__) for own in watching]
    found = [getattr(module, "__file__", None) for module in modules]
    return dict(zip(parts(config), found, strict=True))


def _part(reference: str) -> Part:
    found, what = load(reference, "callback", _EXAMPLE), f"callback {reference!r}"
    is_class = inspect.isclass(found)
    if not callable(found) or (is_class and not issubclass(found, keras.callbacks.Callback)):
        raise UserError(
            f"{what} is {f'the class {found.__name__}' if is_class else told(found)}: expected a "
            "class of Keras callbacks, or a function that makes one."
        )
    module = inspect.unwrap(found).__module__ if is_class else ""
    own = "" if module.partition(".")[0] == "keras" else reference
    part = Part(what, found, _GIVEN, reference=own, strict=is_class)
    if missing := part.missing():
        raise UserError(
            f"{what} needs {missing[0]}, and is given {', '.join(_GIVEN)} at most: name a function "
            "of your own that makes it."
        )
    return part


def _nested(flat: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Tables with their keys."""
    found: dict[str, dict[str, Any]] = {}
    for key, value in flat.items():
        table, _, name = key.partition(".")
        found.setdefault(table, {})[name] = value
    return found
