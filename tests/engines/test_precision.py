"""Precision by one word: what networks compute in, and what is left as it was."""

import keras
import numpy as np
import pytest

import kgraft
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


def test_an_unknown_precision_is_refused():
    with pytest.raises(kgraft.UserError, match="Did you mean 'bfloat16'"), building_in("bfloat"):
        pass
