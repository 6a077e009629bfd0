import logging

import keras
import numpy as np
import pytest
from keras import layers

import kgraft
from kgraft.errors import UserError
from kgraft.grafting import Graft
from kgraft.grafting.graft import warn_of_sick_peers
from tests.reference import grafting as reference

pytestmark = pytest.mark.core


def network(filters=4):
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(filters, 3),
            layers.BatchNormalization(),
            layers.DepthwiseConv2D(3),
            layers.Dropout(0.1),
            layers.Flatten(),
            layers.Normalization(mean=0.5, variance=2.0),
            layers.Dense(3),
        ]
    )


def peers(count):
    rng = np.random.default_rng(0)
    models = [network() for _ in range(count)]
    for model in models:
        model.set_weights([rng.normal(size=w.shape).astype(np.float32) for w in model.weights])
    return models


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_one_grafting_equals_the_reference(count):
    models = peers(count)
    plan = Graft().plan(models)
    before = [model.get_weights() for model in models]
    groups = [(group.kernel, group.members) for group in plan.groups]
    expected, alphas = reference.graft(before, groups)
    record = Graft().mix(models)
    if count == 1:
        expected, alphas = before, np.ones((1, len(groups)))
    np.testing.assert_allclose(record.coefficients, alphas, atol=1e-12)
    for model, blended in zip(models, expected, strict=True):
        for weight, value in zip(model.get_weights(), blended, strict=True):
            np.testing.assert_allclose(weight, value, atol=1e-6)


def test_authors_mode_bins_in_float32_and_rounds_to_two_decimals():
    models = peers(3)
    before = [model.get_weights() for model in models]
    groups = [(g.kernel, g.members) for g in Graft.authors().plan(models).groups]
    _, alphas = reference.graft(before, groups, reference.authors_entropy)
    record = Graft.authors().mix(models)
    np.testing.assert_array_equal(record.coefficients, np.round(alphas, 2))


def test_equal_peers_stay_as_they_are():
    models = peers(3)
    for model in models[1:]:
        model.set_weights(models[0].get_weights())
    before = models[0].get_weights()
    record = Graft().mix(models)
    assert (record.coefficients == 0.5).all()
    for model in models:
        for weight, value in zip(model.get_weights(), before, strict=True):
            np.testing.assert_array_equal(weight, value)


def test_what_is_no_float_weight_keeps_its_value():
    models = [
        keras.Sequential([keras.Input((4,)), layers.Normalization(), layers.Dense(2)])
        for _ in range(2)
    ]
    for model, count in zip(models, (10, 20), strict=True):
        model.layers[0].adapt(np.random.default_rng(count).normal(size=(count, 4)))
    before = [int(model.layers[0].count) for model in models]
    Graft().mix(models)
    assert [int(model.layers[0].count) for model in models] == before


def test_a_peer_with_nan_weights_is_no_donor_and_is_named_once(caplog):
    models = peers(3)
    sick = models[1].get_weights()
    sick[-1][0] = np.nan
    models[1].set_weights(sick)
    before = [model.get_weights() for model in models]
    told = set()
    with caplog.at_level(logging.WARNING, "kgraft"):
        for _ in range(2):
            record = Graft().mix(models)
            warn_of_sick_peers(record, told)
    assert record.donors == (2, None, 0)
    assert [r.message for r in caplog.records] == [caplog.records[0].message]
    assert "peer 2" in caplog.text
    assert all(np.isfinite(w).all() for k in (0, 2) for w in models[k].get_weights())
    for weight, value in zip(models[1].get_weights(), before[1], strict=True):
        np.testing.assert_array_equal(weight, value)


def test_infinite_normalisation_statistics_make_a_peer_sick():
    models = peers(2)
    models[0].layers[1].moving_variance.assign([np.inf] * 4)
    assert Graft().mix(models).donors == (None, None)


def test_a_constant_criterion_averages_peers():
    models = peers(2)
    mean = [(a + b) / 2 for a, b in zip(*[m.get_weights() for m in models], strict=True)]
    Graft(criterion=lambda kernel: 1.0).mix(models)
    for weight, value in zip(models[0].get_weights(), mean, strict=True):
        np.testing.assert_allclose(weight, value, atol=1e-6)


def test_a_criterion_that_gives_no_number_is_named():
    with pytest.raises(UserError, match=r"criterion <lambda> gave nan for .*kernel"):
        Graft(criterion=lambda kernel: np.nan).mix(peers(2))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"amplitude": 1.5}, "amplitude=1.5"),
        ({"sharpness": 0}, "sharpness=0"),
        ({"decimals": 0}, "decimals=0"),
        ({"criterion": "l2"}, "Known: entropy"),
    ],
)
def test_options_are_checked(wrong, message):
    with pytest.raises(UserError, match=message):
        Graft(**wrong)


def test_peers_that_cannot_form_a_ring_are_refused():
    model = network()
    with pytest.raises(UserError, match="no peers"):
        Graft().plan([])
    with pytest.raises(UserError, match="twice"):
        Graft().plan([model, model])
    with pytest.raises(UserError, match="peer 1 and peer 3 differ"):
        Graft().plan([model, network(), network(5)])


def test_weights_that_two_peers_would_both_train_are_refused():
    shared = keras.layers.Dense(3, name="shared")
    models = [keras.Sequential([keras.Input((4,)), shared, keras.layers.Dense(2)]) for _ in "ab"]
    with pytest.raises(kgraft.UserError, match=r"peer 1 and peer 2 share .*shared/kernel"):
        Graft().mix(models)
    shared.trainable = False  # e.g. one backbone for all, which nobody trains
    Graft().mix(models)


def test_the_class_of_a_criterion_is_refused():
    with pytest.raises(kgraft.UserError, match=r"criterion is the class L1Norm: pass L1Norm\("):
        Graft(criterion=kgraft.L1Norm)
