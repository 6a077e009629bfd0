import keras
import numpy as np
import pytest
from keras import layers

import kgraft
from kgraft.engines.stepper import Stepper
from kgraft.grafting import Independent

pytestmark = pytest.mark.core

BACKEND = keras.config.backend()


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
def test_steps_are_those_of_fit_bit_for_bit(dropout):
    ours, theirs = twins(dropout=dropout)
    stepper = Stepper(ours)
    stepper.begin_epoch()
    for batch in batches():
        stepper.step(batch)
    stepper.end_epoch()
    x, y = (np.concatenate(parts) for parts in zip(*batches(), strict=True))
    theirs.fit(x, y, batch_size=16, shuffle=False, verbose=0)
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


def two_outputs(**options):
    keras.utils.set_random_seed(3)
    inputs = keras.Input((4,))
    outputs = {name: layers.Dense(1, name=name)(inputs) for name in ("left", "right")}
    model = keras.Model(inputs, outputs)
    model.compile("sgd", {"left": "mse", "right": "mae"}, loss_weights=[0.5, 2.0], **options)
    return model


@pytest.mark.parametrize("count", [32, 39])
@pytest.mark.parametrize("run_eagerly", [False, True])
@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_the_losses_of_several_outputs_are_those_of_fit_and_evaluate(count, run_eagerly, engine):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, 4)).astype(np.float32)
    y = {name: np.linspace(-5, 9, count)[:, None] ** 2 for name in ("left", "right")}
    theirs, peer = two_outputs(run_eagerly=run_eagerly), two_outputs(run_eagerly=run_eagerly)
    model, beside = two_outputs(run_eagerly=run_eagerly), two_outputs(run_eagerly=run_eagerly)
    options = {"batch_size": 16, "epochs": 2, "shuffle": False, "verbose": 0}
    expected = theirs.fit(x, y, validation_data=(x, y), **options).history
    assert len(expected) == 6

    run = kgraft.GraftingFit([peer], mixer=Independent(), engine=engine)
    found = run.fit(x, y, validation_data=(x, y), **options)[0].history
    grafting = kgraft.GraftCallback([beside], mixer=Independent(), engine=engine)
    watched = model.fit(x, y, validation_data=(x, y), callbacks=[grafting], **options).history
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, rel=1e-5)
        assert watched[name] == pytest.approx(values, rel=1e-5)
        if not name.startswith("val_"):
            assert watched[f"peer2_{name}"] == pytest.approx(values, rel=1e-5)
    told = theirs.evaluate(x, y, batch_size=16, verbose=0, return_dict=True)
    assert run.evaluate(x, y, batch_size=16, verbose=0)[0] == pytest.approx(told, rel=1e-5)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="jax makes a program for every shape")
def test_sequences_of_many_lengths_make_two_graphs():
    traced = []

    class Counted(layers.Dense):
        def call(self, inputs):
            if not isinstance(inputs, keras.KerasTensor):
                traced.append(inputs.shape)
            return super().call(inputs)

    model = keras.Sequential([keras.Input((None, 4)), Counted(2)])
    model.compile("sgd", "mse")
    stepper = Stepper(model)
    for count, length in [(3, 5), (3, 6), (2, 7), (4, 2)]:
        x = np.ones((count, length, 4), "float32")
        stepper.step((x, x[..., :2]))
    assert traced[-2:] == [(None, 5, 4), (None, None, 4)]


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


def test_predictions_keep_the_structure_of_the_outputs():
    inputs = keras.Input((8, 8, 1))
    flat = layers.Flatten()(inputs)
    outputs = {"a": layers.Dense(2)(flat), "b": [layers.Dense(3)(flat), layers.Dense(4)(flat)]}
    model = keras.Model(inputs, outputs)
    model.compile("sgd", loss={"a": "mse", "b": ["mse", "mse"]})
    x = np.concatenate([batch[0] for batch in batches()])
    found = Stepper(model).predict([batch[:1] for batch in batches()])  # the last one is smaller
    expected = model.predict(x, verbose=0)
    keras.tree.assert_same_structure(found, expected)
    for own, other in zip(keras.tree.flatten(found), keras.tree.flatten(expected), strict=True):
        np.testing.assert_allclose(own, other, atol=1e-6)


def test_peers_predictions_are_stacked_output_by_output():
    def forked():
        inputs = keras.Input((8, 8, 1))
        maps = layers.Flatten()(layers.Conv2D(2, 3)(inputs))
        model = keras.Model(inputs, {"a": layers.Dense(2)(maps), "b": layers.Dense(3)(maps)})
        model.compile("sgd", "mse")
        return model

    peers = [forked(), forked()]
    x = np.concatenate([batch[0] for batch in batches()])
    found = kgraft.GraftingFit(peers).predict(x, batch_size=16)
    for name in "ab":
        expected = np.stack([peer.predict(x, verbose=0)[name] for peer in peers])
        np.testing.assert_allclose(found[name], expected, atol=1e-6)


def test_a_metric_with_several_values_is_logged_whole():
    model = network()
    f1 = keras.metrics.F1Score(name="f1")
    model.compile("sgd", "categorical_crossentropy", metrics=[f1])
    data = [(x, np.eye(3, dtype="float32")[y]) for x, y in batches()]
    logs = Stepper(model).evaluate(data)
    x, y = (np.concatenate(parts) for parts in zip(*data, strict=True))
    expected = model.evaluate(x, y, verbose=0, return_dict=True)
    assert isinstance(logs["loss"], float)
    np.testing.assert_allclose(logs["f1"], keras.ops.convert_to_numpy(expected["f1"]), rtol=1e-5)
    assert logs["f1"].shape == (3,)


class Logging(keras.Sequential):
    """Returns more from a step than its metrics hold."""

    def train_step(self, *arguments):
        return self._and_more(super().train_step(*arguments), 2.5)

    def test_step(self, *arguments):
        return self._and_more(super().test_step(*arguments), 1.5)

    def _and_more(self, result, value):
        more = {"extra": keras.ops.convert_to_tensor(value)}
        if isinstance(result, tuple):
            return {**result[0], **more}, *result[1:]
        return {**result, **more}


def test_what_a_step_returns_beside_the_metrics_is_logged_as_fit_logs_it():
    x, y = batches()[0]
    logging = Logging([keras.Input((8, 8, 1)), layers.Conv2D(3, 8), layers.Flatten()])
    logging.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    (history,) = kgraft.GraftingFit([logging]).fit(
        x, y, validation_data=(x, y), batch_size=8, epochs=2, verbose=0
    )
    assert history.history["extra"] == [2.5, 2.5]
    assert history.history["val_extra"] == [1.5, 1.5]
    expected = logging.evaluate(x, y, batch_size=8, verbose=0, return_dict=True)
    assert history.history["val_loss"][-1] == pytest.approx(expected["loss"], rel=1e-5)


def test_whoever_watches_an_evaluation_sees_every_batch_and_the_metrics_so_far():
    model = network()
    seen = []
    result = Stepper(model).evaluate(
        batches(),
        before_batch=lambda step: seen.append(step),
        after_batch=lambda step, logs: seen.append((step, float(logs["loss"]))),
    )
    assert seen[::2] == list(range(5)) and [step for step, _ in seen[1::2]] == list(range(5))
    first = model.evaluate(*batches()[0], verbose=0, return_dict=True)
    assert seen[1][1] == pytest.approx(first["loss"], rel=1e-5)
    assert seen[-1][1] == pytest.approx(result["loss"], rel=1e-5)
