"""Steps on torch follow what somebody changes, whatever a network or a trace took for granted."""

import keras
import numpy as np
import pytest
from keras import layers

import kgraft
from kgraft.engines.engine import Engine
from kgraft.training.distiller import distil
from kgraft.training.feeds import feed_of
from kgraft.training.teaching import Teaching

if keras.config.backend() != "torch":
    pytest.skip("native networks and traces are torch's", allow_module_level=True)

from kgraft.engines.torch import traced_steps
from kgraft.engines.torch.traced_steps import TracedSteps


@pytest.fixture(autouse=True)
def traced_at_once(monkeypatch):
    monkeypatch.setattr(traced_steps, "_SHORT", 60.0)
    monkeypatch.setattr(traced_steps, "_AFTER", 1)


def _changing(**options):
    """A model with a layer, loss or optimizer for every setting that the next test changes."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, activation="relu", kernel_regularizer="l2", name="conv")(x)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.LeakyReLU(0.1, name="leaky")(x)
    x = layers.Conv2D(4, 3, kernel_constraint="max_norm", name="narrow")(x)
    x = layers.Activation("relu", name="act")(x)
    x = layers.ReLU(name="rectifier")(x)
    x = layers.SpatialDropout2D(options.get("dropout", 0.0), name="drop")(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(5, name="head")(x))
    model.compile(
        options.get("optimizer") or kgraft.SGD(0.1, momentum=0.9, l2=5e-4),
        keras.losses.CategoricalCrossentropy(from_logits=True),
        metrics=[keras.metrics.TopKCategoricalAccuracy(1, name="top")],
    )
    return model


def _set(owner, name, value):
    return lambda model: setattr(owner(model), name, value)


def _layer(name):
    return lambda model: model.get_layer(name)


def _sigmoid(x):
    return keras.ops.sigmoid(x)


LAYERS_CHANGE = {
    "momentum of batch normalisation": _set(_layer("norm"), "momentum", 0.5),
    "epsilon": _set(_layer("norm"), "epsilon", 0.5),
    "negative slope": _set(_layer("leaky"), "negative_slope", 0.7),
    "slope below 0": _set(_layer("leaky"), "negative_slope", -0.7),
    "activation of a convolution": _set(_layer("conv"), "activation", keras.activations.tanh),
    "softmax of a convolution": _set(_layer("narrow"), "activation", keras.activations.softmax),
    "own activation": _set(_layer("conv"), "activation", _sigmoid),
    "activation of an activation": _set(_layer("act"), "activation", keras.activations.sigmoid),
    "activation of a dense layer": _set(_layer("head"), "activation", keras.activations.tanh),
    "largest value": _set(_layer("rectifier"), "max_value", 0.1),
    "threshold": _set(_layer("rectifier"), "threshold", 0.2),
    "whether a layer trains": _set(_layer("narrow"), "trainable", False),
    "regularizer": _set(lambda m: m.get_layer("conv").kernel.regularizer, "l2", 0.5),
    "another regularizer": _set(
        lambda m: m.get_layer("head").kernel, "regularizer", keras.regularizers.L2(0.5)
    ),
    "constraint": _set(lambda m: m.get_layer("narrow").kernel.constraint, "max_value", 0.1),
    "label smoothing": lambda m: m.loss._fn_kwargs.update(label_smoothing=0.5),
    "setting of a metric": lambda m: m.metrics[1].metrics[0]._fn_kwargs.__setitem__("k", 3),
}
OPTIMIZERS_CHANGE = {
    "momentum": _set(lambda m: m.optimizer, "momentum", 0.3),
    "l2": _set(lambda m: m.optimizer, "l2", 0.5),
    "nesterov": _set(lambda m: m.optimizer, "nesterov", True),
    "clipnorm": _set(lambda m: m.optimizer, "clipnorm", 0.01),
    "rate": _set(lambda m: m.optimizer, "learning_rate", 0.01),
    "schedule": _set(
        lambda m: m.optimizer,
        "_learning_rate",
        keras.optimizers.schedules.ExponentialDecay(0.5, 2, 0.1),
    ),
    "loss in mid-epoch": lambda m: m.loss._fn_kwargs.update(label_smoothing=0.5),
}


def _followed(change, wanted, place, **options):
    """Weights, metrics and steps of three epochs with a change in them."""
    x = np.random.default_rng(0).normal(size=(6, 8, 8, 3)).astype("float32")
    y = np.eye(5, dtype="float32")[np.arange(6) % 5]
    model = _changing(**options)
    engine = Engine([model], wanted)
    (stepper,) = engine.steppers
    stepper.build((x, y))
    seen = []
    for epoch in range(3):
        engine.begin_epoch()
        for step in range(3):
            if (epoch, step) == place:
                change(model)
            engine.step([(x, y)])
        seen += stepper.logs().values()
        engine.end_epoch()
        if (epoch, None) == place:
            change(model)
        seen += stepper.evaluate([(x, y)]).values()
    state = [*model.variables, *model.optimizer.variables]
    return [*(keras.ops.convert_to_numpy(v).astype(float) for v in state), seen], stepper


def _distance(own, other):
    return max(float(np.max(np.abs(np.subtract(a, b)))) for a, b in zip(own, other, strict=True))


@pytest.mark.parametrize("name", [*LAYERS_CHANGE, *OPTIMIZERS_CHANGE])
def test_what_somebody_changes_while_a_trace_is_played_counts_as_in_keras(name):
    change = {**LAYERS_CHANGE, **OPTIMIZERS_CHANGE}[name]
    place = (1, None) if name in LAYERS_CHANGE else (1, 1)
    expected, _ = _followed(change, "eager", place)
    unchanged, _ = _followed(change, "eager", None)
    found, stepper = _followed(change, "compiled", place)
    assert isinstance(stepper.steps(), TracedSteps)
    assert _distance(found, expected) < 2e-4 < 2e-3 < _distance(unchanged, expected)


def test_a_rate_of_dropout_that_somebody_changes_counts_as_in_keras():
    change = _set(_layer("drop"), "rate", 0.9)
    expected, _ = _followed(change, "eager", (0, None), dropout=0.1)
    unchanged, _ = _followed(change, "eager", None, dropout=0.1)
    found, _ = _followed(change, "compiled", (0, None), dropout=0.1)
    assert _distance(found, expected) < 2e-4 < 2e-3 < _distance(unchanged, expected)


@pytest.mark.parametrize(
    ("name", "value"), [("weight_decay", 0.5), ("beta_1", 0.1), ("epsilon", 1.0)]
)
def test_a_setting_of_adam_that_changes_in_mid_epoch_counts_as_in_keras(name, value):
    def run(wanted, place=(1, 1)):
        own = keras.optimizers.Adam(0.01, weight_decay=0.1)
        return _followed(_set(lambda m: m.optimizer, name, value), wanted, place, optimizer=own)[0]

    expected = run("eager")
    assert (
        _distance(run("compiled"), expected) < 2e-3 < 2e-2 < _distance(run("eager", None), expected)
    )


def test_a_change_that_is_taken_back_before_the_next_epoch_leaves_no_trace_of_it():
    """Traced in between, the trace would hold the change for ever."""
    x = np.random.default_rng(0).normal(size=(6, 8, 8, 3)).astype("float32")
    y = np.eye(5, dtype="float32")[np.arange(6) % 5]

    def weights(wanted):
        model = _changing()
        engine = Engine([model], wanted)
        for _ in range(2):
            engine.begin_epoch()
            engine.step([(x, y)])
            model.get_layer("leaky").negative_slope = 0.9
            engine.step([(x, y)])
            model.get_layer("leaky").negative_slope = 0.1
            engine.end_epoch()
        engine.begin_epoch()
        engine.step([(x, y)])
        return model.get_weights()

    for own, other in zip(weights("compiled"), weights("eager"), strict=True):
        np.testing.assert_allclose(own, other, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        _set(lambda m: m, "weight", 9.0),
        _set(lambda m: m, "temperature", 9.0),
        _set(lambda m: m._distillation, "temperature", 9.0),
    ],
    ids=["weight", "temperature of the teachers", "temperature of the loss"],
)
def test_a_setting_of_a_distiller_that_changes_in_mid_epoch_counts_as_in_keras(change):
    x = np.random.default_rng(0).normal(size=(6, 8, 8, 3)).astype("float32")
    y = np.eye(5, dtype="float32")[np.arange(6) % 5]

    def weights(wanted, change):
        teacher, student = _changing(), _changing()
        teacher.set_weights([3 * weight for weight in teacher.get_weights()])
        distiller = distil(student, [teacher])
        engine = Engine([distiller], wanted)
        engine.begin_epoch()
        for step in range(5):
            if step == 3:
                change(distiller)
            engine.step([(x, y)])
        return student.get_weights()

    expected, unchanged = weights("eager", change), weights("eager", lambda model: None)
    found = weights("compiled", change)
    assert _distance(found, expected) < 1e-4 < 1e-3 < _distance(unchanged, expected)


def test_what_changes_on_a_teacher_between_fits_counts():
    teacher = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(6), keras.layers.LeakyReLU(0.1),
         keras.layers.BatchNormalization(), keras.layers.Dense(3)]
    )  # fmt: skip
    x, y = np.random.default_rng(0).normal(size=(8, 4)).astype("float32"), np.arange(8) % 3
    teaching, feed = Teaching([teacher], 2.0), feed_of(x, y, batch_size=2)  # played soon

    def said():
        taught = teaching.feed(feed)  # at the beginning of every fit
        return keras.ops.convert_to_numpy(taught.arrays[1].probabilities)

    first = said()
    for layer in teacher.layers:
        if isinstance(layer, keras.layers.LeakyReLU):
            layer.negative_slope = 0.9
    second = said()
    assert np.abs(second - first).max() > 1e-3
    logits = keras.ops.convert_to_numpy(teacher(x, training=False)) / 2.0
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    np.testing.assert_allclose(second, shares / shares.sum(axis=-1, keepdims=True), rtol=1e-4)


def _activation(model):
    model.get_layer("act").activation = keras.activations.tanh


def _weights(model):
    model.set_weights([own * 0.5 for own in model.get_weights()])


def _one_weight(model):
    model.get_layer("head").bias.assign(np.linspace(-2, 2, 5, dtype="float32"))


def _metric(model):
    model.compile(
        model.optimizer,
        keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.2),
        metrics=[keras.metrics.TopKCategoricalAccuracy(2)],
    )


@pytest.mark.parametrize(
    "change", [_activation, _weights, _one_weight, _metric], ids=lambda own: own.__name__
)
def test_what_changes_between_validations_counts_as_in_keras(change):
    random = np.random.default_rng(0)
    steps = [
        (
            random.normal(size=(4, 8, 8, 3)).astype("float32"),
            np.eye(5, dtype="float32")[[0, 1, 2, k]],
        )
        for k in (0, 3, 4, 1)
    ]
    found = []
    for name in ("auto", "eager"):
        model = _changing()
        stepper = Engine([model], name).steppers[0]
        stepper.build(steps[0])
        for changed in (False, True, False):
            if changed:
                change(model)
            found.append((stepper.evaluate(steps), stepper.predict(steps)))
        if name == "auto":
            assert len(stepper.steps()._plays) == 2 and all(stepper.steps()._plays.values())
    for (ours, outputs), (theirs, expected) in zip(found[:3], found[3:], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
        np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)
    assert found[0][0] != found[1][0]
