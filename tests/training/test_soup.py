"""Soups: means by hand, the greedy recipe, and batch statistics of the averaged network."""

import keras
import numpy as np
import pytest

import kgraft
from kgraft.grafting.lawa import mean_weights
from kgraft.training.soup import greedy_soup, reestimate_statistics

pytestmark = pytest.mark.core


def test_the_mean_leaves_integers_alone():
    one = [np.float32([1, 2]), np.uint32([3, 4])]
    two = [np.float32([3, 6]), np.uint32([9, 9])]
    found = mean_weights([one, two])
    assert found[0].tolist() == [2, 4] and found[0].dtype == np.float32
    assert found[1].tolist() == [3, 4]


def test_the_greedy_soup_takes_what_helps():
    weights = [[np.float32(v)] for v in (4.0, 1.0, 2.0, 10.0)]

    def score(parts):
        return -abs(float(parts[0]) - 3.0)

    # alone: 4 and 2 miss 3 by 1, 1 by 2; 4 first, then 2 makes it 3, then 1 and 10 would spoil it
    soup, chosen = greedy_soup(weights, score)
    assert chosen == [0, 2]
    assert soup[0] == 3.0


def network(dropout=0.0):
    return keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            keras.layers.Conv2D(3, 3),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.ReLU(),
            keras.layers.Dropout(dropout, seed=1),
            keras.layers.Flatten(),
            keras.layers.Dense(4),
        ]
    )


def test_statistics_are_the_mean_of_the_batches_own():
    model = network(dropout=0.5)
    random = np.random.default_rng(0)
    sizes = [16, 16, 16, 5]
    batches = [random.normal(size=(size, 6, 6, 2)).astype("float32") for size in sizes]
    before = model.get_weights()
    reestimate_statistics(model, [(x,) for x in batches])
    after = model.get_weights()
    kernel, bias = before[:2]
    maps = [
        keras.ops.convert_to_numpy(keras.ops.conv(x, kernel, padding="valid")) + bias
        for x in batches
    ]
    mean = np.average([own.mean(axis=(0, 1, 2)) for own in maps], axis=0, weights=sizes)
    variance = np.average([own.var(axis=(0, 1, 2)) for own in maps], axis=0, weights=sizes)
    names = [w.path.rpartition("/")[2] for w in model.weights]
    np.testing.assert_allclose(after[names.index("moving_mean")], mean, atol=1e-5)
    np.testing.assert_allclose(after[names.index("moving_variance")], variance, rtol=1e-4)
    for name, a, b in zip(names, before, after, strict=True):
        assert name.startswith("moving") or np.array_equal(a, b)
    assert model.get_layer("norm").momentum == 0.99


def test_without_batches_nothing_can_be_estimated():
    with pytest.raises(kgraft.UserError, match="no batch"):
        reestimate_statistics(network(), [])
