import signal

import keras
import numpy as np
import pytest

from kgraft.engines.lockstep import Lockstep
from tests.training.callback_cases import (
    BACKEND,
    BATCH,
    arrays,
    assert_same,
    assert_usable,
    batches,
    compiled,
    everything,
)

pytestmark = pytest.mark.core


class Watch(keras.callbacks.Callback):
    """Arms a lockstep before every step and keeps what it takes after it."""

    def __init__(self, lockstep):
        super().__init__()
        self.lockstep, self.taken = lockstep, []

    def on_train_batch_begin(self, batch, logs=None):
        self.lockstep.arm()

    def on_train_batch_end(self, batch, logs=None):
        self.taken.append(self.lockstep.take())


def assert_same_batches(taken, expected):
    assert len(taken) == len(expected)
    for (x, y, *_), (x_expected, y_expected) in zip(taken, expected, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(x), x_expected)
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(y), y_expected)


def test_it_takes_what_fit_feeds_and_changes_no_bit_of_the_training():
    x, y = arrays()
    watched, reference = compiled(1), compiled(1)
    watch = Watch(Lockstep(watched))
    watched.fit(x, y, batch_size=BATCH, epochs=2, shuffle=False, verbose=0, callbacks=[watch])
    assert_same_batches([batch for step in watch.taken for batch in step], batches(x, y) * 2)
    reference.fit(x, y, batch_size=BATCH, epochs=2, shuffle=False, verbose=0)
    assert_same(everything(watched), everything(reference))


@pytest.mark.skipif(BACKEND != "jax", reason="only jax takes the weights out of the model")
def test_values_that_are_read_during_a_fit_are_not_taken_up_by_it():
    x, y = arrays()
    model, reference = compiled(1), compiled(1)
    lockstep, seen = Lockstep(model), []

    class Reads(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            kernel = model.trainable_variables[0]
            emptied = kernel._value
            with lockstep.readable():
                seen.append(keras.ops.convert_to_numpy(kernel.value))
                kernel._value = None
            assert kernel._value is emptied

    options = {"batch_size": BATCH, "shuffle": False, "verbose": 0}
    model.fit(x, y, callbacks=[Reads()], **options)
    for step, batch in enumerate(batches(x, y)):
        reference.train_on_batch(*batch)
        np.testing.assert_allclose(seen[step], reference.get_weights()[0], rtol=1e-6, atol=1e-7)
    with lockstep.readable():  # no fit is under way
        assert_same([seen[-1]], model.get_weights()[:1])


@pytest.mark.skipif(BACKEND == "torch", reason="torch takes one step an execution")
def test_an_execution_of_several_steps_gives_several_batches():
    x, y = arrays()
    model = compiled(1, steps_per_execution=4)
    watch = Watch(Lockstep(model))
    model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[watch])
    assert [len(step) for step in watch.taken] == [4, 2]
    assert_same_batches([batch for step in watch.taken for batch in step], batches(x, y))


def test_two_may_watch_one_model():
    x, y = arrays()
    model, reference = compiled(1), compiled(1)
    watches = [Watch(Lockstep(model)), Watch(Lockstep(model))]
    model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=watches)
    reference.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)
    assert_same(everything(model), everything(reference))
    for watch in watches:
        assert_same_batches([batch for step in watch.taken for batch in step], batches(x, y))


def test_arming_twice_takes_a_batch_once_and_disarming_leaves_no_trace():
    x, y = arrays(4)
    model = compiled(1)
    model.train_on_batch(x, y)
    original = model.train_function
    lockstep = Lockstep(model)
    lockstep.arm()
    lockstep.arm()
    model.train_on_batch(x, y)
    assert model.train_function is original
    assert len(lockstep.take()) == 1
    lockstep.arm()
    lockstep.disarm()
    assert model.train_function is original


@pytest.mark.skipif(BACKEND != "jax", reason="only jax takes the weights out of the model")
@pytest.mark.parametrize("name", ["train_function", "test_function"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_ctrl_c_around_a_donating_step_leaves_the_model_its_weights(name, moment):
    x, y = arrays()
    model = compiled(1)
    model.fit(x, y, batch_size=BATCH, verbose=0, validation_data=(x, y))
    lockstep = Lockstep(model)

    class CtrlC(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            self._put("train_function")
            lockstep.arm()

        def on_test_batch_begin(self, batch, logs=None):
            self._put("test_function")
            lockstep.guard()

        def _put(self, put):
            if put != name:
                return
            original = getattr(model, name)

            def interrupted(state, iterator):
                setattr(model, name, original)
                if moment == "before":
                    signal.raise_signal(signal.SIGINT)
                result = original(state, iterator)
                if moment == "after":
                    signal.raise_signal(signal.SIGINT)  # the state's arrays are deleted by now
                return result

            setattr(model, name, interrupted)

    steps = int(model.optimizer.iterations.value)
    with pytest.raises(KeyboardInterrupt):
        model.fit(x, y, batch_size=BATCH, verbose=0, validation_data=(x, y), callbacks=[CtrlC()])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert int(model.optimizer.iterations.value) - steps == (1 if name == "train_function" else 6)
    lockstep.disarm()
    assert_usable(model, x, y)
