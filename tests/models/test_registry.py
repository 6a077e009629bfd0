import dataclasses
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from kgraft import models
from kgraft.errors import UserError

pytestmark = pytest.mark.core


def test_names_are_listed_in_a_fixed_order():
    assert models.names() == (
        "resnet8",
        "resnet20",
        "resnet32",
        "resnet44",
        "resnet56",
        "resnet110",
        "mobilenet_v2",
        "vgg16",
        "wrn-16-2",
        "wrn-28-10",
        "resnet18",
        "resnet34",
        "resnet50",
        "mobilenet_v2-224",
    )


def test_any_wide_resnet_is_known_by_its_name():
    model = models.build("wrn-22-2", input_shape=(8, 8, 1), classes=4)
    assert model.name == "wrn-22-2"
    assert sum(isinstance(layer, keras.layers.Add) for layer in model.layers) == 9
    assert model.get_layer("logits").kernel.shape[0] == 128


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet201", "model 'resnet201' is unknown. Did you mean 'resnet20'?"),
        ("wrn28-10", "model 'wrn28-10' is unknown. Did you mean 'wrn-28-10'?"),
        ("vit", "model 'vit' is unknown. Known: "),
        ("wrn-17-2", "WRN depth 17 is not 6n + 4 with n >= 1: the nearest valid depth is 16."),
        ("wrn-20-2", "WRN depth 20 is not 6n + 4 with n >= 1: the nearest valid depth is 22."),
        ("wrn-4-2", "the nearest valid depth is 10."),
        ("wrn-16-0", "WRN width 0 is not valid: the nearest valid width is 1."),
    ],
)
def test_a_wrong_name_gets_the_nearest_valid_one(name, message):
    with pytest.raises(UserError) as caught:
        models.build(name, input_shape=(8, 8, 1), classes=2)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("input_shape", "classes", "message"),
    [
        ((7, 8, 3), 10, "images of 7x8 are too small, the models need at least 8x8 pixels"),
        ((32, 32), 10, "input_shape=(32, 32) is not (height, width, channels)"),
        ("32", 10, "input_shape='32' is not (height, width, channels)"),
        ((None, 32, 3), 10, "must hold whole numbers from 1 up"),
        ((32, 32, 0), 10, "must hold whole numbers from 1 up"),
        ((32, 32, 10**20), 10, "expected at most 65536 of each"),
        ((32, 32, 3), 10**20, "classes=100000000000000000000: expected at most 1000000."),
        ((32, 32, 3), 1, "classes=1: a classifier needs at least 2 classes"),
        ((32, 32, 3), "10", "classes='10': a classifier needs at least 2 classes"),
    ],
)
@pytest.mark.parametrize("name", ["resnet8", "mobilenet_v2", "wrn-10-1"])
def test_impossible_images_and_classes_are_refused(name, input_shape, classes, message):
    with pytest.raises(UserError) as caught:
        models.build(name, input_shape=input_shape, classes=classes)
    assert message in str(caught.value)


def test_a_dropout_that_drops_everything_is_refused():
    with pytest.raises(UserError, match=r"dropout=1.0 is not in \[0, 1\)"):
        models.wide_resnet(10, 1, classes=2, dropout=1.0)


def test_a_start_of_the_classifier_that_no_one_knows_is_refused():
    shape = {"input_shape": (8, 8, 1), "classes": 2}
    with pytest.raises(UserError, match=r"head_init='torhc' is unknown. Did you mean 'torch'?"):
        models.build("wrn-10-1", head_init="torhc", **shape)
    with pytest.raises(UserError, match=r"model 'resnet8' has no head_init: only wrn-D-K has."):
        models.build("resnet8", head_init="torch", **shape)


def test_sizes_may_be_numpy_integers():
    model = models.resnet8(classes=np.int64(4), input_shape=(np.int64(8), 8, 1))
    assert model.output_shape == (None, 4)


def test_a_row_holds_what_a_table_shows(monkeypatch):
    monkeypatch.setattr("kgraft.models.registry.names", lambda: ("resnet8", "wrn-16-2"))
    small, wide = models.describe(input_shape=(8, 8, 1), classes=5)
    model = models.resnet8(classes=5, input_shape=(8, 8, 1))
    assert dataclasses.astuple(small) == (
        "resnet8",
        models.parameters(model),
        models.macs(model),
        16 + 2 * (16 + 32 + 64),
    )
    assert small.flops == models.flops(model)
    assert wide.name == "wrn-16-2"
    with pytest.raises(dataclasses.FrozenInstanceError):
        small.macs = 0


LOAD = """
import sys
sys.modules["kgraft"] = None
import keras, numpy as np
x = np.load(sys.argv[1] + "/x.npy")
for name in sys.argv[2:]:
    model = keras.saving.load_model(f"{sys.argv[1]}/{name}.keras", safe_mode=True)
    np.save(f"{sys.argv[1]}/{name}.npy", model.predict(x, verbose=0))
"""


def test_a_saved_model_loads_in_plain_keras(tmp_path):
    x = np.random.default_rng(0).normal(size=(2, 9, 8, 2)).astype("float32")
    np.save(tmp_path / "x.npy", x)
    shape = {"classes": 3, "input_shape": x.shape[1:]}
    made = [models.resnet8(**shape), models.wide_resnet(10, 1, dropout=0.3, **shape)]
    if keras.backend.backend() == "torch":  # jax compiles it for long, and its layers are the same
        made.append(models.mobilenet_v2(**shape))
    expected = {}
    for model in made:
        model.save(tmp_path / f"{model.name}.keras")
        expected[model.name] = model.predict(x, verbose=0)
    finished = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path), *expected],
        env={**os.environ, "KERAS_BACKEND": keras.backend.backend()},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    for name, logits in expected.items():
        loaded = np.load(tmp_path / f"{name}.npy")
        np.testing.assert_allclose(loaded, logits, rtol=1e-5, atol=1e-6)


def test_a_clone_has_the_same_layers_and_its_own_weights():
    model = models.resnet8(classes=3, input_shape=(8, 8, 1))
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype("float32")
    np.testing.assert_array_equal(clone.predict(x, verbose=0), model.predict(x, verbose=0))
    assert not {id(w) for w in clone.weights} & {id(w) for w in model.weights}
