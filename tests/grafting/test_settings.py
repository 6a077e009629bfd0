"""Settings of every mixer: whatever is not finite or out of range is refused in one line."""

import dataclasses
import math

import keras
import numpy as np
import pytest

import kgraft
from kgraft import grafting

MIXERS = [
    grafting.Graft,
    grafting.FixedGraft,
    grafting.Papa,
    grafting.Wash,
    grafting.Noise,
    grafting.Internal,
    grafting.RePr,
]
NO_NUMBERS = {"criterion", "grouping", "blend_frozen", "by_depth", "lr_scaling", "evaluate"}
NUMBERS = [
    (mixer, field.name)
    for mixer in MIXERS
    for field in dataclasses.fields(mixer)
    if field.init and field.name not in NO_NUMBERS
]


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, np.float32("nan"), "1"])
@pytest.mark.parametrize(("mixer", "name"), NUMBERS, ids=lambda v: getattr(v, "__name__", v))
def test_what_is_no_finite_number_is_refused(mixer, name, value):
    told = repr(value) if isinstance(value, str) else value
    with pytest.raises(kgraft.UserError, match=rf"{mixer.__name__}\({name}={told}\): expected"):
        mixer(**{name: value})


def test_every_number_of_every_mixer_is_tried():
    assert ("Graft", "sharpness") in [(mixer.__name__, name) for mixer, name in NUMBERS]
    assert len(NUMBERS) == 27


def test_numpy_numbers_are_numbers():
    assert grafting.Graft(amplitude=np.float32(0.5), decimals=np.int64(2)).decimals == 2


def test_equal_peers_stay_equal_however_sharp_the_coefficient():
    models = []
    for _ in range(2):
        keras.utils.set_random_seed(0)
        models.append(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]))
    before = models[0].get_weights()
    grafting.Graft(sharpness=1e308).mix(models)
    for model in models:
        assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
