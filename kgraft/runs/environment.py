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


def environment(seeds: dict[str, Any]) -> dict[str, Any]:
    """Versions, backend, devices, seeds and, in a checkout, the commit of kgraft.

    Args:
        seeds: the seeds that a run uses, JSON-able.
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
    }


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
