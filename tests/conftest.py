"""Every test starts from the same seeds, on the backend of KERAS_BACKEND (torch by default)."""

import signal
import tempfile

import kgraft  # isort: skip  # chooses the backend before Keras is imported
import hypothesis
import keras
import pytest

assert kgraft.__name__

# a process that a script starts in the background ignores Ctrl-C, and so would the tests of it
signal.signal(signal.SIGINT, signal.default_int_handler)

# how long an example takes says nothing on a machine that has more to do
hypothesis.settings.register_profile("without deadline", deadline=None)
hypothesis.settings.load_profile("without deadline")

if keras.config.backend() == "jax":  # the same tiny networks are compiled over and over
    import jax

    compiled_steps = tempfile.TemporaryDirectory()
    jax.config.update("jax_compilation_cache_dir", compiled_steps.name)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(autouse=True)
def _seeded():
    keras.utils.set_random_seed(0)
