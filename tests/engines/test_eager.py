import keras
import numpy as np
import pytest
from keras import layers

from kgraft.engines.eager import Stepper

pytestmark = pytest.mark.core


def network(dropout=0.0):
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(4, 3),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Dropout(dropout, seed=3),
            layers.Flatten(),
            layers.Dense(3, kernel_regularizer="l2"),
        ]
    )
    model.compile(
        keras.optimizers.SGD(
            keras.optimizers.schedules.PiecewiseConstantDecay([2], [0.1, 0.01]), momentum=0.9
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def twins(**options):
    first, second = network(**options), network(**options)
    second.set_weights(first.get_weights())
    return first, second


def batches(count=5, size=16, last=7):
    rng = np.random.default_rng(0)
    sizes = [size] * (count - 1) + [last]
    return [
        (rng.normal(size=(n, 8, 8, 1)).astype(np.float32), rng.integers(0, 3, n)) for n in sizes
    ]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_steps_are_those_of_train_on_batch_bit_for_bit(dropout):
    ours, theirs = twins(dropout=dropout)
    stepper = Stepper(ours)
    stepper.begin_epoch()
    for batch in batches():
        stepper.step(batch)
        theirs.train_on_batch(*batch)
    stepper.end_epoch()
    for a, b in zip(ours.variables, theirs.variables, strict=True):
        if "seed" not in a.path:
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=a.path)
    assert int(ours.optimizer.iterations) == 5


def test_sample_weights_reach_the_loss():
    ours, theirs = twins()
    x, y = batches()[0]
    weights = np.linspace(0, 1, len(x)).astype(np.float32)
    Stepper(ours).step((x, y, weights))
    theirs.train_on_batch(x, y, sample_weight=weights)
    np.testing.assert_array_equal(ours.get_weights()[0], theirs.get_weights()[0])


def test_metrics_are_those_of_the_whole_epoch():
    model = network()
    stepper = Stepper(model)
    for _ in range(2):
        stepper.begin_epoch()
        for batch in batches():
            stepper.step(batch)
        stepper.end_epoch()
    x, y = (np.concatenate(parts) for parts in zip(*batches(), strict=True))
    logs = stepper.evaluate(batches())
    expected = model.evaluate(x, y, verbose=0, return_dict=True, batch_size=len(x))
    assert logs == pytest.approx(expected, rel=1e-5)


def test_predictions_are_those_of_keras():
    model = network(dropout=0.5)
    x = np.concatenate([batch[0] for batch in batches()])
    np.testing.assert_allclose(
        Stepper(model).predict([batch[:1] for batch in batches()]),
        model.predict(x, verbose=0),
        atol=1e-6,
    )


def test_variables_are_valid_after_an_interrupt_in_a_step(monkeypatch):
    model = network()
    stepper = Stepper(model)
    stepper.begin_epoch()
    stepper.step(batches()[0])
    before = model.get_weights()

    def interrupted(*_):
        raise KeyboardInterrupt

    target = {"torch": "train_step", "jax": "_train", "tensorflow": "train_function"}
    name = target[keras.config.backend()]
    owner = stepper._steps if name == "_train" else model
    monkeypatch.setattr(owner, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        stepper.step(batches()[1])
    for weight, value in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, value)
    assert np.isfinite(model.predict(batches()[0][0], verbose=0)).all()


def test_a_model_that_is_not_compiled_is_refused():
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1)], name="plain")
    with pytest.raises(ValueError, match="'plain' is not compiled"):
        Stepper(model)
