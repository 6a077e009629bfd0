"""Filter-level grafting against an independent computation, filter by filter."""

import keras
import numpy as np
import pytest

import kgraft
from kgraft.grafting import FilterGraft

pytestmark = pytest.mark.core


def chain(seed):
    """conv a (4) - norm - relu - conv b (3) - norm - dense."""
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.Conv2D(4, 3, name="a"),
            layers.BatchNormalization(name="na"),
            layers.ReLU(),
            layers.Conv2D(3, 3, name="b"),
            layers.BatchNormalization(name="nb"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(5, name="head"),
        ]
    )
    random = np.random.default_rng(seed)
    model.set_weights([random.normal(size=w.shape).astype("float32") for w in model.weights])
    return model


def test_every_filters_share_is_applied_once():
    models = [chain(k) for k in range(3)]
    before = [
        {w.path.split("/", 1)[-1]: v for w, v in zip(m.weights, m.get_weights(), strict=True)}
        for m in models
    ]
    FilterGraft().apply(models)
    for k, model in enumerate(models):
        own, donor = before[k], before[k - 1]
        after = dict(zip(own, model.get_weights(), strict=True))
        alpha = {
            n: abs(own[f"n{n}/gamma"]) / (abs(own[f"n{n}/gamma"]) + abs(donor[f"n{n}/gamma"]))
            for n in "ab"
        }
        for n in "ab":
            names = ("gamma", "beta", "moving_mean", "moving_variance")
            for name in (f"{n}/bias", *(f"n{n}/{own_name}" for own_name in names)):
                expected = alpha[n] * own[name] + (1 - alpha[n]) * donor[name]
                np.testing.assert_allclose(after[name], expected, atol=1e-6)
        for f in range(4):
            expected = (
                alpha["a"][f] * own["a/kernel"][..., f]
                + (1 - alpha["a"][f]) * donor["a/kernel"][..., f]
            )
            np.testing.assert_allclose(after["a/kernel"][..., f], expected, atol=1e-6)
            for o in range(3):
                share = alpha["a"][f] * alpha["b"][o]
                expected = (
                    share * own["b/kernel"][:, :, f, o]
                    + (1 - share) * donor["b/kernel"][:, :, f, o]
                )
                np.testing.assert_allclose(after["b/kernel"][:, :, f, o], expected, atol=1e-6)
        assert np.array_equal(after["head/kernel"], own["head/kernel"])


def test_residual_and_depthwise_networks_are_grafted_too():
    for name in ("resnet8", "mobilenet_v2"):
        models = []
        for k in range(2):
            keras.utils.set_random_seed(k)
            models.append(kgraft.models.build(name, input_shape=(32, 32, 3), classes=5))
        record = FilterGraft().apply(models)
        assert (record.coefficients == 0.5).sum() > record.coefficients.size / 2  # gamma is 1
        a, b = (model.get_weights()[0] for model in models)
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_model_without_batch_normalisation_is_refused():
    model = keras.Sequential([keras.Input((6, 6, 1)), keras.layers.Conv2D(2, 3)])
    with pytest.raises(kgraft.UserError, match="no convolution followed by batch norm"):
        FilterGraft().check([model])
