"""The Keras networks against hand-written PyTorch ones, weights copied across."""

import keras
import numpy as np
import pytest
import torch

from kgraft import models
from tests.reference.torch_models import (
    TWINS,
    MobileNetV2,
    NamedWideResNet,
    copy_to,
    randomise,
    weights_by_layer,
)

pytestmark = pytest.mark.core
SMALL = ["resnet20", "resnet20-leaky", "mobilenet_v2", "vgg16", "wrn-10-1", "wrn-16-2", "resnet18"]
FINE = ["resnet18", "mobilenet_v2-224"]
LARGE = [
    "mobilenet_v2-224",
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet110",
    "resnet34",
    "resnet50",
    "wrn-28-10",
]


def pair(name, input_shape, classes):
    twin = TWINS[name](input_shape[-1], classes)
    randomise(twin, torch.Generator().manual_seed(1))
    model = models.build(name, input_shape=input_shape, classes=classes)
    copy_to(model, twin)
    return model, twin


def images(input_shape):
    return np.random.default_rng(2).normal(size=(4, *input_shape)).astype("float32")


def logits(model, twin, x, *, training):
    with torch.no_grad():
        theirs = twin.train(training)(torch.from_numpy(x).permute(0, 3, 1, 2)).numpy()
        ours = keras.ops.convert_to_numpy(keras.ops.stop_gradient(model(x, training=training)))
    return ours, theirs


def relative_difference(ours, theirs):
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@pytest.mark.parametrize(
    "name", [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)]
)
@pytest.mark.parametrize("input_shape", [(16, 16, 3), (9, 14, 5)], ids=["square", "odd"])
def test_logits_equal_the_twins(name, input_shape):
    model, twin = pair(name, input_shape, classes=7)
    ours, theirs = logits(model, twin, images(input_shape), training=False)
    difference = relative_difference(ours, theirs)
    print(f"{name} {input_shape}: largest relative difference of a logit {difference:.1e}")
    assert difference < 1e-5


@pytest.mark.parametrize("name", FINE)
def test_the_last_stride_may_be_one(name):
    model = models.build(name, input_shape=(64, 32, 3), classes=7, last_stride=1)
    usual = models.build(name, input_shape=(64, 32, 3), classes=7)
    assert model.get_layer("pool").input.shape[1:3] == (4, 2)
    assert usual.get_layer("pool").input.shape[1:3] == (2, 1)
    twin = MobileNetV2(3, 7, 1) if name != "resnet18" else TWINS[name](3, 7)
    if name == "resnet18":
        first = twin.layer4[0]
        first.conv1.stride = first.downsample[0].stride = (1, 1)
    randomise(twin, torch.Generator().manual_seed(1))
    copy_to(model, twin)
    ours, theirs = logits(model, twin, images((64, 32, 3)), training=False)
    assert relative_difference(ours, theirs) < 1e-5


@pytest.mark.parametrize("name", SMALL)
def test_one_training_pass_equals_the_twins(name):
    model, twin = pair(name, (12, 12, 3), classes=7)
    ours, theirs = logits(model, twin, images((12, 12, 3)), training=True)
    assert relative_difference(ours, theirs) < 1e-4
    for layer, arrays in weights_by_layer(twin).items():
        if isinstance(model.get_layer(layer), keras.layers.BatchNormalization):
            _, _, mean, variance = model.get_layer(layer).get_weights()
            np.testing.assert_allclose(mean, arrays[2], rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(variance, arrays[3], rtol=1e-3)


@pytest.mark.parametrize("name", ["mobilenet_v2", "vgg16"])
def test_kernels_start_as_wide_as_pytorchs_own(name):
    twin = TWINS[name](3, 10)
    model = models.build(name, input_shape=(16, 16, 3), classes=10)
    compared = 0
    for layer, (kernel, *_) in weights_by_layer(twin).items():
        if kernel.size > 8000:
            ours = model.get_layer(layer).get_weights()[0]
            assert ours.shape == kernel.shape
            assert ours.std() == pytest.approx(kernel.std(), rel=0.03)
            assert np.abs(ours).max() == pytest.approx(np.abs(kernel).max(), rel=0.01)
            compared += 1
    assert compared > 10


def test_a_wide_resnets_classifier_may_start_as_pytorchs_linear():
    theirs = NamedWideResNet(1, 2, 3, 100).fc.weight.detach().numpy()  # 100 x 128, torch's default
    options = {"input_shape": (8, 8, 3), "classes": 100}
    kernel, bias = (
        models.build("wrn-10-2", head_init="torch", **options).get_layer("logits").weights
    )
    ours = keras.ops.convert_to_numpy(kernel)
    assert theirs.std() == pytest.approx(0.051, abs=0.001)  # 1 / sqrt(3 * 128)
    assert ours.std() == pytest.approx(theirs.std(), rel=0.03)
    assert np.abs(ours).max() == pytest.approx(np.abs(theirs).max(), rel=0.002)
    assert not keras.ops.convert_to_numpy(bias).any()  # set to zero in their code
    usual = models.build("wrn-10-2", **options).get_layer("logits").get_weights()[0]
    assert usual.std() == pytest.approx(0.125, abs=0.003)  # sqrt(2 / 128)


def test_imagenet_kernels_start_from_their_fan_out():
    model = models.resnet18(classes=10, input_shape=(32, 32, 3))
    for layer, fan_out in {"stem": 49 * 64, "stage4_block1_conv1": 9 * 512}.items():
        kernel = model.get_layer(layer).get_weights()[0]
        assert kernel.std() == pytest.approx((2 / fan_out) ** 0.5, rel=0.03)


@pytest.mark.parametrize(
    ("name", "classes", "published"),
    [
        ("wrn-28-10", 10, 36_479_194),
        ("resnet18", 1000, 11_689_512),
        ("resnet34", 1000, 21_797_672),
        ("resnet50", 1000, 25_557_032),
        ("vgg16", 10, 14_728_266),
        ("mobilenet_v2-224", 1000, 3_504_872),
    ],
)
@pytest.mark.slow
def test_the_large_networks_have_their_published_size(name, classes, published):
    model = models.build(name, input_shape=(32, 32, 3), classes=classes)
    with torch.device("meta"):
        twin = TWINS[name](3, classes)
    assert models.parameters(model) == published
    assert models.parameters(model) == sum(weight.numel() for weight in twin.parameters())
