"""Filters of every kind of layer, against loops over their weights."""

import itertools

import keras
import numpy as np
import pytest
from keras import layers

from kgraft.analysis import by_depth, dead_share, invalid_ratio, layer_filters, rectified
from kgraft.errors import UserError

pytestmark = pytest.mark.core

KINDS = {
    "Dense": ((5,), lambda: layers.Dense(4), {"kernel": (4, 5)}),
    "Conv1D": ((9, 3), lambda: layers.Conv1D(4, 3), {"kernel": (4, 9)}),
    "Conv2D in groups": ((8, 8, 4), lambda: layers.Conv2D(6, 3, groups=2), {"kernel": (6, 18)}),
    "Conv3D": ((5, 5, 5, 2), lambda: layers.Conv3D(4, 3), {"kernel": (4, 54)}),
    "DepthwiseConv2D": (
        (8, 8, 3), lambda: layers.DepthwiseConv2D(3, depth_multiplier=2), {"kernel": (6, 9)},
    ),
    "Conv2DTranspose": ((8, 8, 3), lambda: layers.Conv2DTranspose(5, 3), {"kernel": (5, 27)}),
    "SeparableConv2D": (
        (8, 8, 3),
        lambda: layers.SeparableConv2D(5, 3, depth_multiplier=2),
        {"depthwise_kernel": (6, 9), "pointwise_kernel": (5, 6)},
    ),
}  # fmt: skip
FILTERS_OF = {  # one filter's weights, by the channel that it gives
    "Conv2DTranspose": lambda kernel, j: kernel[:, :, j, :],
    "DepthwiseConv2D": lambda kernel, j: kernel[:, :, j // 2, j % 2],
    "depthwise_kernel": lambda kernel, j: kernel[:, :, j // 2, j % 2],
}


def normed(layer, shape, **norm):
    """A layer, batch normalisation with numbers of its own, a rectifier."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input(shape), layer, layers.BatchNormalization(**norm)])
    model.add(layers.ReLU())
    rng = np.random.default_rng(1)
    own = model.layers[1]
    own.set_weights([rng.uniform(0.2, 3.0, weight.shape) for weight in own.weights])
    return model, own


@pytest.mark.parametrize("kind", KINDS)
def test_filters_of_every_kind_are_those_that_give_a_channel_each(kind):
    shape, make, expected = KINDS[kind]
    layer = make()
    model, norm = normed(layer, shape)
    found = layer_filters(model)
    assert [(len(own.norms), own.weights) for own in found] == [*expected.values()]
    for name, own in zip(expected, found, strict=True):
        kernel = np.asarray(keras.ops.convert_to_numpy(getattr(layer, name)), np.float64)
        of = FILTERS_OF.get(kind) or FILTERS_OF.get(name) or (lambda kernel, j: kernel[..., j])
        norms = [sum(abs(x) for x in of(kernel, j).ravel()) for j in range(len(own.norms))]
        np.testing.assert_allclose(own.norms, norms, rtol=1e-6)
        if name == "depthwise_kernel":  # a pointwise one is between it and the normalisation
            assert own.folded is None
            continue
        gamma, _, _, variance = norm.get_weights()
        factors = [g / (v + 1e-3) ** 0.5 for g, v in zip(gamma, variance, strict=True)]
        np.testing.assert_allclose(own.folded, np.multiply(norms, factors), rtol=1e-5)
        share = [n / kernel.size for n in np.histogram(kernel, bins=10)[0].tolist() if n]
        assert own.entropy == pytest.approx(-sum(p * np.log(p) for p in share), abs=2e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folded_filter_acts_as_large_as_it_is_told(kind):
    """Twice the folded norm of one filter: twice what images without bias make of its channel."""
    shape, make, _ = KINDS[kind]
    model, norm = normed(make(), shape, center=False)
    gamma, mean, variance = norm.get_weights()
    norm.set_weights([gamma, 0 * mean, variance])
    images = np.random.default_rng(2).normal(size=(3, *shape)).astype("float32")
    seen = keras.Model(model.inputs, model.layers[1].output)
    before, told = seen.predict(images, verbose=0), layer_filters(model)[-1]
    norm.set_weights([gamma * np.where(np.arange(len(gamma)) == 1, 2, 1), 0 * mean, variance])
    after, more = seen.predict(images, verbose=0), layer_filters(model)[-1]
    ratio = np.abs(after).sum(axis=tuple(range(after.ndim - 1))) / np.abs(before).sum(
        axis=tuple(range(after.ndim - 1))
    )
    np.testing.assert_allclose(more.folded / told.folded, ratio, rtol=1e-4)
    assert ratio[1] == pytest.approx(2, rel=1e-4)


@pytest.mark.parametrize(("scale", "center"), [*itertools.product((True, False), repeat=2)])
def test_normalisation_without_scale_folds_by_its_variance(scale, center):
    model, norm = normed(layers.Conv2D(4, 3), (8, 8, 3), scale=scale, center=center, epsilon=0.1)
    (own,) = layer_filters(model)
    gamma = norm.get_weights()[0] if scale else np.ones(4)
    variance = norm.get_weights()[-1]
    np.testing.assert_allclose(own.folded, own.norms * gamma / np.sqrt(variance + 0.1), rtol=1e-6)


def test_normalisation_along_another_axis_folds_nothing():
    model = keras.Sequential(
        [keras.Input((6, 6, 3)), layers.Conv2D(4, 3), layers.BatchNormalization(axis=1)]
    )
    assert layer_filters(model)[0].folded is None


def test_layers_in_models_in_models_and_frozen_ones_count():
    inner = keras.Sequential(
        [keras.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.BatchNormalization(), layers.ReLU()]
    )
    middle = keras.Sequential([keras.Input((8, 8, 3)), inner])
    inputs = keras.Input((8, 8, 3))
    outputs = layers.Dense(2)(layers.Flatten()(layers.Conv2D(3, 1, trainable=False)(inputs)))
    frozen = keras.Model(inputs, [outputs, middle(inputs)])
    assert sorted(len(own.norms) for own in layer_filters(frozen)) == [3, 4]
    folded = next(own.folded for own in layer_filters(frozen) if len(own.norms) == 4)
    assert folded is not None


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.convolution, self.norm = layers.Conv2D(4, 3), layers.BatchNormalization()

    def call(self, images):
        return self.norm(self.convolution(images))


def test_a_subclassed_models_filters_count_but_fold_by_nothing_known():
    model = Subclassed()
    model(np.zeros((1, 8, 8, 3), "float32"))
    (own,) = layer_filters(model)
    assert (len(own.norms), own.folded) == (4, None)


def test_without_convolutions_every_dense_kernel_counts():
    model = keras.Sequential([keras.Input((5,)), layers.Dense(4), layers.Dense(3)])
    found = layer_filters(model)
    assert [len(own.norms) for own in found] == [4, 3]
    assert [part.filters for part in by_depth(found)] == [4, 3]
    kernel = model.layers[0].get_weights()[0]
    kernel[:, 2] = 0.0
    model.layers[0].set_weights([kernel, np.zeros(4)])
    assert invalid_ratio(layer_filters(model), [1e-3]).tolist() == [1 / 7]


def test_a_diverged_layer_has_no_entropy():
    model = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.Conv2D(4, 3)])
    kernel, bias = model.layers[0].get_weights()
    kernel[0, 0, 0, 1] = np.nan
    model.layers[0].set_weights([kernel, bias])
    sick, well = layer_filters(model)
    assert np.isnan(sick.entropy) and well.entropy > 0
    assert np.isnan(sick.norms).tolist() == [False, True, False, False]


def test_one_rectifier_alone_is_looked_at():
    model = keras.Sequential([keras.Input((2,)), layers.Dense(3, use_bias=False), layers.ReLU()])
    model.layers[0].set_weights([np.array([[1.0, -1.0, 0.5], [0.0, -1.0, 2.0]])])
    images = np.array([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]], "float32")
    (own,) = rectified(model, [images])
    np.testing.assert_allclose(own.largest, [3.0, 0.0, 4.5])
    assert dead_share([own]) == pytest.approx(1 / 3)


BETWEEN = {
    "nothing": ("linear", [], True),
    "linear": (None, [lambda: layers.Activation("linear"), layers.Identity], True),
    "tanh": ("tanh", [], False),
    "softmax": ("softmax", [], False),
    "relu": ("relu", [], False),
    "a rectifier": (None, [layers.ReLU], False),
    "a linear one, then tanh": (None, [layers.Identity, lambda: layers.Activation("tanh")], False),
}


@pytest.mark.parametrize("between", BETWEEN)
def test_norms_fold_only_through_what_is_linear(between):
    own, made, folds = BETWEEN[between]
    stack = [layers.Conv2D(4, 3, activation=own), *(make() for make in made)]
    model = keras.Sequential([keras.Input((8, 8, 3)), *stack, layers.BatchNormalization()])
    (told,) = layer_filters(model)
    assert (told.folded is not None) == folds
    if folds:  # gamma 1, variance 1
        np.testing.assert_allclose(told.folded, told.norms / 1.001**0.5)


def test_what_lora_adds_is_no_layer():
    stack = [layers.Conv2D(4, 3, name="own"), layers.BatchNormalization(), layers.Dense(3)]
    model = keras.Sequential([keras.Input((8, 8, 3)), *stack], name="whole")
    before = layer_filters(model)
    for layer in (model.layers[0], model.layers[2]):
        layer.enable_lora(2)
    after = layer_filters(model)
    assert [own.name for own in after] == [own.name for own in before] == ["whole/own/kernel"]
    np.testing.assert_array_equal(after[0].norms, before[0].norms)


@pytest.mark.parametrize(
    "model",
    [
        keras.Sequential([keras.Input((8, 8, 3)), layers.BatchNormalization(), layers.ReLU()]),
        keras.Sequential([layers.Conv2D(4, 3)]),
        keras.Sequential([keras.Input((3,)), layers.ReLU()]),
    ],
)
def test_a_model_without_kernels_has_no_filters(model):
    with pytest.raises(UserError, match="has no filters: no kernel, or it is not built"):
        layer_filters(model)
