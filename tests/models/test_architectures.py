import keras
import numpy as np
import pytest

from kgraft import models
from kgraft.models import blocks, cost

pytestmark = pytest.mark.core


@pytest.mark.parametrize("name", ["resnet8", "mobilenet_v2", "wrn-10-1", "vgg16", "resnet18"])
@pytest.mark.parametrize("input_shape", [(8, 8, 1), (33, 47, 5)])
def test_any_size_channels_and_classes(name, input_shape):
    model = models.build(name, input_shape=input_shape, classes=3)
    assert model.input_shape == (None, *input_shape)
    assert model.output_shape == (None, 3)
    if (name, input_shape) != ("mobilenet_v2", (33, 47, 5)):  # seconds of compiling on jax
        logits = model.predict(np.ones((2, *input_shape), "float32"), verbose=0)
        assert logits.shape == (2, 3)
        assert np.isfinite(logits).all()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet20", 269_722),
        ("resnet32", 464_154),
        ("resnet56", 853_018),
        ("resnet110", 1_727_962),
        ("mobilenet_v2", 2_296_922),
        ("wrn-16-2", 691_674),
    ],
)
def test_parameters_are_the_published_ones(name, expected):
    model = models.build(name, input_shape=(32, 32, 3), classes=10)
    assert models.parameters(model) == expected


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("resnet20", 40.5e6, 41.5e6), ("resnet32", 68.5e6, 69.5e6), ("wrn-16-2", 100e6, 102e6)],
)
def test_multiply_adds_are_the_published_ones(name, low, high):
    model = models.build(name, input_shape=(32, 32, 3), classes=10)
    assert low < models.macs(model) < high
    assert models.flops(model) == 2 * models.macs(model)


def test_filters_are_those_the_papers_count():
    resnet = models.resnet32(classes=10, input_shape=(8, 8, 3))
    assert models.filters(resnet) == 1136
    mobile = models.mobilenet_v2(classes=10, input_shape=(8, 8, 3))
    shortcuts = [layer for layer in mobile.layers if layer.name.endswith("_shortcut")]
    assert [layer.filters for layer in shortcuts] == [16, 24, 96, 320]
    assert models.filters(mobile) == 17_088 + 456


def test_a_convolution_followed_by_normalisation_has_no_bias():
    for name in ("resnet8", "mobilenet_v2", "wrn-10-1"):
        for layer in models.build(name, input_shape=(8, 8, 3), classes=2).layers:
            if isinstance(layer, keras.layers.Conv2D | keras.layers.DepthwiseConv2D):
                assert not layer.use_bias


def test_padding_is_the_same_on_all_sides_at_stride_2():
    images = keras.Input((8, 8, 1))
    one = blocks.convolution(images, 1, 3, strides=2, name="conv", initialise=lambda fan: "ones")
    each = blocks.depthwise_convolution(
        images, 3, strides=2, name="depthwise", initialise=lambda fan: "ones"
    )
    corner = np.zeros((1, 8, 8, 1), "float32")
    corner[0, 0, 0] = 1  # within reach of the first window, whose centre is the corner itself
    corner[0, 7, 7] = 1
    for output in keras.Model(images, [one, each]).predict(corner, verbose=0):
        expected = np.zeros((4, 4))
        expected[0, 0] = expected[3, 3] = 1
        np.testing.assert_array_equal(output[0, :, :, 0], expected)
    ramp = np.arange(64, dtype="float32").reshape(1, 8, 8, 1)
    first = keras.Model(images, one).predict(ramp, verbose=0)[0, 0, 0, 0]
    assert first == 0 + 1 + 8 + 9  # "same" would have started at 0 and given 81


def test_option_a_keeps_every_other_position_and_zero_pads_channels():
    images = keras.Input((5, 4, 2))
    model = keras.Model(images, blocks.subsampled_shortcut(images, 6, strides=2))
    x = np.random.default_rng(0).normal(size=(3, 5, 4, 2)).astype("float32")
    y = model.predict(x, verbose=0)
    assert y.shape == (3, 3, 2, 6)
    np.testing.assert_array_equal(y[..., 2:4], x[:, ::2, ::2])
    np.testing.assert_array_equal(y[..., [0, 1, 4, 5]], 0)


def test_normalisation_has_torchs_constants():
    model = models.wide_resnet(10, 1, classes=2, input_shape=(8, 8, 1))
    norms = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
    assert {(norm.momentum, norm.epsilon) for norm in norms} == {(0.9, 1e-5)}


def test_dropout_lies_between_the_convolutions_of_every_wide_block():
    shape = {"classes": 2, "input_shape": (8, 8, 1)}
    model = models.wide_resnet(16, 1, dropout=0.3, **shape)
    dropouts = [layer for layer in model.layers if isinstance(layer, keras.layers.Dropout)]
    assert len(dropouts) == 6
    assert {layer.rate for layer in dropouts} == {0.3}
    assert dropouts[0].output.name == model.get_layer("stage1_block1_conv2").input.name
    plain = models.wide_resnet(16, 1, **shape)
    assert not any(isinstance(layer, keras.layers.Dropout) for layer in plain.layers)
    assert cost.parameters(plain) == cost.parameters(model)


def kernels(model, least):
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D | keras.layers.Dense):
            kernel = layer.get_weights()[0]
            if kernel.size >= least:
                yield kernel


@pytest.mark.parametrize("name", ["resnet20", "wrn-10-2"])
def test_kernels_are_kaiming_normal_and_not_truncated(name):
    model = models.build(name, input_shape=(8, 8, 3), classes=10)
    seen = list(kernels(model, least=9000))
    assert len(seen) >= 4
    for kernel in seen:
        std = np.sqrt(2 / np.prod(kernel.shape[:-1]))
        assert kernel.std() == pytest.approx(std, rel=0.05)
        assert np.abs(kernel).max() > 3 * std  # Keras' HeNormal ends at 2.3
    assert model.get_layer("logits").get_weights()[0].std() == pytest.approx(
        np.sqrt(2 / model.get_layer("logits").kernel.shape[0]), rel=0.15
    )


def test_mobilenet_kernels_are_torchs_default():
    model = models.mobilenet_v2(classes=10, input_shape=(8, 8, 3))
    pointwise = model.get_layer("stage7_block1_expand").get_weights()[0]
    assert np.abs(pointwise).max() == pytest.approx(1 / np.sqrt(160), rel=1e-3)
    depthwise = model.get_layer("stage7_block1_depthwise").get_weights()[0]
    assert depthwise.shape == (3, 3, 960, 1)
    assert np.abs(depthwise).max() == pytest.approx(1 / 3, rel=1e-3)
    assert depthwise.std() == pytest.approx(1 / np.sqrt(27), rel=0.03)


def test_wide_resnet_scales_are_uniform():
    model = models.wide_resnet(16, 2, classes=10, input_shape=(8, 8, 3))
    norms = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
    scales = np.concatenate([norm.get_weights()[0] for norm in norms])
    assert 0 <= scales.min() < 0.02
    assert 0.98 < scales.max() <= 1
    assert scales.mean() == pytest.approx(0.5, abs=0.03)
    assert all((norm.get_weights()[1] == 0).all() for norm in norms)
    assert (model.get_layer("logits").get_weights()[1] == 0).all()


def test_keras_global_seed_decides_the_weights():
    def weights(seed):
        keras.utils.set_random_seed(seed)
        return models.resnet8(classes=3, input_shape=(8, 8, 1)).get_weights()

    first, again, other = weights(1), weights(1), weights(2)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert any((a != b).any() for a, b in zip(first, other, strict=True))


def test_no_two_kernels_start_alike():
    model = models.resnet20(classes=3, input_shape=(8, 8, 1))
    starts = [kernel.ravel()[:16].tobytes() for kernel in kernels(model, least=100)]
    assert len(set(starts)) == len(starts)
