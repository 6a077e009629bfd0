"""The Keras networks against hand-written PyTorch ones, weights copied across."""

import keras
import numpy as np
import pytest

if keras.backend.backend() != "torch":
    pytest.skip("the twins are PyTorch's", allow_module_level=True)

import torch

from kgraft import models
from tests.reference import torch_models

TWINS = {
    "resnet20": lambda channels, classes: torch_models.CifarResNet(3, channels, classes),
    "mobilenet_v2": torch_models.CifarMobileNetV2,
    "wrn-16-2": lambda channels, classes: torch_models.WideResNet(2, 2, channels, classes),
    "wrn-10-1": lambda channels, classes: torch_models.WideResNet(1, 1, channels, classes),
}


def pair(name, input_shape, classes):
    twin = TWINS[name](input_shape[-1], classes)
    torch_models.randomise(twin, torch.Generator().manual_seed(1))
    model = models.build(name, input_shape=input_shape, classes=classes)
    theirs = torch_models.weights_by_layer(twin)
    ours = {layer.name for layer in model.layers if layer.weights}
    assert ours == set(theirs)
    for layer, arrays in theirs.items():
        model.get_layer(layer).set_weights(arrays)
    return model, twin


def images(input_shape):
    return np.random.default_rng(2).normal(size=(4, *input_shape)).astype("float32")


def relative_difference(ours, theirs):
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize("input_shape", [(16, 16, 3), (9, 14, 5)], ids=["square", "odd"])
def test_logits_equal_the_twins(name, input_shape):
    model, twin = pair(name, input_shape, classes=7)
    x = images(input_shape)
    with torch.no_grad():
        theirs = twin.eval()(torch.from_numpy(x).permute(0, 3, 1, 2)).numpy()
        ours = keras.ops.convert_to_numpy(model(x, training=False))
    difference = relative_difference(ours, theirs)
    print(f"{name} {input_shape}: largest relative difference of a logit {difference:.1e}")
    assert difference < 1e-5


@pytest.mark.parametrize("name", TWINS)
def test_one_training_pass_equals_the_twins(name):
    model, twin = pair(name, (12, 12, 3), classes=7)
    x = images((12, 12, 3))
    with torch.no_grad():
        theirs = twin.train()(torch.from_numpy(x).permute(0, 3, 1, 2)).numpy()
        ours = keras.ops.convert_to_numpy(model(x, training=True))
    assert relative_difference(ours, theirs) < 1e-4
    for layer, arrays in torch_models.weights_by_layer(twin).items():
        if isinstance(model.get_layer(layer), keras.layers.BatchNormalization):
            mean = model.get_layer(layer).get_weights()[2]
            np.testing.assert_allclose(mean, arrays[2], rtol=1e-3, atol=1e-4)


def test_mobilenet_kernels_start_as_wide_as_pytorchs_own():
    twin = TWINS["mobilenet_v2"](3, 10)
    model = models.build("mobilenet_v2", input_shape=(16, 16, 3), classes=10)
    compared = 0
    for layer, (kernel, *_) in torch_models.weights_by_layer(twin).items():
        if kernel.size > 8000:
            ours = model.get_layer(layer).get_weights()[0]
            assert ours.shape == kernel.shape
            assert ours.std() == pytest.approx(kernel.std(), rel=0.03)
            assert np.abs(ours).max() == pytest.approx(np.abs(kernel).max(), rel=0.01)
            compared += 1
    assert compared > 25


@pytest.mark.slow
def test_the_largest_wide_resnet_has_its_published_size():
    model = models.build("wrn-28-10", input_shape=(32, 32, 3), classes=10)
    with torch.device("meta"):
        twin = torch_models.WideResNet(4, 10, 3, 10)
    assert models.parameters(model) == 36_479_194
    assert models.parameters(model) == sum(weight.numel() for weight in twin.parameters())
    assert 5.2e9 < models.macs(model) < 5.3e9
