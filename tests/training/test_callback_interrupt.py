"""Ctrl-C anywhere leaves every model usable, and nothing behind that moves the peers."""

import keras
import pytest

from kgraft.training.callback import GraftCallback
from tests.training.callback_cases import (
    BACKEND,
    BATCH,
    arrays,
    assert_same,
    assert_usable,
    batches,
    compile_,
    compiled,
    everything,
    network,
    taught,
)

pytestmark = pytest.mark.core


class CtrlC(keras.callbacks.Callback):
    """Interrupts the second epoch, in one method; in its first or third batch."""

    def __init__(self, method, batch=0):
        super().__init__()
        self.epoch = 0
        setattr(self, method, self.interrupt)
        self.batch = batch

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def interrupt(self, batch=0, logs=None):
        if self.epoch == 1 and batch in (None, self.batch):
            raise KeyboardInterrupt


def interrupted(model, callbacks, x, y=None, **options):
    options = {"verbose": 0, "shuffle": False, **options}
    with pytest.raises(BaseException) as caught:  # tensorflow rewraps what a data set raises
        model.fit(x, y, epochs=2, callbacks=callbacks, **options)
    assert "KeyboardInterrupt" in repr(caught.value) + str(caught.value)


def plain_fit(model, x, y):
    model.fit(x, y, batch_size=BATCH, verbose=0, validation_data=(x, y))


def plain_step(model, x, y):
    model.train_on_batch(x, y)


def assert_nothing_left(model, peers, train=plain_fit):
    """Training the model alone moves no peer, and all are usable."""
    x, y = arrays()
    before = [everything(peer) for peer in peers]
    train(model, x, y)
    for peer, values in zip(peers, before, strict=True):
        assert_same(everything(peer), values)
    for one in (model, *peers):
        assert_usable(one, x, y)


@pytest.mark.parametrize(
    ("method", "batch", "grafting_first", "train"),
    [
        ("on_train_batch_begin", 0, True, plain_step),
        ("on_train_batch_begin", 2, True, plain_fit),
        ("on_train_batch_begin", 2, False, plain_fit),
        ("on_train_batch_end", 0, True, plain_fit),
        ("on_train_batch_end", 2, False, plain_fit),
    ],
)
def test_an_interrupt_in_a_callback_leaves_nothing_behind(method, batch, grafting_first, train):
    x, y = arrays()
    model, peer = compiled(1), compiled(2)
    callbacks = [GraftCallback([peer]), CtrlC(method, batch)]
    callbacks = callbacks if grafting_first else callbacks[::-1]
    interrupted(model, callbacks, x, y, batch_size=BATCH)
    assert_nothing_left(model, [peer], train)


@pytest.mark.parametrize("method", ["on_test_begin", "on_test_batch_end"])
def test_an_interrupt_in_the_validation_leaves_nothing_behind(method):
    x, y = arrays()
    model, peers = compiled(1), [compiled(2)]
    interrupt = CtrlC(method)
    if method == "on_test_begin":
        interrupt.on_test_begin = lambda logs=None: interrupt.interrupt(0)
    callbacks = [GraftCallback(peers), interrupt]
    interrupted(model, callbacks, x, y, batch_size=BATCH, validation_data=(x, y))
    assert_nothing_left(model, peers)


@pytest.mark.parametrize("step", [6, 8])
def test_an_interrupt_in_the_data_set_leaves_nothing_behind(step):
    def endless():
        for number in range(12):
            if number == step:
                raise KeyboardInterrupt
            yield batches(x, y)[number % 6]

    x, y = arrays()
    model, peers = compiled(1), [compiled(2)]
    interrupted(model, [GraftCallback(peers)], endless(), steps_per_epoch=6)
    assert_nothing_left(model, peers)


class InterruptedStep(keras.Sequential):
    """Its train step raises once, when it is told to."""

    interrupt = False

    def train_step(self, *arguments):
        if self.interrupt:
            self.interrupt = False
            raise KeyboardInterrupt
        return super().train_step(*arguments)


@pytest.mark.parametrize("victim", [0, 1])
def test_an_interrupt_in_a_train_step_leaves_nothing_behind(victim):
    class Now(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            models[victim].interrupt = batch == 2

    x, y = arrays()
    eager = BACKEND != "torch"  # elsewhere a step is Python only when it runs eagerly
    models = [
        compile_(InterruptedStep(network(k).layers, name=f"net{k}"), run_eagerly=eager)
        for k in (1, 2)
    ]
    interrupted(models[0], [GraftCallback(models[1:]), Now()], x, y, batch_size=BATCH)
    assert_nothing_left(models[0], models[1:])


def test_after_an_interrupt_the_callback_can_be_used_again():
    x, y = arrays()
    model, peer = compiled(1), compiled(2)
    grafting = GraftCallback([peer], epochs_grafted=0, engine="eager")
    interrupted(model, [grafting, CtrlC("on_train_batch_begin", 2)], x, y, batch_size=BATCH)
    model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[grafting])
    fed = batches(x, y) + batches(x, y)[:2] + batches(x, y)
    assert_same(everything(peer), taught(compiled(2), fed))
