"""Filter-level grafting against an independent computation, filter by filter."""

import keras
import numpy as np
import pytest

import kgraft
from kgraft.grafting import FilterGraft
from kgraft.grafting.chains import chains

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
    FilterGraft().mix(models)
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
        record = FilterGraft().mix(models)
        assert (record.coefficients == 0.5).sum() > record.coefficients.size / 2  # gamma is 1
        a, b = (model.get_weights()[0] for model in models)
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_model_without_batch_normalisation_is_refused():
    model = keras.Sequential([keras.Input((6, 6, 1)), keras.layers.Conv2D(2, 3)])
    with pytest.raises(kgraft.UserError, match="no convolution followed by batch norm"):
        FilterGraft().plan([model])


def conv_with(*, multiplier=2, seed=0, shared=False):
    """depthwise (3 x multiplier) - norm - activation - conv - norm - activation."""
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    relu = layers.ReLU(name="relu")
    x = h = keras.Input((6, 6, 3))
    h = layers.DepthwiseConv2D(3, depth_multiplier=multiplier, name="deep")(h)
    h = layers.BatchNormalization(name="nd")(h)
    h = relu(h)
    h = layers.Conv2D(4, 1, name="b")(h)
    h = layers.BatchNormalization(name="nb")(h)
    h = relu(h) if shared else layers.ReLU()(h)
    h = layers.GlobalAveragePooling2D()(h)
    model = keras.Model(x, layers.Dense(2, name="head")(h))
    random = np.random.default_rng(seed)
    model.set_weights([random.normal(size=w.shape).astype("float32") for w in model.weights])
    return model


def by_name(model):
    names = ["/".join(weight.path.split("/")[-2:]) for weight in model.weights]
    return dict(zip(names, model.get_weights(), strict=True))


@pytest.mark.parametrize("shared", [False, True])
def test_every_filter_of_a_depth_multiplier_has_its_own_share(shared):
    """The scales run over [channel, multiplier], the order in which the filters put out."""
    models = [conv_with(seed=k, shared=shared) for k in range(2)]
    own, donor = map(by_name, models)
    FilterGraft().mix(models)
    after = by_name(models[0])
    alpha, beta = (abs(own[n]) / (abs(own[n]) + abs(donor[n])) for n in ("nd/gamma", "nb/gamma"))
    for c in range(3):
        for m in range(2):
            share = alpha[2 * c + m]
            expected = share * own["deep/kernel"][..., c, m]
            expected = expected + (1 - share) * donor["deep/kernel"][..., c, m]
            np.testing.assert_allclose(after["deep/kernel"][..., c, m], expected, atol=1e-6)
    shares = alpha[:, None] * beta
    expected = shares * own["b/kernel"] + (1 - shares) * donor["b/kernel"]
    np.testing.assert_allclose(after["b/kernel"], expected, atol=1e-6)


def test_a_norm_that_two_convolutions_share_scales_neither_alone():
    layers = keras.layers
    norm = layers.BatchNormalization()
    x = keras.Input((6, 6, 2))
    h = norm(layers.Conv2D(2, 3)(norm(layers.Conv2D(2, 3)(x))))
    with pytest.raises(kgraft.UserError, match="no convolution followed by batch norm"):
        FilterGraft().plan([keras.Model(x, h)])


def test_biases_can_be_left_as_in_the_authors_script():
    models = [chain(k) for k in range(2)]
    before = by_name(models[0])
    FilterGraft(biases=False).mix(models)
    after = by_name(models[0])
    assert np.array_equal(before["a/bias"], after["a/bias"])
    assert not np.array_equal(before["na/beta"], after["na/beta"])


def test_a_kernel_that_lora_composes_has_no_chain():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(4, 3),
            keras.layers.BatchNormalization(),
            keras.layers.Conv2D(2, 3),
            keras.layers.BatchNormalization(),
        ]
    )
    assert len(chains(model)) == 2
    model.layers[0].enable_lora(2)
    (chain,) = chains(model)
    assert model.weights[chain.kernel].shape == (3, 3, 4, 2)
