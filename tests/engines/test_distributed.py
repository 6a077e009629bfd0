"""From Keras 3.16 on `fit` averages gradients over processes; peers must stay out of it."""

import os
import subprocess
import sys
import textwrap

import keras
import pytest

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.skipif(keras.config.backend() != "torch", reason="torch.distributed"),
]

RANK = """
import sys
import kgraft
import keras
import numpy as np
import torch
from kgraft.engines.stepper import Stepper
from keras import layers

rank, store, joined = int(sys.argv[1]), sys.argv[2], sys.argv[3] == "joined"
if joined:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2
    )
keras.utils.set_random_seed(0)
model = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
model.compile(keras.optimizers.SGD(0.1), "mse")
rng = np.random.default_rng(rank)
x, y = rng.normal(size=(8, 4)).astype("float32"), rng.normal(size=(8, 3)).astype("float32")
stepper = Stepper(model)
stepper.evaluate([(x, y)])
stepper.begin_epoch()
for _ in range(3):
    stepper.step((x, y))
print(float(np.abs(model.get_weights()[0]).sum()))
"""


def test_peers_in_two_processes_do_not_share_gradients(tmp_path):
    script = tmp_path / "rank.py"
    script.write_text(textwrap.dedent(RANK))

    def sums(mode):
        ranks = [
            subprocess.Popen(
                [sys.executable, str(script), str(rank), str(tmp_path / "store"), mode],
                stdout=subprocess.PIPE,
                env={**os.environ, "KERAS_BACKEND": "torch", "OMP_NUM_THREADS": "1"},
                text=True,
            )
            for rank in range(2)
        ]
        outputs = [rank.communicate(timeout=120)[0] for rank in ranks]
        assert [rank.returncode for rank in ranks] == [0, 0]
        return [float(output.split()[-1]) for output in outputs]

    alone = sums("alone")
    assert alone[0] != alone[1]
    assert sums("joined") == alone
