"""A line a peer before anything is trained."""

import logging

import keras
import numpy as np
import pytest

import kgraft
from kgraft.training.callback import GraftCallback
from kgraft.training.preflight import described, learning_rates, preflight
from tests.training.callback_cases import BATCH, arrays, compiled, network


def numbers(model):
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables)


def of(*models):
    return described(models)


@pytest.mark.core
def test_a_line_names_optimizer_learning_rate_loss_and_weights():
    model = compiled(1)
    (line,) = of(model)
    assert line == (
        "peer 1: optimizer SGD(momentum=0.9), learning rate 0.05, "
        "loss SparseCategoricalCrossentropy(from_logits=True), "
        f"6 weights ({numbers(model)} parameters) train, 0 are frozen"
    )


@pytest.mark.core
def test_whatever_differs_from_the_first_model_is_in_capitals():
    first, same, other = compiled(1), compiled(2), network(3)
    other.layers[0].trainable = False
    other.compile(kgraft.SGD(0.1, l2=5e-4), "mse")
    lines = of(first, same, other)
    assert lines[1] == lines[0].replace("peer 1", "peer 2")
    for part in (
        "OPTIMIZER SGD(l2=0.0005) (peer 1: SGD(momentum=0.9))",
        "LEARNING RATE 0.1 (peer 1: 0.05)",
        "LOSS mse (peer 1: SparseCategoricalCrossentropy(from_logits=True))",
        f"4 weights ({numbers(other)} parameters) TRAIN (peer 1: 6 weights",
        "2 weights (30 parameters) ARE FROZEN (peer 1: 0)",
    ):
        assert part in lines[2]


@pytest.mark.core
def test_a_schedule_is_named_with_its_value_now():
    schedule = kgraft.cosine(0.1, epochs=2, steps_per_epoch=1)
    model = network(1)
    model.compile(keras.optimizers.Adam(schedule), "mse")
    assert "learning rate EpochCosineDecay, now 0.1," in of(model)[0]
    model.optimizer.iterations.assign(1)
    assert "learning rate EpochCosineDecay, now 0.05," in of(model)[0]


@pytest.mark.core
def test_optimizers_inside_of_others_are_named():
    scaled, bare = network(1), network(2)
    scaled.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.02)), "mse")
    bare.compile(optimizer=None, loss=None)
    lines = of(scaled, bare)
    assert "optimizer LossScaleOptimizer of Adam, learning rate 0.02," in lines[0]
    assert "OPTIMIZER none (" in lines[1]
    assert "LEARNING RATE none (" in lines[1]
    assert "LOSS the model's own (peer 1: mse)" in lines[1]
    if "MultiOptimizer" in vars(keras.optimizers):
        several = keras.optimizers.OptimizerMap(
            keras.optimizers.SGD(0.5), {".*kernel": keras.optimizers.Adam(0.25)}
        )
        scaled.compile(keras.optimizers.MultiOptimizer(several), "mse")
        (line,) = of(scaled)
        assert "optimizer MultiOptimizer of Adam and SGD, learning rate 0.25 and 0.5," in line


@pytest.mark.core
def test_losses_of_any_kind_are_named():
    def own(y_true, y_pred):
        return y_pred

    for loss, name in [
        ({"a": "mse", "b": [own, None]}, "{a: mse, b: [own, the model's own]}"),
        (lambda y_true, y_pred: y_pred, "<lambda>"),
        (keras.losses.Huber(delta=2.0), "Huber(delta=2.0)"),
    ]:
        model = network(1)
        model.compile("sgd", loss)
        assert f"loss {name}, " in of(model)[0]


class Late(keras.Model):
    def call(self, x):
        return x


@pytest.mark.core
def test_models_that_are_not_built_or_not_compiled_are_said_to_be_so():
    late = Late()
    late.compile("sgd", "mse")
    assert "an unknown number of weights, it is not built, train" in of(late)[0]
    assert "optimizer none, it is not compiled, learning rate none, loss none" in of(network(1))[0]
    assert of() == []


@pytest.mark.core
def test_all_learning_rates_come_in_one_transfer(monkeypatch):
    transfers = []
    real = keras.ops.convert_to_numpy

    def counted(value):
        transfers.append(value)
        return real(value)

    models = [compiled(k, learning_rate=0.01 * k) for k in (1, 2, 3)]
    monkeypatch.setattr(keras.ops, "convert_to_numpy", counted)
    assert learning_rates(models) == [[pytest.approx(0.01 * k)] for k in (1, 2, 3)]
    assert len(transfers) == 1
    preflight(models)  # nobody reads the log
    assert len(transfers) == 1


def idle_lines(caplog):
    return [(own.levelname, own.getMessage()) for own in caplog.records if "never" in own.msg]


@pytest.mark.parametrize(
    ("mixer", "epochs", "said"),
    [
        (kgraft.grafting.Average(every=5), 2, "Average(every=5, evaluate='after')"),
        (kgraft.Graft(evaluate="before"), 1, "Graft(every=1, evaluate='before')"),
        (kgraft.Graft(epochs=0), 2, "Graft(every=1, epochs=0, evaluate='after')"),
        (kgraft.grafting.Wash(every_steps=10), 2, "Wash(every_steps=10)"),
        (kgraft.grafting.Wash(every_steps=4), 2, None),
        (kgraft.Graft(every=2), 2, None),
        (kgraft.Graft(every=2), 0, None),
        (kgraft.grafting.Independent(), 2, None),
    ],
)
def test_a_mixer_that_never_acts_in_a_training_is_said_to_in_one_line(caplog, mixer, epochs, said):
    run = kgraft.GraftingFit([compiled(1), compiled(2)], mixer=mixer)
    with caplog.at_level(logging.INFO, logger="kgraft"):
        run.fit(*arrays(), batch_size=len(arrays()[0]) // 2, epochs=epochs, verbose=0)
    plural, level = ("", "INFO") if epochs == 1 else ("s", "WARNING")
    line = (
        f"{said} never acts in this training of {epochs} epoch{plural}: the peers are trained and "
        "not mixed."
    )
    assert idle_lines(caplog) == ([(level, line)] if said else [])


def test_epochs_of_earlier_fits_count_and_a_callback_says_it_too(caplog):
    run = kgraft.GraftingFit([compiled(1), compiled(2)], every=3)
    run.fit(*arrays(), epochs=1, verbose=0)
    run.fit(*arrays(), epochs=2, verbose=0)
    assert not idle_lines(caplog) and len(run.records) == 1
    callback = GraftCallback([compiled(2)], every=10)
    compiled(1).fit(*arrays(), epochs=5, verbose=0, callbacks=[callback])
    assert [level for level, _ in idle_lines(caplog)] == ["WARNING"]


def test_a_callback_logs_the_lines_once_a_fit_before_the_first_step(caplog):
    x, y = arrays()

    class Seen(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            seen.append(len(caplog.records))

    seen = []
    model, peer = compiled(1), compiled(2, learning_rate=0.1)
    with caplog.at_level(logging.INFO, "kgraft"):
        model.fit(
            x, y, batch_size=BATCH, epochs=2, verbose=0, callbacks=[GraftCallback([peer]), Seen()]
        )
    lines = [r.message for r in caplog.records if r.message.startswith("peer ")]
    assert lines == of(model, peer)
    assert "LEARNING RATE 0.1 (peer 1: 0.05)" in lines[1]
    assert set(seen) == {len(caplog.records)}
