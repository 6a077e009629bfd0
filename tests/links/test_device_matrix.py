"""K peers' weights in one tensor where they are: the host's numbers, few launches, two waits.

The path for accelerators runs here on the CPU's tensors, which it takes for another device's. Where
a compiler joins a product with a sum (jax, tensorflow) the last bit of a blend may differ.
"""

import keras
import numpy as np
import pytest

import kgraft
from kgraft.engines.backends import BACKEND
from kgraft.grafting import FilterGraft, FixedGraft, Internal, Noise, RePr, Rotation, Wash
from kgraft.grafting import population as populations
from kgraft.grafting.papa import Average, Papa
from kgraft.grafting.peers import Moment, Peers
from kgraft.grafting.population import population
from kgraft.links import device_matrix
from kgraft.links.device_matrix import DeviceMatrix
from tests.reference.parity import float64

pytestmark = pytest.mark.core

EXACT = keras.config.backend() == "torch"


def network():
    """Weights of many tiles and of one, and whatever the mixers ask for."""
    layers = [keras.Input((8, 8, 3))]
    for filters in (8, 40):
        layers += [
            keras.layers.Conv2D(filters, 3),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
        ]
    layers += [keras.layers.GlobalAveragePooling2D(), keras.layers.Dropout(0.1)]
    return keras.Sequential([*layers, keras.layers.Dense(5)])


def peers(count=3):
    keras.utils.set_random_seed(3)
    models = [network() for _ in range(count)]
    random = np.random.default_rng(0)
    for model in models:  # no weight is at 0 or 1
        values = [random.normal(w.mean(), 0.1 + w.std(), w.shape) for w in model.get_weights()]
        model.set_weights(values)
    return models


def make_sick(model):
    weights = model.get_weights()
    weights[2].reshape(-1)[1] = np.inf
    weights[-1][0] = np.nan
    model.set_weights(weights)


def assert_same(models, others):
    for own, theirs in zip(models, others, strict=True):
        for a, b in zip(own.get_weights(), theirs.get_weights(), strict=True):
            np.testing.assert_allclose(a, b, rtol=0 if EXACT else 3e-7, atol=0 if EXACT else 1e-7)


@pytest.fixture
def elsewhere(monkeypatch):
    """Makes new models' weights look as if they lay on an accelerator."""

    def switch():
        monkeypatch.setattr(BACKEND, "is_on_host", lambda value: False)

    return switch


def on_both(make, act, switch):
    """The models, and what `act` said, on the host and on a device."""
    models = make()
    said = act(models)
    switch()
    others = make()
    assert type(population(others)) is populations._OnDevice
    also = act(others)
    return models, said, others, also


GRAFTS = {
    "entropy": kgraft.Graft(),
    "more bins": kgraft.Graft(criterion=kgraft.Entropy(bins=4096)),
    "a bin": kgraft.Graft(criterion=kgraft.Entropy(bins=1)),
    "authors": kgraft.Graft.authors(),
    "filter-entropy": kgraft.Graft(criterion="filter-entropy"),
    "l1": kgraft.Graft(criterion="l1", sharpness=1.0),
    "own": kgraft.Graft(criterion=lambda kernel: float(kernel.std())),
    "decimals": kgraft.Graft(decimals=1),
    "mean": kgraft.Graft(amplitude=0.0),
    "whole": kgraft.Graft(amplitude=1.0, sharpness=1e15, decimals=2),
}


@pytest.mark.parametrize("name", GRAFTS)
def test_a_graft_is_the_hosts(name, elsewhere):
    models, record, others, other = on_both(peers, GRAFTS[name].mix, elsewhere)
    np.testing.assert_array_equal(record.information, other.information)
    np.testing.assert_array_equal(record.coefficients, other.coefficients)
    assert_same(models, others)


def test_whole_coefficients_give_whole_weights(elsewhere):
    record = on_both(peers, GRAFTS["whole"].mix, elsewhere)[3]
    assert set(record.coefficients.flat) == {0.0, 1.0}


@pytest.mark.parametrize("revive", [False, True])
def test_a_graft_with_sick_peers_is_the_hosts(revive, elsewhere):
    def make():
        models = peers(4)
        make_sick(models[1])
        make_sick(models[2])
        return models

    models, record, others, other = on_both(make, kgraft.Graft(revive=revive).mix, elsewhere)
    assert record.sick == other.sick == {1, 2}
    assert record.donors == other.donors
    np.testing.assert_array_equal(record.information, other.information)
    np.testing.assert_array_equal(record.coefficients, other.coefficients)
    assert_same(models, others)


def test_steps_that_overflow_move_nothing(elsewhere):
    """Between 3e38 and -3e38 lies no float32: a coefficient of 1 must not multiply that."""

    def make():
        models = peers(2)
        for model, value in zip(models, (3e38, -3e38), strict=True):
            model.set_weights([np.full_like(w, value) for w in model.get_weights()])
        return models

    def act(models):
        weights = population(models)
        members = list(range(len(models[0].weights)))
        weights.graft([members], np.array([[1.0], [0.0]]), (1, 0))
        weights.commit()

    models, _, others, _ = on_both(make, act, elsewhere)
    assert_same(models, others)
    for model in others:
        assert all((weight == np.float32(3e38)).all() for weight in model.get_weights())


@pytest.mark.parametrize(
    "mixer",
    [
        Noise(threshold=4.0),
        Internal(threshold=4.0),
        Average(),
        FixedGraft(),
        Rotation(),
        FilterGraft(),
    ],
    ids=lambda mixer: type(mixer).__name__,
)
def test_other_mixers_do_as_on_the_host(mixer, elsewhere):
    models, _, others, _ = on_both(peers, mixer.mix, elsewhere)
    assert_same(models, others)


@pytest.mark.parametrize("mixer", [Papa(rate=0.9), Wash(share=0.3)], ids=["papa", "wash"])
def test_mixers_between_steps_do_as_on_the_host(mixer, elsewhere):
    def act(models):
        both = Peers(models, mixer.plan(models))
        mixer.apply(both, mixer.init(both), Moment(0, 9, ends_epoch=False))

    models, _, others, _ = on_both(peers, act, elsewhere)
    assert_same(models, others)


def test_repr_does_as_on_the_host(elsewhere):
    mixer = RePr(full_epochs=1, pruned_epochs=1)

    def act(models):
        both = Peers(models, mixer.plan(models))
        state = mixer.init(both)
        for epoch in range(3):
            state, _ = mixer.apply(both, state, Moment(epoch))

    models, _, others, _ = on_both(peers, act, elsewhere)
    assert_same(models, others)


def test_averages_are_grafted_as_on_the_host(elsewhere):
    def trained():
        models = peers(2)
        for model in models:
            model.compile(keras.optimizers.SGD(0.1, use_ema=True), "mse")
            x = np.random.default_rng(1).normal(size=(4, 8, 8, 3)).astype("float32")
            model.train_on_batch(x, np.zeros((4, 5), "float32"))
        return models

    def act(models):
        averages = [kgraft.grafting.averages.averages_of(m, m.weights) for m in models]
        graft = kgraft.Graft()
        graft.apply(Peers(models, graft.plan(models), averages), {}, Moment())
        return [keras.ops.convert_to_numpy(a.value) for own in averages for a in own.values()]

    models, averages, others, also = on_both(trained, act, elsewhere)
    assert_same(models, others)
    for a, b in zip(averages, also, strict=True):
        np.testing.assert_allclose(a, b, rtol=3e-7, atol=1e-7)


def test_two_transfers_tell_all(elsewhere, monkeypatch):
    elsewhere()
    models, transfers = peers(), []
    to_numpy = keras.ops.convert_to_numpy
    kgraft.Graft().mix(models)
    monkeypatch.setattr(keras.ops, "convert_to_numpy", lambda x: transfers.append(x) or to_numpy(x))
    kgraft.Graft().mix(models)
    assert len(transfers) == 2


def test_large_models_are_taken_in_parts(elsewhere, monkeypatch):
    monkeypatch.setattr(device_matrix, "_AT_ONCE", 2000)
    models, record, others, other = on_both(peers, kgraft.Graft().mix, elsewhere)
    np.testing.assert_array_equal(record.information, other.information)
    assert_same(models, others)


@pytest.mark.skipif(keras.config.backend() == "jax", reason="no float64 unless begun so")
@pytest.mark.parametrize("graft", [kgraft.Graft(), kgraft.Graft.authors()], ids=["ours", "theirs"])
def test_float64_weights_are_counted_as_on_the_host(graft, elsewhere):
    def make():
        with float64():
            return peers(2)

    models, record, others, other = on_both(make, graft.mix, elsewhere)
    assert DeviceMatrix.of(others).dtype == np.float64
    np.testing.assert_array_equal(record.information, other.information)
    assert_same(models, others)


def test_constant_weights_have_no_entropy(elsewhere):
    def make():
        models = peers(2)
        for model in models:
            model.set_weights([np.full_like(w, 0.5) for w in model.get_weights()])
        return models

    record = on_both(make, kgraft.Graft().mix, elsewhere)[3]
    assert (record.information == 0).all()


def test_counts_are_those_of_the_equations(elsewhere):
    elsewhere()
    models = peers(2)
    edges = kgraft.Entropy(bins=7).edges
    kernels = kgraft.GraftPlan.of(models[0]).kernels
    counts = population(models).counts([1], kernels, edges)
    assert counts.shape == (1, len(kernels), 7)
    for own, index in zip(counts[0], kernels, strict=True):
        kernel = models[1].get_weights()[index]
        expected = kgraft.equations.bin_counts(
            kernel, edges(kernel.min(), kernel.max(), kernel.dtype)
        )
        np.testing.assert_array_equal(own, expected)


def test_weights_that_are_no_numbers_are_found_wherever_they_lie(elsewhere):
    elsewhere()
    models = peers(3)
    weights = models[1].get_weights()
    weights[5].reshape(-1)[-1] = np.nan
    models[1].set_weights(weights)
    found = population(models)
    assert [found.is_finite(k) for k in range(3)] == [True, False, True]
    found.mix([5], lambda values: [values[0]] * 3)
    assert found.is_finite(1)


def test_half_precision_is_left_to_the_way_weight_by_weight():
    keras.config.set_dtype_policy("bfloat16")
    try:
        models = peers(2)
    finally:
        keras.config.set_dtype_policy("float32")
    assert DeviceMatrix.of(models) is None
    assert type(population(models)) is populations._ByWeight
