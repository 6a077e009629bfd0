"""Compiled programs that outlive the process, where the backend can keep them."""

import os
from pathlib import Path

import keras


def keep_compiled() -> Path | None:
    """Let jax keep what it compiles on disk, so that the same run starts faster the next time.

    It goes to `kgraft/jax` in the user's cache directory (`XDG_CACHE_HOME`, or `~/.cache`).
    A directory that the user has chosen (`JAX_COMPILATION_CACHE_DIR`, or in jax' own settings) is
    left as it is. torch compiles nothing here, and tensorflow keeps nothing.

    Returns:
        The directory in use, None on other backends.
    """
    if keras.config.backend() != "jax":
        return None
    import jax

    chosen = jax.config.jax_compilation_cache_dir
    if chosen is not None:
        return Path(chosen)
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    directory = Path(root) / "kgraft" / "jax"
    jax.config.update("jax_compilation_cache_dir", str(directory))
    return directory
