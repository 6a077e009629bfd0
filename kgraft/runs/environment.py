"""The machine that a run trains on, and what trains there."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras

import kgraft
from kgraft.backend import installed_version
from kgraft.engines.backends import BACKEND
from kgraft.files import is_file
from kgraft.grafting.criteria import BY_NAME
from kgraft.parts import checksum, is_reference, origin
from kgraft.runs import own
from kgraft.runs.config import Config
from kgraft.runs.methods import distribution_of, is_foreign, method_of
from kgraft.settings import words_of


def environment(seeds: dict[str, Any], config: Config | None = None) -> dict[str, Any]:
    """Versions, backend, devices, seeds, parts and, in a checkout, the commit of kgraft.

    Args:
        seeds: the seeds that a run uses, JSON-able.
        config: its settings, None for one that names nothing.
    """
    name = keras.config.backend()
    return {
        "kgraft": installed_version("kgraft"),
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "keras": keras.version(),
        "numpy": version("numpy"),
        "backend": {"name": name, "version": installed_version(name)},
        "devices": BACKEND.devices(),
        "seeds": seeds,
        "parts": {} if config is None else parts_of(config),
    }


def parts_of(config: Config) -> dict[str, dict[str, Any]]:
    """Where everything comes from that is neither kgraft's nor Keras' own, see `origin`.

    Args:
        config: a run's settings.

    Returns:
        What the settings call it -> `file`, `sha256`, `distribution` and `version`; of a file of
        weights, too.
    """
    found = {
        name: origin(part.call, part.reference, part.distribution)
        for name, part in own.used(config).items()
    }
    method = method_of(config)
    name = config.run.method
    if name is not None and is_foreign(method):
        found[name] = origin(method, name, distribution_of(name))
    for word in words_of(method, config.of(method.table)).values():
        if is_reference(word):
            found[word] = origin(BY_NAME[word], word)
    weights = config.model.weights
    if weights is not None and is_file(Path(weights)):
        nobody = {"distribution": None, "version": None}
        found[weights] = {"file": weights, "sha256": checksum(Path(weights)), **nobody}
    return found


def _commit() -> str | None:
    """The commit of the repository that tracks the running kgraft's files, None without one.

    A kgraft that is installed below somebody else's repository has none. What git is told by its
    environment, in a hook say, is of another repository.
    """
    outside = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(Path(kgraft.__file__).parent), *arguments],
                capture_output=True,
                text=True,
                check=False,
                env=outside,
            )
        except OSError:  # there is no git
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", Path(kgraft.__file__).name) is None:
        return None
    return git("rev-parse", "HEAD")
