import keras
import numpy as np
import pytest

import kgraft
from kgraft.analysis.filters import (
    THRESHOLDS,
    LayerFilters,
    invalid_ratio,
    layer_filters,
    overlap,
    split_norms,
)

pytestmark = pytest.mark.core


def network(seed=0):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(4, 3, name="first"),
            keras.layers.BatchNormalization(epsilon=0.01, name="norm"),
            keras.layers.ReLU(),
            keras.layers.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise"),
            keras.layers.Conv2D(5, 1, name="last"),
            keras.layers.Flatten(),
            keras.layers.Dense(2),
        ]
    )
    rng = np.random.default_rng(seed)
    model.get_layer("norm").set_weights([rng.uniform(0.0, 2.0, 4) for _ in range(4)])
    return model


def test_norms_are_sums_over_each_filter_and_folded_ones_what_it_does():
    model = network()
    first, depthwise, last = layer_filters(model)
    kernel = np.asarray(model.get_layer("first").get_weights()[0])
    by_hand = [sum(abs(float(x)) for x in kernel[..., j].ravel()) for j in range(4)]
    np.testing.assert_allclose(first.norms, by_hand, rtol=1e-6)
    gamma, _, _, variance = model.get_layer("norm").get_weights()
    expected = by_hand * np.abs(gamma) / np.sqrt(variance + 0.01)
    np.testing.assert_allclose(first.folded, expected, rtol=1e-6)
    kernel = np.asarray(model.get_layer("depthwise").get_weights()[0])
    expected = [np.abs(kernel[:, :, c, m]).sum() for c in range(4) for m in range(2)]
    np.testing.assert_allclose(depthwise.norms, expected, rtol=1e-6)
    assert (len(last.norms), last.weights, last.folded) == (5, 8, None)
    assert depthwise.weights == 9


def test_entropies_are_the_records_ones():
    model = network()
    expected = kgraft.Entropy().information(
        [model.get_layer(name).get_weights()[0] for name in ("first", "depthwise", "last")],
        [()] * 3,
    )
    np.testing.assert_array_equal([layer.entropy for layer in layer_filters(model)], expected)


@pytest.mark.parametrize(
    ("name", "filters"),
    [("resnet32", 1136), ("resnet56", 2032), ("mobilenet_v2", 17_088 + 456)],
)
def test_networks_have_as_many_filters_as_published(name, filters):
    model = kgraft.models.build(name, input_shape=(32, 32, 3), classes=10)
    assert sum(len(layer.norms) for layer in layer_filters(model)) == filters


def test_filters_are_counted_below_each_threshold():
    model = network()
    kernel, *bias = model.get_layer("first").get_weights()
    kernel[..., 1], kernel[..., 2] = 0.0, 0.05 / 27
    model.get_layer("first").set_weights([kernel, *bias])
    layers = layer_filters(model)
    assert layers[0].invalid(0.1).tolist() == [False, True, True, False]
    assert layers[0].invalid(0.01).tolist() == [False, True, False, False]
    ratios = invalid_ratio(layers, (0.01, 0.1, 1e9))
    np.testing.assert_allclose(ratios, [1 / 17, 2 / 17, 1.0])
    assert (np.diff(invalid_ratio(layers)) >= 0).all() and len(THRESHOLDS) == 5


def test_a_baseline_splits_another_networks_filters():
    own, baseline = layer_filters(network(0)), layer_filters(network(1))
    threshold = float(np.median(np.concatenate([layer.norms for layer in baseline])))
    split = split_norms(own, baseline, threshold)
    valid = [
        n
        for a, b in zip(own, baseline, strict=True)
        for n, o in zip(a.norms, b.norms, strict=True)
        if o >= threshold
    ]
    assert split.valid == pytest.approx(np.mean(valid)) and split.valid_count == len(valid)
    assert split.valid_count + split.invalid_count == 17
    assert np.isnan(split_norms(own, own, 0.0).invalid)


def test_overlap_is_of_places():
    own = layer_filters(network(0))
    assert overlap(own, own, 1e9) == 1.0
    assert np.isnan(overlap(own, own, 0.0))
    other = layer_filters(network(1))
    threshold = 3.0
    a, b = (
        {(k, j) for k, layer in enumerate(some) for j in np.flatnonzero(layer.invalid(threshold))}
        for some in (own, other)
    )
    assert overlap(own, other, threshold) == pytest.approx(len(a & b) / len(a | b))


def test_other_architectures_are_refused():
    own = layer_filters(network())
    with pytest.raises(kgraft.UserError, match="3 and of 2 layers"):
        split_norms(own, own[:2])
    with pytest.raises(kgraft.UserError, match=r"first/kernel has 4 filters, and .*depthwise"):
        overlap(own, (own[1], *own[1:]))


def layer(*norms, folded=None):
    return LayerFilters("kernel", np.array(norms), folded, 1.0, 9)


def test_filters_that_are_not_finite_are_neither_valid_nor_invalid():
    nan, inf = float("nan"), float("inf")
    own = layer(0.0, nan, 2.0, inf, 4.0)
    assert own.finite.tolist() == [True, False, True, False, True]
    assert own.invalid(0.1).tolist() == [True, False, False, False, False]
    np.testing.assert_allclose(invalid_ratio([own], [0.1, 3.0, 9.0]), [1 / 3, 2 / 3, 1.0])
    split = split_norms([own], [own])
    assert (split.valid, split.invalid, split.valid_count, split.invalid_count) == (3.0, 0.0, 2, 1)
    other = layer(nan, 1.0, 0.0, 1.0, 1.0)  # both are finite at the third and at the last
    split = split_norms([own], [other])
    assert (split.valid, split.invalid, split.valid_count, split.invalid_count) == (4.0, 2.0, 1, 1)


def test_of_a_network_of_nan_no_share_is_known():
    own = [layer(*[float("nan")] * 3, folded=np.full(3, np.nan))]
    assert np.isnan(invalid_ratio(own, [0.1, 1.0])).all()
    split = split_norms(own, own)
    assert (split.valid_count, split.invalid_count) == (0, 0)
    assert np.isnan([split.valid, split.invalid, split.valid_folded]).all()
    assert np.isnan(overlap(own, own))


def test_no_layers_are_refused():
    for call in (invalid_ratio, lambda own: overlap(own, own), lambda own: split_norms(own, own)):
        with pytest.raises(kgraft.UserError, match="expected what layer_filters gives"):
            call([])
