"""The same numbers on torch, jax and tensorflow, from the same weights and batches."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
BACKENDS = [b for b in ("torch", "jax", "tensorflow") if importlib.util.find_spec(b)]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.multiprocess,
    pytest.mark.skipif(len(BACKENDS) < 2, reason="only one backend is installed"),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backends")
    found = {}
    for backend in BACKENDS:
        out = folder / f"{backend}.npz"
        subprocess.run(
            [sys.executable, ROOT / "tests/reference/one_epoch.py", folder / "weights.npz", out],
            env={**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": str(ROOT)},
            check=True,
            timeout=300,
        )
        with np.load(out) as stored:
            found[backend] = dict(stored)
    return found


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_one_grafting_gives_the_same_coefficients_and_weights(results, backend):
    for name, value in results[BACKENDS[0]].items():
        if name != "losses":
            np.testing.assert_allclose(results[backend][name], value, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_the_first_epochs_losses_agree(results, backend):
    losses = results[BACKENDS[0]]["losses"]
    assert len(losses) == 2 * 18
    np.testing.assert_allclose(results[backend]["losses"], losses, rtol=1e-3)
