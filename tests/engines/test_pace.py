"""In turns or beside each other: what is measured and chosen, that the numbers are the same."""

import logging

import keras
import numpy as np
import pytest

from kgraft.engines.backends import BACKEND
from kgraft.engines.engine import Engine
from kgraft.engines.pace import Pace
from tests.engines.test_compiled import batches
from tests.engines.test_traced_steps import network, state

if keras.config.backend() != "torch":
    pytest.skip("the others have their rule", allow_module_level=True)

import torch

from kgraft.engines.torch import host_memory, traced_steps


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize(
    ("turns", "beside", "chosen"), [(1.0, 0.5, "beside"), (1.0, 0.98, "turns"), (0.5, 1.0, "turns")]
)
def test_the_faster_way_is_taken_once_both_were_tried(turns, beside, chosen, caplog):
    clock, taken = Clock(), []

    def way(name, seconds):
        def take():
            taken.append(name)
            first = taken.count(name) == 1
            clock.now += 100.0 if first else seconds  # of a first step nothing is learnt
            return name

        return take

    caplog.set_level(logging.INFO, "kgraft")
    pace = Pace(4, 2, clock)
    ways = way("turns", turns), way("beside", beside)
    found = [pace.take(*ways) for _ in range(20)]
    assert found == taken
    assert found[:12] == ["turns", "beside"] * 6
    assert found[12:] == [chosen] * 8
    told = "beside each other" if chosen == "beside" else "in turns"
    assert f"4 peers take their steps {told}: in threads of 2 cores each" in caplog.text
    assert caplog.text.count("times as fast as in turns") == 1


def trained(ways, monkeypatch, count=3, steps=16):
    """Losses and states of peers whose steps are taken one way or the other."""
    chosen = iter(ways)
    monkeypatch.setattr(
        Pace, "take", lambda self, turns, beside: (beside if next(chosen) else turns)()
    )
    monkeypatch.setattr(traced_steps, "_AFTER", 5)
    monkeypatch.setattr(traced_steps, "_SHORT", 60.0)  # however busy the machine is
    models = []
    for k in range(count):
        models.append(network())
        models[-1].set_weights([own * (1 + 0.01 * k) for own in models[-1].get_weights()])
    engine = Engine(models)
    data = batches((8, 8, 3), 5, count=steps, size=8)
    for stepper in engine.steppers:
        stepper.build(data[0])
    engine.begin_epoch()
    losses = [[float(own["loss"]) for own in engine.step([batch] * count)] for batch in data]
    engine.end_epoch()
    return losses, [state(model) for model in models], engine


@pytest.fixture
def two_cores():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_both_ways_come_to_the_same(two_cores, monkeypatch):
    losses, states, _ = trained([False] * 20, monkeypatch)
    for ways in ([True] * 20, [True, False] * 10):
        beside, theirs, engine = trained(ways, monkeypatch)
        assert engine._pool is not None
        np.testing.assert_allclose(beside, losses, rtol=1e-4)
        for own, other in zip(states, theirs, strict=True):
            for a, b in zip(own, other, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
        assert torch.get_num_threads() == 2  # of this thread
        assert all(stepper.steps()._plays for stepper in engine.steppers)  # traced in a thread


def test_one_core_is_left_at_that(monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        _, _, engine = trained([], monkeypatch, steps=4)
        assert engine._pool is None and engine._pace is None
    finally:
        torch.set_num_threads(before)


def test_models_that_draw_random_numbers_take_turns(two_cores, monkeypatch):
    monkeypatch.setattr(Pace, "take", lambda self, turns, beside: pytest.fail("measured"))
    models = []
    for _ in range(2):
        inputs = keras.Input((8, 8, 3))
        x = keras.layers.Conv2D(4, 3)(inputs)
        x = keras.layers.Dropout(0.5)(keras.layers.Flatten()(x))
        model = keras.Model(inputs, keras.layers.Dense(5)(x))
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        models.append(model)
    engine = Engine(models)
    data = batches((8, 8, 3), 5, count=3, size=8)
    for stepper in engine.steppers:
        stepper.build(data[0])
    for batch in data:
        engine.step([batch, batch])
    assert engine.name == "compiled"


def test_an_error_in_a_thread_is_raised(two_cores, monkeypatch):
    _, _, engine = trained([True] * 20, monkeypatch, count=2, steps=3)

    def fails(data):
        raise ZeroDivisionError

    monkeypatch.setattr(engine.steppers[1].steps(), "train", fails)
    monkeypatch.setattr(Pace, "take", lambda self, turns, beside: beside())
    with pytest.raises(ZeroDivisionError):
        engine.step(batches((8, 8, 3), 5, count=1, size=8) * 2)


def test_without_room_for_all_at_once_they_take_turns(two_cores, monkeypatch):
    monkeypatch.setattr(host_memory, "free", lambda: host_memory.most_held())
    _, _, engine = trained([], monkeypatch, steps=4)
    assert engine._pool is None and engine._pace is None and engine.is_settled


def test_room_is_for_what_a_step_has_taken_times_the_threads(monkeypatch):
    monkeypatch.setattr(host_memory, "most_held", lambda: 1000)
    for free, times, expected in ((2000, 2, True), (1999, 2, False), (6000, 4, True), (None, 9, 1)):
        monkeypatch.setattr(host_memory, "free", lambda free=free: free)
        assert BACKEND.has_room(times) == expected
    assert BACKEND.has_room(1)


def test_memory_of_the_host_is_told():
    held, free = host_memory.most_held(), host_memory.free()
    block = np.ones(1 << 25)  # 256 MiB, touched
    assert host_memory.most_held() >= max(held, block.nbytes)
    assert free is None or free > 1 << 20


@pytest.mark.parametrize("chosen", [False, True])
def test_threads_and_their_memory_end_where_turns_are_faster(chosen, two_cores, monkeypatch):
    given_back = []
    monkeypatch.setattr(host_memory, "give_back", lambda: given_back.append(1))

    def settle(self, turns, beside):
        taken = (turns if self.chosen is False else beside)()
        self.chosen = chosen
        return taken

    losses, _, engine = trained_with(settle, monkeypatch)
    assert np.isfinite(losses).all() and engine.is_settled
    assert (engine._pool is None) is not chosen
    assert len(given_back) == (0 if chosen else 1)


def trained_with(take, monkeypatch):
    with monkeypatch.context() as patched:
        models = [network(), network()]
        patched.setattr(Pace, "take", take)
        engine = Engine(models)
        data = batches((8, 8, 3), 5, count=5, size=8)
        for stepper in engine.steppers:
            stepper.build(data[0])
        engine.begin_epoch()
        losses = [[float(own["loss"]) for own in engine.step([b, b])] for b in data]
        engine.end_epoch()
    return losses, None, engine
