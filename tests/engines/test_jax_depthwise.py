"""Depthwise convolutions as shifted products: Keras' numbers, and layers as before afterwards."""

import keras
import numpy as np
import pytest
from keras import layers

import kgraft
from kgraft.engines.engine import Engine

if keras.config.backend() != "jax":
    pytest.skip("compiled by XLA for a CPU on jax alone", allow_module_level=True)

import jax

from kgraft.engines import jax_depthwise
from kgraft.engines.jax_depthwise import depthwise, is_plain, shifted_products

ROUNDING = {"float64": 1e-12, "float32": 2e-5, "bfloat16": 3e-2}


class Own(layers.DepthwiseConv2D):
    """Another depthwise convolution."""


def built(*, size=(9, 7), channels=3, kernel=3, kind=layers.DepthwiseConv2D, **settings):
    layer = kind(kernel, bias_initializer="normal", **settings)
    images = keras.Input((*size, channels), dtype=layer.input_dtype)
    return layer, keras.Model(images, layer(images))


def numbers(model, count=4):
    """Output, and gradients in kernel, bias and images of a sum with random coefficients."""
    rng = np.random.default_rng(3)
    dtype = model.input.dtype
    images = jax.numpy.asarray(rng.normal(size=(count, *model.input.shape[1:])), dtype)
    change = jax.numpy.asarray(rng.normal(size=(count, *model.output.shape[1:])), dtype)

    def outputs(weights, images):
        return model.stateless_call(weights, [], images)[0]

    weights = [variable.value for variable in model.trainable_variables]
    found, back = jax.jit(
        lambda *given: (outputs(*given), jax.vjp(outputs, *given)[1](change.astype(dtype)))
    )(weights, images)
    return [np.asarray(value, "float64") for value in jax.tree.leaves((found, back))]


def assert_kerass_numbers(model, rounding):
    expected = numbers(model)
    with shifted_products(model):
        found = numbers(model)
    for own, wanted in zip(found, expected, strict=True):
        assert own.shape == wanted.shape
        assert np.abs(own - wanted).max() <= rounding * np.abs(wanted).max()


SETTINGS = [
    {"strides": strides, "padding": padding, "size": size, "kernel": kernel}
    for strides, padding in ((1, "same"), (2, "same"), (2, "valid"), (3, "valid"))
    for size, kernel in (((9, 7), 3), ((8, 11), (5, 2)))
]
SETTINGS += [{"size": (7, 7), "kernel": 7}, {"size": (5, 5), "kernel": 1, "strides": 2}]
SETTINGS += [
    {"dilation_rate": (2, 3), "padding": padding, "size": (9, 10)} for padding in ("same", "valid")
]
SETTINGS += [
    {"depth_multiplier": 3, "strides": 2, "padding": "same"},
    {"use_bias": False},
    {"activation": "relu"},
    {"activation": "tanh", "depth_multiplier": 2},
    {"channels": 1},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_numbers_are_kerass(settings):
    layer, model = built(**settings)
    assert is_plain(layer)
    assert_kerass_numbers(model, ROUNDING["float32"])


@pytest.mark.parametrize("policy", ["bfloat16", "mixed_bfloat16"])
def test_numbers_are_kerass_in_bfloat16(policy):
    _, model = built(dtype=policy, activation="relu", padding="same", depth_multiplier=2)
    assert_kerass_numbers(model, ROUNDING["bfloat16"])


def test_numbers_are_kerass_in_float64():
    with jax.enable_x64(True):
        _, model = built(dtype="float64", strides=2, padding="same")
        assert_kerass_numbers(model, ROUNDING["float64"])


def test_a_kernel_and_its_gradient_by_hand():
    images = np.arange(6.0, dtype="float32").reshape(1, 2, 3, 1)
    kernel = np.array([1, 10], "float32").reshape(1, 2, 1, 1)
    found, back = jax.vjp(lambda x, k: depthwise(x, k, (1, 1), (1, 1)), images, kernel)
    assert found.ravel().tolist() == [10, 21, 43, 54]
    of_images, of_kernel = back(np.array([1, 2, 3, 4], "float32").reshape(1, 2, 2, 1))
    assert of_images.ravel().tolist() == [1, 12, 20, 3, 34, 40]
    assert of_kernel.ravel().tolist() == [0 + 2 + 9 + 16, 1 + 4 + 12 + 20]


def test_second_derivatives_and_per_example_gradients_are_there():
    rng = np.random.default_rng(0)
    images, kernel = rng.normal(size=(2, 4, 4, 1)), rng.normal(size=(3, 3, 1, 1))
    images, kernel = images.astype("float32"), kernel.astype("float32")

    def loss(k, x):
        return (depthwise(x[None], k, (1, 1), (1, 1)) ** 2).sum()

    each = jax.vmap(jax.grad(loss), (None, 0))(kernel, images)
    np.testing.assert_allclose(each[1], jax.grad(loss)(kernel, images[1]), rtol=1e-5)
    twice = jax.grad(lambda k: (jax.grad(loss)(k, images[0]) * kernel).sum())(kernel)
    np.testing.assert_allclose(twice, each[0], rtol=1e-4)  # the loss is a square: H k = dL/dk


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_the_lowered_step_has_no_grouped_convolution(padding):
    _, model = built(padding=padding)
    with shifted_products(model):
        text = jax.jit(lambda x: model(x)).lower(np.ones((2, 9, 7, 3), "float32")).as_text()
    assert "convolution" not in text


def test_other_layers_are_left_alone():
    others = [
        built(kind=Own)[0],
        built(data_format="channels_first")[0],
        built(size=(9, 9), kernel=8)[0],
        layers.Conv2D(3, 3),
        layers.SeparableConv2D(3, 3),
    ]
    mended, _ = built()
    vars(mended)["call"] = mended.call
    assert not any(map(is_plain, [*others, mended]))
    with shifted_products(keras.Sequential(others[:1])):
        assert "call" not in vars(others[0])


def test_a_model_with_its_own_step_is_left_alone():
    class Forward(keras.Model):
        def train_step(self, state, data):
            raise NotImplementedError

    layer, model = built()
    with shifted_products(Forward(model.input, model.output)):
        assert "call" not in vars(layer)
    with shifted_products(model):
        assert "call" in vars(layer)


def test_layers_are_as_before_after_an_exception():
    layer, model = built()
    before = dict(vars(layer))
    with pytest.raises(KeyboardInterrupt), shifted_products(model), shifted_products(model):
        raise KeyboardInterrupt
    assert vars(layer) == before


def test_what_does_not_fit_is_refused_in_kerass_words():
    layer, model = built(size=(None, None), padding="valid")
    small = np.ones((1, 2, 2, 3), "float32")
    with shifted_products(model):
        assert layer(small).shape == (1, 0, 0, 3)
        with pytest.raises(ValueError, match="incompatible with the layer"):
            layer(np.ones((1, 4, 4, 2), "float32"))


def small_mobilenet():
    """Two inverted residuals, the first with a nested model, the second strided."""
    keras.utils.set_random_seed(7)
    images = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 1, use_bias=False)(images)
    first = layers.DepthwiseConv2D(3, padding="same", use_bias=False)
    x = keras.Sequential([first, layers.BatchNormalization(), layers.ReLU()])(x)
    x = layers.Conv2D(12, 1)(x)
    x = layers.ZeroPadding2D(1)(x)
    x = layers.DepthwiseConv2D(3, strides=2, activation="relu")(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(images, layers.Dense(4)(x))
    model.compile(
        kgraft.SGD(keras.optimizers.schedules.ExponentialDecay(0.05, 10, 0.9), momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def run(wanted, peers=2):
    models = [small_mobilenet() for _ in range(peers)]
    engine = Engine(models, wanted)
    rng = np.random.default_rng(0)
    steps = [(rng.normal(size=(6, 8, 8, 3)).astype("float32"), rng.integers(0, 4, 6))] * 4
    for stepper in engine.steppers:
        stepper.build(steps[0])
    engine.begin_epoch()
    losses = [[float(logs["loss"]) for logs in engine.step([step] * peers)] for step in steps]
    engine.end_epoch()
    assert engine.name == wanted
    tested = [stepper.evaluate(steps)["loss"] for stepper in engine.steppers]
    predicted = engine.steppers[0].predict(steps)
    return losses, tested, predicted, models


def test_compiled_and_eager_engine_agree(monkeypatch):
    asked = []
    original = jax_depthwise.depthwise
    monkeypatch.setattr(
        jax_depthwise, "depthwise", lambda *given: asked.append(1) or original(*given)
    )
    expected = run("eager")
    assert not asked
    found = run("compiled")
    assert asked
    for own, wanted in zip(found[:3], expected[:3], strict=True):
        np.testing.assert_allclose(own, wanted, rtol=1e-4, atol=1e-5)
    for own, wanted in zip(found[3], expected[3], strict=True):
        for weight, other in zip(own.get_weights(), wanted.get_weights(), strict=True):
            np.testing.assert_allclose(weight, other, rtol=1e-3, atol=1e-5)
        assert not any("call" in vars(layer) for layer in own._flatten_layers())
