"""The weights of K peers, on the host and weight by weight: the same numbers, bit for bit."""

import keras
import numpy as np
import pytest

import kgraft
from kgraft.grafting import population as populations
from kgraft.grafting.population import population

pytestmark = pytest.mark.core


def peers(count=3):
    keras.utils.set_random_seed(3)
    return [kgraft.models.build("resnet8", input_shape=(8, 8, 3), classes=5) for _ in range(count)]


def clones(models):
    copies = peers(len(models))
    for copy, model in zip(copies, models, strict=True):
        copy.set_weights(model.get_weights())
    return copies


def without(monkeypatch, *matrices):
    for name in matrices:
        matrix = getattr(populations, name)
        monkeypatch.setattr(matrix, "of", classmethod(lambda cls, models: None))


def test_the_host_and_the_way_weight_by_weight_graft_alike(monkeypatch):
    models = peers()
    copies = clones(models)
    record = kgraft.Graft().mix(models)
    without(monkeypatch, "HostMatrix", "DeviceMatrix")
    other = kgraft.Graft().mix(copies)
    assert np.array_equal(record.coefficients, other.coefficients)
    for own, theirs in zip(models, copies, strict=True):
        for a, b in zip(own.get_weights(), theirs.get_weights(), strict=True):
            assert np.array_equal(a, b)


def test_weights_changed_by_others_are_read_anew():
    models = peers(2)
    kgraft.Graft().mix(models)
    for model, value in zip(models, (1.0, 3.0), strict=True):
        model.set_weights([np.full_like(weight, value) for weight in model.get_weights()])
    kgraft.Graft().mix(models)
    for model in models:
        assert all((weight == 2.0).all() for weight in model.get_weights())


def test_a_mixed_weight_is_the_only_one_that_moves():
    models = peers(2)
    before = [model.get_weights() for model in models]
    own = population(models)
    own.mix([3], lambda values: values[::-1])
    own.commit()
    for k in (0, 1):
        after = models[k].get_weights()
        assert np.array_equal(after[3], before[1 - k][3])
        assert all(np.array_equal(a, b) for a, b in zip(after[:3], before[k][:3], strict=True))
        assert all(np.array_equal(a, b) for a, b in zip(after[4:], before[k][4:], strict=True))


def test_weights_that_are_no_numbers_are_found():
    models = peers(2)
    weights = models[1].get_weights()
    weights[-1][0] = np.nan
    models[1].set_weights(weights)
    own = population(models)
    assert [own.is_finite(0), own.is_finite(1)] == [True, False]


def test_large_finite_weights_are_no_reason_to_exclude_a_peer():
    models = peers(1)
    models[0].set_weights([np.full_like(w, 3e38) for w in models[0].get_weights()])
    assert population(models).is_finite(0)


def test_values_may_change_places(monkeypatch):
    """A peer's old value is another's new one, and is written over meanwhile."""
    for absent in ((), ("HostMatrix",), ("HostMatrix", "DeviceMatrix")):
        with monkeypatch.context() as patch:
            without(patch, *absent)
            models = peers(2)
            before = [model.get_weights() for model in models]
            weights = population(models)
            weights.mix(range(len(before[0])), lambda values: values[::-1])
            weights.commit()
            for model, expected in zip(models, before[::-1], strict=True):
                for own, other in zip(model.get_weights(), expected, strict=True):
                    assert np.array_equal(own, other)
