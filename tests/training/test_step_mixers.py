"""Mixers between steps in a run: when they are called, and with what."""

import keras
import numpy as np
import pytest

import kgraft
from kgraft.grafting import Papa, StepMixer
from tests.training.test_fit import digits, network

pytestmark = pytest.mark.core


class Spy(StepMixer):
    every_steps = 3

    def __init__(self):
        self.seen = []

    def apply(self, peers, state, moment):
        self.seen.append((moment.step, peers.models[0].get_weights()[0].copy()))
        return state, None


def test_a_mixer_sees_every_nth_step_over_all_epochs():
    x, y = digits(40)
    spy = Spy()
    run = kgraft.GraftingFit([network(), network()], mixer=spy)
    run.fit(x, y, batch_size=10, epochs=2, verbose=0)
    assert [number for number, _ in spy.seen] == [2, 5]
    assert not np.array_equal(spy.seen[0][1], spy.seen[1][1])


def test_a_resumed_run_goes_on_counting():
    x, y = digits(40)
    spy = Spy()
    run = kgraft.GraftingFit([network(), network()], mixer=spy)
    run.fit(x, y, batch_size=10, epochs=3, initial_epoch=2, verbose=0)
    assert [number for number, _ in spy.seen] == [8, 11]


def test_steps_are_counted_where_epochs_are_of_different_lengths():
    x, y = digits(50)
    for calls in ((3,), (1, 1, 1)):
        spy = Spy()
        run = kgraft.GraftingFit([network(), network()], mixer=spy)
        for epochs in calls:
            run.fit(
                *(x, y), batch_size=10, epochs=epochs, steps_per_epoch=3, shuffle=False, verbose=0
            )
        assert [number for number, _ in spy.seen] == [2, 5]  # of 3 + 2 + 3


def test_what_a_mixer_writes_is_what_the_next_step_reads():
    """With a rate of 0 after every step both peers are equal at the end of each."""
    x, y = digits(40)
    peers = [network(lr=0.1), network(lr=0.01)]
    run = kgraft.GraftingFit(peers, mixer=Papa(rate=0.0, every_steps=1))
    run.fit(x, y, batch_size=10, epochs=1, verbose=0)
    for a, b in zip(*(peer.get_weights() for peer in peers), strict=True):
        assert np.array_equal(a, b)
    alone = network(lr=0.1)
    assert not np.array_equal(peers[0].get_weights()[0], alone.get_weights()[0])


def test_in_fit_of_one_model_they_are_refused():
    with pytest.raises(kgraft.UserError, match="Papa acts between steps"):
        kgraft.GraftCallback([network()], mixer=Papa())


def test_the_callback_takes_any_other_mixer():
    x, y = digits(40)
    model, peer = network(), network(lr=0.01)
    callback = kgraft.GraftCallback([peer], mixer=kgraft.grafting.Average())
    model.fit(x, y, epochs=1, verbose=0, callbacks=[callback])
    for a, b in zip(model.get_weights(), peer.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    schedule = {"every": 1, "epochs": None, "evaluate": "after"}
    assert callback.get_config()["mixer"] == {"mixer": "Average", **schedule}
    assert keras.tree.flatten(callback.get_config())


def test_a_mixer_that_forgets_its_state_is_told_so():
    class Forgets(StepMixer):
        def apply(self, peers, state, moment):
            return None

    run = kgraft.GraftingFit([network()], mixer=Forgets())
    with pytest.raises(kgraft.UserError, match=r"Forgets\.apply gave None: expected a state"):
        run.fit(*digits(20), epochs=1, verbose=0)


def test_a_mixer_that_gives_something_else_for_a_record_is_told_so():
    class Other(StepMixer):
        def apply(self, peers, state, moment):
            return state, np.float64(0)

    run = kgraft.GraftingFit([network()], mixer=Other())
    with pytest.raises(kgraft.UserError, match=r"Other\.apply gave 0\.0 for a record: expected a"):
        run.fit(*digits(20), epochs=1, verbose=0)


class Keeps(StepMixer):
    """A mixer that keeps whatever it is given."""

    def __init__(self, first, then):
        self.first, self.then = first, then

    def init(self, peers, last=None):
        return self.first

    def apply(self, peers, state, moment):
        return self.then, None


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (None, "its state is None: expected JSON-able values and NumPy arrays, by name"),
        ({"seen": {1}}, r"its state\['seen'\] is a set: expected"),
        ({"seen": [1, (2, object())]}, r"its state\['seen'\]\[1\]\[1\] is an object: expected"),
        ({"seen": {1: 2}}, r"its state\['seen'\] is a dict: expected"),
        ({"seen": np.int64(3)}, r"its state\['seen'\] is 3: expected"),
        ({"seen": np.array([None])}, r"its state\['seen'\] is a ndarray: expected"),
    ],
)
def test_a_state_that_could_not_be_saved_is_refused_when_it_appears(state, message):
    fit = {"epochs": 1, "verbose": 0}
    for mixer in (Keeps(state, {}), Keeps({}, state)):
        with pytest.raises(kgraft.UserError, match=f"^Keeps: {message}") as error:
            kgraft.GraftingFit([network()], mixer=mixer).fit(*digits(20), **fit)
        assert "\n" not in str(error.value)
        assert error.value.__context__ is None  # said once


def test_every_state_that_can_be_saved_is_taken():
    state = {"a": None, "b": [True, 1, 0.5, "x"], "c": {"d": (1,)}, "e": np.zeros(3)}
    run = kgraft.GraftingFit([network()], mixer=Keeps(state, state))
    run.fit(*digits(20), epochs=1, verbose=0)


def test_a_mixer_with_nothing_to_do_is_refused():
    class Idle(StepMixer):
        pass

    with pytest.raises(kgraft.UserError, match=r"mixer Idle has no apply\(peers, state, moment\)"):
        kgraft.GraftingFit([network()], mixer=Idle())


def test_a_name_has_one_mixer():
    with pytest.raises(kgraft.UserError, match=r"is named 'graft', as kgraft.*\.Graft is"):

        class Mine(StepMixer):
            name = "graft"


@pytest.mark.parametrize("word", ["run", "data", "peers", "checkpoint", "budget", "a.b", "a b"])
def test_a_name_that_no_table_of_a_run_file_can_have_is_refused(word):
    said = f"mixer .*Mine: its settings cannot stand in a table .{word}. of a run file"
    with pytest.raises(kgraft.UserError, match=said):

        class Mine(StepMixer):
            name = word
