"""A kgraft run is the PyTorch run: 20 steps of 2 peers against hand-written twins.

In float64 everything agrees to rounding. In float32 the two sides add the same numbers up in
different orders, and among the millions of activations of a step some lie within that rounding of a
rectifier's or a pooling's kink: on its other side their gradient is another one, not a slightly
different one, and from there on the runs part (VGG16 with smooth activations and average pooling
agrees to 4e-7 where the real one differs by 4e-2). The large networks therefore take smaller steps
here in float32; jax and tensorflow are held to the same tolerances as torch.
"""

import keras
import pytest

from tests.reference.parity import RATE, SLOWER, compare, float64

NAMES = ["resnet20", "resnet20-leaky", "mobilenet_v2", "wrn-10-1", "vgg16", "resnet18"]
KINKED = ("mobilenet_v2", "vgg16", "resnet18")
BACKEND = keras.config.backend()


@pytest.mark.skipif(BACKEND == "jax", reason="jax has no float64 unless the process was begun so")
@pytest.mark.parametrize("name", NAMES)
def test_in_float64_a_run_is_pytorchs(name):
    with float64():
        found = compare(name, batch=8 if name in KINKED else 16, rate=SLOWER.get(name, RATE))
    print(name, found)
    assert found.logits < 1e-12
    assert found.loss < 1e-8
    assert found.grafted < 1e-8
    assert found.weights < 1e-8


def test_in_float64_nesterov_is_pytorchs():
    with float64():
        found = compare("resnet20", nesterov=True)
    assert found.loss < 1e-8
    assert found.weights < 1e-8


@pytest.mark.parametrize(
    "name",  # vgg16 has the layers of the others, and takes minutes on jax
    [pytest.param(name, marks=[pytest.mark.core] * (name != "vgg16")) for name in NAMES],
)
def test_in_float32_losses_stay_pytorchs(name):
    found = compare(name, grafts=0, rate=4e-6 if name in KINKED else 2e-4)
    print(name, found)
    assert found.logits < 1e-5
    assert found.loss < 1e-3


@pytest.mark.skipif(BACKEND == "jax", reason="float64, see above")
def test_keras_own_optimizer_and_running_variance_would_be_found_out(monkeypatch):
    monkeypatch.setattr(
        "tests.reference.parity.SGD",
        lambda rate, l2, **options: keras.optimizers.SGD(rate, weight_decay=l2, **options),
    )
    with float64():
        assert compare("resnet20", grafts=0).weights > 1e-6
    monkeypatch.undo()
    monkeypatch.setattr(
        "kgraft.models.blocks.BatchNormalization",
        lambda **options: keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, **options),
    )
    with float64():
        assert compare("resnet20", grafts=0).weights > 1e-6
