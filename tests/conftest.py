"""Every test starts from the same seeds, on the backend of KERAS_BACKEND (torch by default)."""

import tempfile

import kgraft  # isort: skip  # chooses the backend before Keras is imported
import keras
import pytest

assert kgraft.__name__

if keras.config.backend() == "jax":  # the same tiny networks are compiled over and over
    import jax

    compiled_steps = tempfile.TemporaryDirectory()
    jax.config.update("jax_compilation_cache_dir", compiled_steps.name)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(autouse=True)
def _seeded():
    keras.utils.set_random_seed(0)
