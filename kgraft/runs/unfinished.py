"""What a run that was broken off has to be, so that it can go on."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from kgraft.backend import BACKENDS
from kgraft.errors import UserError
from kgraft.files import check_plain, is_directory, is_file, only_writer
from kgraft.runs.config import Config, read
from kgraft.runs.directory import check_unfinished, read_json
from kgraft.runs.environment import parts_of
from kgraft.runs.own import check_trusted
from kgraft.structure import fault

_log = logging.getLogger("kgraft")

_ENVIRONMENT = {"backend": {"name": str}}
_PARTS = {str: {"file": (str, None), "sha256": (str, None)}}
_TRAINED = ("metrics.jsonl", "checkpoints", "teachers")  # made after environment.json
_FREE = ("checkpoint.", "ring.")  # tables that change nothing of what comes out


def read_unfinished(path: Path, *, trusted: bool = False) -> Config:
    """Settings of a run that was broken off.

    A file of a part of the user's own, or of weights, that has changed since is named in the log:
    the run goes on, whoever has mended it means it.

    Args:
        path: a run's directory.
        trusted: whether functions that it names may be called.

    Raises:
        UserError: there is no run, another process is at it, it is finished, it trains on another
            backend, a file of it is gone or was changed, it would have written elsewhere, or it
            names functions and is not trusted.
    """
    _check_begun(path)
    check_unfinished(path)
    check_plain(path)
    with only_writer(path):  # to be told at once; whoever trains takes it for as long as that takes
        pass
    config = read(path / "run.toml")
    if not trusted:
        check_trusted(config, path)
    if (path / "environment.json").is_file():
        found = read_json(path / "environment.json", _ENVIRONMENT)
        name = found["backend"]["name"]
        if name not in BACKENDS:
            raise UserError(f"{path / 'environment.json'}: no backend is called {name!r}.")
        if name != keras.config.backend():
            raise UserError(
                f"--resume {path}: the run trains on {name}, this is {keras.config.backend()}: "
                f"set KERAS_BACKEND={name}."
            )
        if wrong := fault(settings := found.get("settings", {}), {str: (str, None)}):
            raise UserError(f"{path / 'environment.json'}: settings: {wrong}.")
        if wrong := fault(parts := found.get("parts", {}), _PARTS):
            raise UserError(f"{path / 'environment.json'}: parts: {wrong}.")
        _check_unchanged(path, config, settings)
        _name_changed(config, parts)
    elif trained := [name for name in _TRAINED if (path / name).exists()]:
        raise UserError(
            f"--resume {path}: environment.json, which says what the run began with, is gone, and "
            f"{trained[0]} is there: put it back, or begin another run, kgraft fit "
            f"{path / 'run.toml'} --out DIR."
        )
    return config


def _check_begun(path: Path) -> None:
    """Refuse what holds no run, and say what it is instead."""
    if is_file(path / "run.toml"):
        return
    if is_file(path):
        raise UserError(f"--resume {path}: it is a file; expected a run's directory.")
    if not is_directory(path):
        raise UserError(f"--resume {path}: there is no such directory.")
    _, folders, files = next(os.walk(path), ("", [], []))
    if all(name.startswith(".") for name in (*folders, *files)):  # .lock, of a run killed at once
        raise UserError(f"--resume {path}: the directory is empty, no run has begun there.")
    raise UserError(f"--resume {path}: no run's directory, it holds no run.toml.")


def _check_unchanged(path: Path, config: Config, begun: dict[str, str | None]) -> None:
    """Refuse a run whose settings are others than those that it began with.

    What the kgraft that began it did not know is no change.
    """
    now = config.told()
    for key, old in begun.items():
        if (new := now.get(key)) == old or key.startswith(_FREE):
            continue
        found = f"has {key} = {new}" if key in config.given else f"has no {key}"
        if key not in config.given and new is not None:
            found += f", which means {new}"
        began = "without it" if old is None else f"with {old}"
        raise UserError(
            f"--resume {path}: run.toml {found}, the run began {began}: put it back, or begin "
            f"another one, kgraft fit {path / 'run.toml'} --out DIR."
        )


def _name_changed(config: Config, begun: Mapping[str, Mapping[str, Any]]) -> None:
    """Log which parts have other files than those that the run began with, a line a file."""
    changed: dict[tuple[Any, ...], list[str]] = {}
    for name, now in parts_of(config).items() if begun else ():
        then = begun.get(name, {}).get("sha256")
        if then not in (None, now["sha256"]):
            changed.setdefault((now["file"], now["sha256"], then), []).append(name)
    for (file, now, then), names in changed.items():
        _log.warning(
            "%s: %s has changed since the run began (sha256 %s, was %s).",
            ", ".join(names),
            file,
            str(now)[:8],
            then[:8],
        )
