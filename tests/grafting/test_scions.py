"""Noise and internal scions on whole models."""

import keras
import numpy as np
import pytest

import kgraft
from kgraft.grafting import Internal, Noise

pytestmark = pytest.mark.core


def model_with_invalid_filters():
    """A network whose second convolution has filters 0 and 1 near zero."""
    keras.utils.set_random_seed(1)
    model = kgraft.models.build("resnet8", input_shape=(8, 8, 3), classes=5)
    plan = kgraft.GraftPlan.of(model)
    weights = model.get_weights()
    weights[plan.groups[1].kernel][..., :2] *= 1e-6
    model.set_weights(weights)
    return model, plan


def test_noise_moves_invalid_filters_only_and_less_every_epoch():
    sizes = []
    for epoch in (0, 3):
        model, plan = model_with_invalid_filters()
        before = model.get_weights()
        Noise(decay=0.5, threshold=0.1, seed=2).mix([model], epoch)
        after = model.get_weights()
        kernel = plan.groups[1].kernel
        for i, (old, new) in enumerate(zip(before, after, strict=True)):
            if i != kernel:
                assert np.array_equal(old, new)
        assert np.array_equal(before[kernel][..., 2:], after[kernel][..., 2:])
        sizes.append((after[kernel] - before[kernel])[..., :2].std())
    assert sizes[0] == pytest.approx(1.0, rel=0.1)
    assert sizes[1] == pytest.approx(0.125, rel=0.15)


def test_noise_differs_between_peers_and_layers():
    (first, plan), (second, _) = model_with_invalid_filters(), model_with_invalid_filters()
    Noise(seed=2).mix([first, second])
    kernel = plan.groups[1].kernel
    assert not np.array_equal(first.get_weights()[kernel], second.get_weights()[kernel])


def test_internal_adds_the_strongest_filters_to_the_weakest():
    model, plan = model_with_invalid_filters()
    kernel = plan.groups[1].kernel
    before = model.get_weights()
    Internal(threshold=0.1).mix([model])
    after = model.get_weights()
    old = before[kernel].reshape(-1, before[kernel].shape[-1])
    order = np.argsort(np.abs(old).sum(0))
    expected = old.copy()
    for i in range(2):
        expected[:, order[i]] = old[:, order[i]] + old[:, order[-1 - i]]
    np.testing.assert_allclose(after[kernel].reshape(old.shape), expected, atol=1e-6)
    for i, (a, b) in enumerate(zip(before, after, strict=True)):
        assert i == kernel or np.array_equal(a, b)


def test_weights_that_are_not_finite_are_left():
    model, _ = model_with_invalid_filters()
    weights = model.get_weights()
    weights[0][0] = np.nan
    model.set_weights(weights)
    Internal().mix([model])
    for a, b in zip(weights, model.get_weights(), strict=True):
        assert np.array_equal(a, b, equal_nan=np.issubdtype(a.dtype, np.floating))


@pytest.mark.parametrize("make", [lambda: Noise(decay=1.0), lambda: Internal(threshold=0.0)])
def test_what_is_out_of_range_is_refused(make):
    with pytest.raises(kgraft.UserError, match=r"decay=1\.0|threshold=0\.0"):
        make()


def test_noise_is_the_authors_by_default():
    assert (Noise().decay, Noise().threshold) == (0.975, 0.1)
