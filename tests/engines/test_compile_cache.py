"""What jax compiles is kept on disk for the next run."""

import os
import subprocess
import sys

import keras
import pytest

from kgraft.engines.backends import BACKEND

JAX = keras.config.backend() == "jax"
CODE = """
import sys, kgraft, numpy as np, keras, jax
from pathlib import Path
from kgraft.engines.backends import BACKEND
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
assert BACKEND.keep_compiled() == Path(sys.argv[1]) / "kgraft" / "jax", BACKEND.keep_compiled()
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
model.compile("sgd", "mse")
kgraft.GraftingFit([model]).fit(np.ones((8, 4)), np.ones((8, 3)), verbose=0)
"""


@pytest.mark.skipif(JAX, reason="jax keeps what it compiles")
def test_other_backends_keep_nothing():
    assert BACKEND.keep_compiled() is None


@pytest.mark.core
@pytest.mark.skipif(not JAX, reason="jax keeps what it compiles")
def test_programs_outlive_the_process(tmp_path):
    def run():
        subprocess.run(
            [sys.executable, "-c", CODE, str(tmp_path)],
            env={**os.environ, "XDG_CACHE_HOME": str(tmp_path), "KERAS_BACKEND": "jax"},
            check=True,
        )
        return sorted(
            p.name for p in (tmp_path / "kgraft" / "jax").iterdir() if "atime" not in p.name
        )

    first = run()
    assert any("train_step" in name or "_step" in name for name in first)
    assert run() == first


@pytest.mark.core
@pytest.mark.skipif(not JAX, reason="jax keeps what it compiles")
def test_the_users_own_choice_stays():
    import jax

    assert str(BACKEND.keep_compiled()) == jax.config.jax_compilation_cache_dir  # conftest's
