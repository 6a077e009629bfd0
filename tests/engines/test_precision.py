"""Precision by one word: what networks compute in, and what is left as it was."""

import keras
import numpy as np
import pytest

import kgraft
from kgraft.engines.engine import Engine
from kgraft.engines.precision import building_in

pytestmark = pytest.mark.core


def built(precision):
    with building_in(precision):
        keras.utils.set_random_seed(0)
        return kgraft.models.build("resnet8", input_shape=(8, 8, 3), classes=5)


def test_bfloat16_computes_in_halves_over_float32_weights():
    before = keras.config.dtype_policy().name
    model = built("bfloat16")
    assert {w.dtype for w in model.weights} == {"float32"}
    assert {layer.compute_dtype for layer in model.layers} == {"bfloat16"}
    assert keras.config.dtype_policy().name == before


def test_networks_in_other_precisions_are_the_same_networks():
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype("float32")
    exact, halves, products = (
        keras.ops.convert_to_numpy(keras.ops.cast(built(name)(x, training=False), "float32"))
        for name in ("float32", "bfloat16", "tf32")
    )
    np.testing.assert_allclose(halves, exact, atol=0.05 * np.abs(exact).max())
    assert not np.array_equal(halves, exact)
    np.testing.assert_allclose(products, exact, atol=2e-3 * np.abs(exact).max())
    built("float32")  # products as they were


@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_peers_in_bfloat16_train_and_are_grafted(engine):
    random = np.random.default_rng(0)
    x, y = random.normal(size=(32, 8, 8, 3)).astype("float32"), random.integers(0, 5, 32)
    peers = [built("bfloat16") for _ in range(2)]
    for k, peer in enumerate(peers):
        peer.compile(
            kgraft.SGD(0.05 * (k + 1)),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
    run = kgraft.GraftingFit(peers, engine=engine)
    first, second = run.fit(x, y, batch_size=16, epochs=2, verbose=0)
    assert np.isfinite(first.history["loss"] + second.history["loss"]).all()
    for a, b in zip(*(peer.get_weights() for peer in peers), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)  # two grafted peers are one


@pytest.mark.skipif(keras.config.backend() != "torch", reason="native layers are torch's")
@pytest.mark.parametrize("name", ["resnet8", "mobilenet_v2", "wrn-10-1"])
def test_native_layers_compute_in_bfloat16_what_keras_layers_do(name):
    from kgraft.engines.torch.network import NativeNetwork

    random = np.random.default_rng(0)
    x, y = random.normal(size=(32, 16, 16, 3)).astype("float32"), random.integers(0, 5, 32)

    def made(precision):
        keras.utils.set_random_seed(1)
        with building_in(precision):
            model = kgraft.models.build(name, input_shape=(16, 16, 3), classes=5)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(kgraft.SGD(0.01, momentum=0.9), loss)
        return model

    def trained(precision, engine):
        stepper = Engine([model := made(precision)], engine).steppers[0]
        stepper.build((x, y))
        stepper.begin_epoch()
        losses = [float(stepper.step((x, y))["loss"]) for _ in range(3)]
        assert all(own.dtype == "float32" for own in model.variables if "seed" not in own.path)
        outputs = keras.ops.convert_to_numpy(keras.ops.cast(stepper.predict([(x,)]), "float32"))
        return losses, outputs

    exact = NativeNetwork(made("float32")).native_layers
    assert NativeNetwork(made("bfloat16")).native_layers == exact > 10
    losses, outputs = trained("bfloat16", "compiled")
    expected, theirs = trained("bfloat16", "eager")
    wide, _ = trained("float32", "compiled")
    assert losses != wide  # it does compute in halves
    np.testing.assert_allclose(losses, expected, rtol=0.02)
    np.testing.assert_allclose(losses, wide, rtol=0.02)
    assert np.abs(outputs - theirs).max() <= 0.1 * np.abs(theirs).max()


@pytest.mark.skipif(keras.config.backend() != "torch", reason="native layers are torch's")
def test_layers_of_other_types_stay_keras():
    from kgraft.engines.torch.network import NativeNetwork

    def layers_of(policy, **options):
        inputs = keras.Input((8, 8, 3))
        x = keras.layers.Conv2D(4, 3, dtype=policy, **options)(inputs)
        return NativeNetwork(keras.Model(inputs, x)).native_layers

    assert [layers_of(own) for own in ("float32", "mixed_bfloat16")] == [1, 1]
    assert [layers_of(own) for own in ("bfloat16", "mixed_float16", "float16")] == [0, 0, 0]
    assert layers_of("mixed_bfloat16", autocast=False) == 0


def test_an_unknown_precision_is_refused():
    with pytest.raises(kgraft.UserError, match="Did you mean 'bfloat16'"), building_in("bfloat"):
        pass
