"""What a run that was broken off has to be, so that it can go on."""

from pathlib import Path

import keras

from kgraft.backend import BACKENDS
from kgraft.errors import UserError
from kgraft.files import check_plain, is_file, only_writer
from kgraft.runs.config import Config, read
from kgraft.runs.directory import check_unfinished, read_json
from kgraft.structure import fault

_ENVIRONMENT = {"backend": {"name": str}}
_FREE = "checkpoint."  # a table that changes nothing of what comes out


def read_unfinished(path: Path) -> Config:
    """Settings of a run that was broken off.

    Args:
        path: a run's directory.

    Raises:
        UserError: there is no run, another process is at it, it is finished, it trains on another
            backend, or it would have written elsewhere.
    """
    if not is_file(path / "run.toml"):
        raise UserError(f"--resume {path}: no run's directory, it holds no run.toml.")
    check_unfinished(path)
    check_plain(path)
    with only_writer(path):  # to be told at once; whoever trains takes it for as long as that takes
        pass
    config = read(path / "run.toml")
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
        _check_unchanged(path, config, settings)
    return config


def _check_unchanged(path: Path, config: Config, begun: dict[str, str | None]) -> None:
    """Refuse a run whose settings are others than those that it began with.

    What the kgraft that began it did not know is no change.
    """
    now = config.told()
    for key, old in begun.items():
        if now.get(key) != old and not key.startswith(_FREE):
            raise UserError(
                f"--resume {path}: run.toml has {key} = {now.get(key)}, the run began with {old}: "
                f"put it back, or begin another one, kgraft fit {path / 'run.toml'} --out DIR."
            )
