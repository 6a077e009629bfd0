"""A model that is compiled anew between two fits trains on as it was compiled last."""

import keras
import numpy as np
import pytest
from keras import layers

import kgraft
from kgraft.grafting import Independent

pytestmark = pytest.mark.core

ENGINES = ["eager", "compiled"]


def network(seed=0):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [keras.Input((6, 6, 1)), layers.Conv2D(3, 3), layers.Flatten(), layers.Dense(4)]
    )


def cross_entropy(**options):
    return keras.losses.CategoricalCrossentropy(from_logits=True, **options)


def first(model):
    model.compile(kgraft.SGD(0.1), cross_entropy(), metrics=["accuracy"])


def second(model):
    model.compile(keras.optimizers.Adam(0.01), cross_entropy(label_smoothing=0.3), metrics=["mse"])


def data():
    random = np.random.default_rng(0)
    x = random.normal(size=(24, 6, 6, 1)).astype("float32")
    return x, np.eye(4, dtype="float32")[random.integers(0, 4, 24)]


def options(method):
    teacher = network(9)
    return {"plain": {}, "taught": {"teachers": [teacher]}, "mutual": {"mutual": kgraft.Mutual()}}[
        method
    ]


def fit(run):
    return run.fit(*data(), batch_size=8, shuffle=False, verbose=0, validation_data=data())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", ["plain", "taught", "mutual"])
def test_a_second_fit_is_that_of_a_new_run(method, engine):
    going_on, anew = ([network(1), network(2)] for _ in range(2))
    for peer in [*going_on, *anew]:
        first(peer)
    run = kgraft.GraftingFit(going_on, mixer=Independent(), engine=engine, **options(method))
    fit(run)
    for peer, other in zip(going_on, anew, strict=True):
        other.set_weights(peer.get_weights())
        second(peer)
        second(other)
    histories = fit(run)
    expected = fit(kgraft.GraftingFit(anew, mixer=Independent(), engine=engine, **options(method)))
    for found, wanted in zip(histories, expected, strict=True):
        assert found.history.keys() == wanted.history.keys()
        assert {"mse", "val_mse"} <= found.history.keys() and "accuracy" not in found.history
        for name, values in wanted.history.items():
            assert found.history[name] == pytest.approx(values, rel=1e-5), name
    for peer, other in zip(going_on, anew, strict=True):
        assert int(keras.ops.convert_to_numpy(peer.optimizer.iterations)) == 3
        for a, b in zip(peer.get_weights(), other.get_weights(), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_second_plain_fit_is_keras_own(engine):
    peer, other = network(), network()
    first(peer)
    run = kgraft.GraftingFit([peer], engine=engine)
    fit(run)
    other.set_weights(peer.get_weights())
    for model in (peer, other):
        second(model)
    fit(run)
    other.fit(*data(), batch_size=8, shuffle=False, verbose=0)
    for a, b in zip(peer.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_an_optimizer_that_goes_on_under_another_loss_keeps_its_state():
    peer, other = network(), network()
    for model in (peer, other):
        first(model)
    run = kgraft.GraftingFit([peer])
    fit(run)
    other.fit(*data(), batch_size=8, shuffle=False, verbose=0)
    for model in (peer, other):
        model.compile(model.optimizer, cross_entropy(label_smoothing=0.3))
    fit(run)
    other.fit(*data(), batch_size=8, shuffle=False, verbose=0)
    for a, b in zip(peer.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.skipif(keras.config.backend() == "tensorflow", reason="nor does Keras' fit hear it")
@pytest.mark.parametrize(
    ("engine", "scaled"), [("eager", False), ("compiled", False), ("compiled", True)]
)
def test_a_schedule_that_takes_another_ones_place_is_heard(engine, scaled):
    model = network()
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay
    optimizer = kgraft.SGD(schedule([5], [0.1, 0.01]))
    scaling = keras.optimizers.LossScaleOptimizer
    model.compile(scaling(optimizer) if scaled else optimizer, cross_entropy())
    run = kgraft.GraftingFit([model], engine=engine)
    fit(run)
    before = model.get_weights()[0]
    model.optimizer.learning_rate = schedule([5], [0.0, 0.0])
    fit(run)
    np.testing.assert_array_equal(model.get_weights()[0], before)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_compile_says_of_speed_is_honoured_or_named(engine):
    model = network()
    backend = keras.config.backend()
    model.compile("sgd", cross_entropy(), jit_compile=backend == "torch", steps_per_execution=3)
    run = kgraft.GraftingFit([model], engine=engine)
    fit(run)
    said = run._learning.engine().describe()
    assert "steps_per_execution of" in said and "every step is a call of its own" in said
    if backend == "torch":
        assert "jit_compile=True of" in said
    elif backend == "jax" and engine == "compiled":
        assert "compiled with jit_compile=False" in said and said.startswith("eager")
    assert int(keras.ops.convert_to_numpy(model.optimizer.iterations)) == 3
