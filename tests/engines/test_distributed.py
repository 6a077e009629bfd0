"""From Keras 3.16 on `fit` averages gradients over processes; peers must stay out of it."""

import os
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
from keras import layers

import kgraft

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
stepper.evaluate([(x, y)])
loss = stepper.logs()["loss"]
print(float(np.abs(model.get_weights()[0]).sum()), loss)
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
        return [tuple(map(float, output.split()[-2:])) for output in outputs]

    alone = sums("alone")
    assert alone[0][0] != alone[1][0] and alone[0][1] != alone[1][1]
    assert sums("joined") == alone


def trainer():
    """The class that Keras gives its torch models their `fit` by."""
    return next(kind for kind in keras.Model.__mro__ if "make_train_function" in vars(kind))


@pytest.fixture
def reducing(monkeypatch):
    """Keras 3.16, as far as this one is not: metrics are added up over processes, here doubled."""
    kind = trainer()

    def get_metrics_result(self):
        plain = super(kind, self).get_metrics_result()
        return {name: value * 2 for name, value in plain.items()}

    monkeypatch.setattr(kind, "get_metrics_result", get_metrics_result, raising=False)


def fit():
    keras.utils.set_random_seed(0)
    x, y = np.ones((8, 4), "float32"), np.ones((8, 3), "float32")
    peers = [keras.Sequential([keras.Input((4,)), layers.Dense(3)]) for _ in range(2)]
    for peer in peers:
        peer.compile(keras.optimizers.SGD(0.1), "mse", metrics=["mae"])
    run = kgraft.GraftingFit(peers)
    histories = run.fit(x, y, epochs=2, batch_size=4, validation_data=(x, y), verbose=0)
    return [own.history for own in histories], run.evaluate(x, y, verbose=0), peers[0]


def test_peers_metrics_are_not_added_up_over_processes(reducing):
    histories, scores, peer = fit()
    assert peer.evaluate(*(np.ones((8, n), "float32") for n in (4, 3)), verbose=0)[0] == (
        pytest.approx(2 * scores[0]["loss"])  # outside of kgraft it is Keras' own again
    )
    assert [own["val_loss"][-1] for own in histories] == pytest.approx([s["loss"] for s in scores])
    trainer().get_metrics_result = plain
    assert fit()[0] == histories


def plain(self):
    return super(trainer(), self).get_metrics_result()
