"""Which backend Keras runs on: torch, unless the user has chosen another one."""

import importlib.util
import json
import os
import sys
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

BACKENDS = ("torch", "jax", "tensorflow")

_WRITTEN_BY_KERAS = {
    "floatx": "float32",
    "epsilon": 1e-07,
    "backend": "tensorflow",
    "image_data_format": "channels_last",
}


class BackendError(ImportError):
    """The chosen backend is unknown or not installed."""


def _from_config() -> str | None:
    """The backend that the user's `keras.json` names, or None.

    The first import of Keras writes this file by itself, with `tensorflow` in it whatever backend
    is in use. A file that holds exactly those defaults is nobody's choice.
    """
    home = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")
    try:
        config = json.loads((home / "keras.json").read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(config, dict) or config == _WRITTEN_BY_KERAS:
        return None
    return config.get("backend")


def installed_version(backend: str) -> str | None:
    """Version of an installed backend, None for one that is not installed; imports nothing.

    Args:
        backend: one of `BACKENDS`.
    """
    for package in (backend, f"{backend}-cpu"):
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return None


def settle() -> str:
    """Settle the backend before Keras is imported; called by `import kgraft`.

    `KERAS_BACKEND` wins, then a `keras.json` that somebody has written, then torch. When Keras is
    already imported its backend can no longer change: a different one is only warned about.

    Returns:
        The backend that Keras runs on, `"torch"`, `"jax"` or `"tensorflow"`.

    Raises:
        BackendError: the chosen backend is unknown or not installed.
    """
    wanted = os.environ.get("KERAS_BACKEND") or _from_config() or "torch"
    keras = sys.modules.get("keras")
    if keras is not None and "config" in vars(keras):
        running = keras.config.backend()
        if running != wanted:
            warnings.warn(
                f"Keras is already imported on {running}, not on {wanted}: kgraft runs on "
                f"{running}. Set KERAS_BACKEND or import kgraft before keras.",
                stacklevel=3,
            )
        return running
    if wanted not in BACKENDS:
        raise BackendError(f"KERAS_BACKEND={wanted}: kgraft runs on {', '.join(BACKENDS)}.")
    if importlib.util.find_spec(wanted) is None:
        package = wanted if wanted == "torch" else f"'kgraft[{wanted}]'"
        raise BackendError(f"backend {wanted} is not installed: pip install {package}")
    os.environ["KERAS_BACKEND"] = wanted
    return wanted
