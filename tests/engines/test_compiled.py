"""The compiled engine against the eager one: same weights, same batches, same numbers."""

import gc
import os
import signal
import threading

import keras
import numpy as np
import pytest
from keras import layers

import kgraft
from kgraft import data, models
from kgraft.engines.engine import Engine
from kgraft.errors import UserError
from kgraft.training.distiller import distil
from tests.reference.random_models import random_model

pytestmark = pytest.mark.core

TORCH = keras.config.backend() == "torch"
# In one step, relative to the largest weight that moved; float32 steps of a network with batch
# normalisation amplify a rounding a hundredfold.
TOLERANCE = 2e-3


@pytest.fixture
def precise():
    """float64 where the backend has it."""
    if keras.config.backend() == "tensorflow":
        yield 2e-3
        return
    if not TORCH:
        import jax

        jax.config.update("jax_enable_x64", True)
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")  # Keras keeps the policy of the first layer ever made
    yield 2e-5  # Keras' means and losses are float32 whatever floatx says
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")
    if not TORCH:
        jax.config.update("jax_enable_x64", False)


def compiled(model, rate=1e-3, **settings):
    model.compile(
        kgraft.SGD(rate, momentum=0.9, l2=5e-4, nesterov=settings.pop("nesterov", False)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        **settings,
    )
    return model


def batches(shape, classes, count=3, size=6, seed=0):
    rng = np.random.default_rng(seed)
    dtype = keras.config.floatx()
    return [
        (rng.normal(size=(size, *shape)).astype(dtype), rng.integers(0, classes, size))
        for _ in range(count)
    ]


def trained(make, steps, wanted):
    """Per-step losses, the model, and the engine after one epoch of these batches."""
    keras.utils.set_random_seed(5)
    model = make()
    engine = Engine([model], wanted)
    engine.steppers[0].build(steps[0])
    losses = []
    engine.begin_epoch()
    for batch in steps:
        (logs,) = engine.step([batch])
        losses.append(float(logs["loss"]))
    engine.end_epoch()
    return losses, model, engine


def assert_equal_runs(make, steps, tolerance, engine="compiled"):
    keras.utils.set_random_seed(5)
    start = make().get_weights()
    eager_losses, eager, _ = trained(make, steps, "eager")
    losses, model, used = trained(make, steps, "compiled")
    assert used.name == engine, used.reason
    np.testing.assert_allclose(losses, eager_losses, rtol=tolerance)
    moved = max(
        (np.abs(w - s).max() for w, s in zip(eager.get_weights(), start, strict=True) if w.size),
        default=0.0,
    )
    assert moved > 0
    for variable, weight, expected in zip(
        eager.weights, model.get_weights(), eager.get_weights(), strict=True
    ):
        assert np.abs(weight - expected).max() <= tolerance * moved, variable.path
    for own, expected in zip(model.optimizer.variables, eager.optimizer.variables, strict=True):
        own, expected = (keras.ops.convert_to_numpy(v) for v in (own, expected))
        np.testing.assert_allclose(
            own, expected, rtol=tolerance, atol=tolerance * max(1.0, np.abs(expected).max())
        )
    for stepper_model in (model, eager):
        assert "call" not in vars(stepper_model)
    return used


FAMILIES = ["resnet8", "resnet8-leaky", "mobilenet_v2", "vgg16", "wrn-10-1", "resnet18"]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_trains_as_eagerly(name, precise):
    side = 32 if name in ("vgg16", "resnet18") else 8
    dropout = 0.3 if name.startswith("wrn") else 0.0

    def make():
        model = models.build(name, input_shape=(side, side, 3), classes=5, dropout=dropout)
        return compiled(model, 1e-5)

    assert_equal_runs(make, batches((side, side, 3), 5, size=8), precise)


ACTIVATIONS = sorted(
    name
    for name in vars(keras.activations)
    # threshold cannot be called without arguments
    if name not in ("deserialize", "get", "serialize", "threshold") and not name.startswith("_")
)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_over_the_axis_that_keras_takes(name):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(4, 3, activation=getattr(keras.activations, name))(inputs)
    model = keras.Model(inputs, layers.Flatten()(x))
    model.compile("sgd", "mse")
    image = np.random.default_rng(0).normal(size=(2, 6, 6, 3)).astype("float32")
    (found,) = (Engine([model]).steppers[0].predict([(image,)]),)
    np.testing.assert_allclose(found, keras.ops.convert_to_numpy(model(image)), atol=1e-6)


def small(dropout=0.3, normalisation=layers.BatchNormalization):
    x = inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same", use_bias=False)(x)
    x = layers.Activation("relu")(normalisation()(x))
    x = layers.Dropout(dropout)(x)
    x = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu")(x)
    x = layers.GaussianNoise(0.1)(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(5)(x))


@pytest.mark.parametrize("normalisation", [layers.BatchNormalization, models.BatchNormalization])
def test_random_layers_do_not_freeze_and_statistics_move(normalisation, precise):
    steps = batches((8, 8, 3), 5, count=1) * 4  # one batch four times: only the noise differs
    used = assert_equal_runs(lambda: compiled(small(0.5, normalisation), 1e-6), steps, precise)
    assert used.steppers[0].model.count_params()
    losses, _, _ = trained(lambda: compiled(small(0.5, normalisation), 0.0001), steps, "compiled")
    assert len({round(loss, 6) for loss in losses}) == 4


def test_a_rate_that_changes_every_step(precise):
    schedule = kgraft.cosine_per_step(0.05, epochs=1, steps_per_epoch=6)
    schedule = kgraft.warmup(schedule, epochs=1, steps_per_epoch=3)
    used = assert_equal_runs(
        lambda: compiled(small(), schedule), batches((8, 8, 3), 5, count=6), precise
    )
    constant, _, _ = trained(
        lambda: compiled(small(), 0.05), batches((8, 8, 3), 5, count=6), "compiled"
    )
    changing, _, _ = trained(
        lambda: compiled(small(), schedule), batches((8, 8, 3), 5, count=6), "compiled"
    )
    assert used.name == "compiled" and not np.allclose(constant, changing, rtol=1e-4)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: keras.optimizers.SGD(1e-3, momentum=0.9, weight_decay=1e-4),
        lambda: keras.optimizers.Adam(1e-4),
        lambda: kgraft.SGD(1e-3, nesterov=True, clipnorm=0.1, exclude_from_l2=["bias"], l2=0.1),
    ],
)
def test_any_optimizer(optimizer, precise):
    def make():
        model = small(0.0)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer(), loss, metrics=["accuracy"])
        return model

    assert_equal_runs(make, batches((8, 8, 3), 5), max(precise, 1e-3))


def test_weights_of_examples_and_regularisers(precise):
    def make():
        x = inputs = keras.Input((8, 8, 3))
        x = layers.Conv2D(4, 3, kernel_regularizer="l2", activity_regularizer="l2")(x)
        x = layers.Dense(5)(layers.Flatten()(layers.ReLU()(x)))
        return compiled(keras.Model(inputs, x))

    weights = np.linspace(0, 2, 6).astype("float32")
    steps = [(*batch, weights) for batch in batches((8, 8, 3), 5)]
    assert_equal_runs(make, steps, precise)


def test_a_distiller_with_two_teachers(precise):
    def make():
        teachers = [models.resnet8(input_shape=(8, 8, 3), classes=5), small()]
        return distil(compiled(small(0.2), 1e-4), teachers)

    used = assert_equal_runs(make, batches((8, 8, 3), 5), precise)
    for part in used.steppers[0].model.teachers:
        assert "call" not in vars(part)


def test_augmented_batches_of_a_stream(precise):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)
    stream = data.BatchStream(
        images, rng.integers(0, 5, 24), batch_size=8, seed=0, peer=1, augment=data.Augment(2)
    )
    steps = list(stream.epoch(0))
    assert_equal_runs(lambda: compiled(small(), 1e-4), steps, max(precise, 1e-3))


def test_evaluation_and_prediction(precise):
    steps = batches((8, 8, 3), 5)
    results = {}
    for wanted in ("eager", "compiled"):
        _, _, engine = trained(lambda: compiled(small(), 1e-4), steps, wanted)
        (stepper,) = engine.steppers
        results[wanted] = stepper.evaluate(steps), stepper.predict(steps)
    for name, value in results["eager"][0].items():
        np.testing.assert_allclose(results["compiled"][0][name], value, rtol=1e-3)
    np.testing.assert_allclose(results["compiled"][1], results["eager"][1], atol=1e-3)


def test_models_inside_of_models(precise):
    def make():
        stem = keras.Sequential([layers.Conv2D(4, 3), layers.BatchNormalization(), layers.ReLU()])
        x = inputs = keras.Input((8, 8, 3))
        body = keras.Input((6, 6, 4))
        block = keras.Model(body, layers.Add()([body, layers.Conv2D(4, 3, padding="same")(body)]))
        x = block(block(stem(x)))  # shared
        return compiled(keras.Model(inputs, layers.Dense(5)(layers.Flatten()(x))))

    assert_equal_runs(make, batches((8, 8, 3), 5), precise)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(30))
def test_random_models_give_eager_numbers_or_say_why_not(seed, precise):
    def make():
        return compiled(random_model(seed, (8, 8, 3), 5), 1e-5)

    _, _, used = trained(make, batches((8, 8, 3), 5, count=1), "compiled")
    assert used.reason
    assert_equal_runs(make, batches((8, 8, 3), 5), max(precise, 1e-4), engine=used.name)


def test_a_peer_alone_is_the_peer_among_others(precise):
    def make(k):
        keras.utils.set_random_seed(k)
        return compiled(models.resnet8(input_shape=(8, 8, 3), classes=5), 1e-3)

    steps = [batches((8, 8, 3), 5, seed=k) for k in range(3)]
    together = Engine([make(k) for k in range(3)])
    for own, stepper in zip(steps, together.steppers, strict=True):
        stepper.build(own[0])
    together.begin_epoch()
    for number in range(3):
        together.step([own[number] for own in steps])
    together.end_epoch()
    for k, stepper in enumerate(together.steppers):
        alone = Engine([make(k)])
        alone.begin_epoch()
        for batch in steps[k]:
            alone.step([batch])
        pairs = zip(stepper.model.get_weights(), alone.steppers[0].model.get_weights(), strict=True)
        for weight, expected in pairs:
            np.testing.assert_allclose(weight, expected, atol=1e-6)


def test_a_model_that_cannot_be_compiled_is_trained_eagerly_and_the_reason_is_said():
    def make():
        return compiled(small(), run_eagerly=True)

    used = assert_equal_runs(make, batches((8, 8, 3), 5), 1e-6, engine="eager")
    assert "run_eagerly" in used.describe()


def test_an_unknown_engine_is_refused():
    with pytest.raises(UserError, match="Did you mean 'compiled'"):
        Engine([compiled(small())], "compile")


@pytest.fixture
def no_collector():
    """torch and jax listen to the garbage collector: Python drops a Ctrl-C raised in a listener."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("wanted", ["eager", "compiled"])
def test_ctrl_c_at_any_moment_leaves_every_peer_usable(wanted, no_collector):
    steps = batches((8, 8, 3), 5, count=1)[0]
    engine = Engine([compiled(small(0.0), 1e-3) for _ in range(3)], wanted)
    engine.begin_epoch()
    engine.step([steps] * 3)
    engine.step([steps] * 3)
    for moment in (0.003, 0.011, 0.018):
        timer = threading.Timer(moment, os.kill, (os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            timer.start()
            for _ in range(10_000):
                engine.step([steps] * 3)
        for stepper in engine.steppers:
            assert all(np.isfinite(weight).all() for weight in stepper.model.get_weights())
        (logs, *_) = engine.step([steps] * 3)
        assert np.isfinite(float(logs["loss"]))


@pytest.mark.skipif(keras.config.backend() != "jax", reason="programs are jax'")
def test_peers_of_different_rates_share_one_program_and_keep_their_rates():
    def peers():
        made = []
        for k, rate in enumerate((0.1, 0.001, 0.02)):
            keras.utils.set_random_seed(k)
            schedule = kgraft.cosine_per_step(rate, epochs=1, steps_per_epoch=9)
            made.append(compiled(small(0.0), schedule))
        return made

    runs = {}
    for wanted in ("eager", "compiled"):
        engine = Engine(peers(), wanted)
        engine.begin_epoch()
        for batch in batches((8, 8, 3), 5):
            engine.step([batch] * 3)
        runs[wanted] = engine
    assert len(runs["compiled"]._shared["programs"]) == 1
    for own, other in zip(runs["compiled"].steppers, runs["eager"].steppers, strict=True):
        for weight, expected in zip(
            own.model.get_weights(), other.model.get_weights(), strict=True
        ):
            np.testing.assert_allclose(weight, expected, atol=2e-4)


@pytest.mark.skipif(keras.config.backend() != "jax", reason="programs are jax'")
def test_a_donated_step_takes_no_array_that_somebody_else_holds():
    first, second = compiled(small(0.0), 1e-3), compiled(small(0.0), 1e-3)
    for own, other in zip(first.variables, second.variables, strict=True):
        if own.shape == other.shape and own.dtype == other.dtype:
            other._value = own._value  # one array in two models
    held = [variable.value for variable in first.variables]
    engine = Engine([first, second])
    for batch in batches((8, 8, 3), 5):
        engine.step([batch] * 2)
    assert all(np.isfinite(np.asarray(array)).all() for array in held)


def test_distillers_of_one_teacher_take_turns():
    teacher = models.resnet8(input_shape=(8, 8, 3), classes=5)
    before = teacher.get_weights()
    engine = Engine([distil(compiled(small(0.0), 1e-3), [teacher]) for _ in range(3)])
    for batch in batches((8, 8, 3), 5, count=8):
        engine.step([batch] * 3)
    for weight, expected in zip(teacher.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, expected)
