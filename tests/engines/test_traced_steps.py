"""Traced steps on torch: what is traced, that a trace is the step to the last bit, what ends it."""

import keras
import numpy as np
import pytest
from keras import layers

import kgraft
from kgraft import models
from kgraft.engines.engine import Engine
from kgraft.grafting import Independent
from kgraft.training.distiller import distil
from kgraft.training.mutual import Mutual
from tests.engines.test_compiled import FAMILIES, batches
from tests.reference.random_models import random_model

if keras.config.backend() != "torch":
    pytest.skip("traces are torch's", allow_module_level=True)


from kgraft.engines.torch import traced_steps
from kgraft.engines.torch.traced_steps import TracedSteps, why_not

NEVER = 10**9


@pytest.fixture
def after(monkeypatch):
    """Sets after how many steps a trace is made."""

    def set_to(steps):
        monkeypatch.setattr(traced_steps, "_AFTER", steps)

    monkeypatch.setattr(traced_steps, "_SHORT", 60.0)
    set_to(1)
    return set_to


def network(name="resnet8", seed=0, **options):
    keras.utils.set_random_seed(seed)
    side = 32 if name in ("vgg16", "resnet18") else 8
    return compiled(models.build(name, input_shape=(side, side, 3), classes=5), **options)


def compiled(model, rate=None, loss=None, **options):
    if rate is None:
        rate = kgraft.cosine_per_step(0.01, epochs=1, steps_per_epoch=9)
    model.compile(
        kgraft.SGD(rate, momentum=0.9, l2=5e-4, **options),
        loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def state(model):
    variables = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
    return [keras.ops.convert_to_numpy(variable.value).copy() for variable in variables]


def steps_of(model, steps):
    """The model's steps after a few of them, and what they answered."""
    engine = Engine([model])
    engine.steppers[0].build(steps[0])
    engine.begin_epoch()
    logs = [{name: float(value) for name, value in engine.step([b])[0].items()} for b in steps]
    return engine.steppers[0].steps(), logs


def assert_same_bits(make, steps, after):
    after(NEVER)
    plain = make()
    chosen, expected = steps_of(plain, steps)
    assert isinstance(chosen, TracedSteps) and not chosen._plays
    after(1)
    model = make()
    chosen, logs = steps_of(model, steps)
    assert chosen._plays and all(play is not None for play in chosen._plays.values())
    assert logs == expected
    for own, other in zip(state(model), state(plain), strict=True):
        assert np.array_equal(own, other)
    return chosen


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_trace_of_every_family_is_the_step_to_the_last_bit(name, after):
    side = 32 if name in ("vgg16", "resnet18") else 8
    assert_same_bits(lambda: network(name), batches((side, side, 3), 5, count=4), after)


def test_a_trace_of_a_distiller_is_the_step_to_the_last_bit(after):
    def make():
        teacher, student = network(), network()
        keras.utils.set_random_seed(1)
        return distil(student, [teacher])

    assert_same_bits(make, batches((8, 8, 3), 5, count=4), after)


def test_traces_of_random_models_are_their_steps_to_the_last_bit(after):
    traced = 0
    for seed in range(30):

        def make(seed=seed):
            keras.utils.set_random_seed(seed)
            return compiled(random_model(seed, (8, 8, 3), 5), rate=0.001)

        if why_not(make()) is None:  # the others have layers that draw random numbers
            assert_same_bits(make, batches((8, 8, 3), 5, count=3), after)
            traced += 1
    assert traced >= 8


@pytest.mark.parametrize("mutual", [None, Mutual(weight=0.5)])
def test_whole_fits_are_the_same_with_and_without_traces(mutual, after):
    random = np.random.default_rng(0)
    x, y = random.normal(size=(44, 8, 8, 3)).astype("float32"), random.integers(0, 5, 44)

    def fitted():
        peers = [network(), network()]
        peers[1].set_weights([w * 0.9 for w in peers[1].get_weights()])
        run = kgraft.GraftingFit(peers, mixer=Independent() if mutual else None, mutual=mutual)
        histories = run.fit(  # the last batch of an epoch is a smaller one
            x, y, batch_size=8, epochs=3, verbose=0, validation_data=(x, y)
        )
        return [history.history for history in histories], peers[0].get_weights()

    after(NEVER)
    expected, weights = fitted()
    after(1)
    found, own = fitted()
    assert found == expected
    assert all(np.array_equal(a, b) for a, b in zip(own, weights, strict=True))


class _Halved(layers.Layer):
    def call(self, x):
        return x / 2


class _Hurried(keras.optimizers.schedules.LearningRateSchedule):
    def __call__(self, step):
        return 0.1


def _squared(y, z):
    return keras.ops.mean(z**2, axis=-1)


def _squares(w):
    return keras.ops.sum(w**2)


def _of(*own, **options):
    model = keras.Sequential([keras.Input((8, 8, 3)), *own, layers.Flatten(), layers.Dense(5)])
    return compiled(model, **options)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: _of(layers.Dropout(0.5)), "draws random numbers"),
        (lambda: _of(_Halved()), "is not Keras'"),
        (lambda: _of(layers.Lambda(lambda x: x / 2)), "is not Keras'"),
        (lambda: _of(layers.Conv2D(2, 3, activation=lambda x: x)), "is not Keras'"),
        (lambda: _of(layers.Conv2D(2, 3, kernel_regularizer=_squares)), "is not Keras'"),
        (lambda: _of(loss=_squared), "is not Keras'"),
        (lambda: _of(rate=lambda: 0.1), "is not Keras'"),
        (lambda: _of(rate=_Hurried()), "is not Keras'"),
    ],
)
def test_what_may_keep_state_in_python_is_not_traced(make, reason, after):
    model = make()
    steps, _ = steps_of(model, batches((8, 8, 3), 5, count=3))
    assert not isinstance(steps, TracedSteps)
    assert reason in why_not(model)


def test_a_step_that_no_list_of_operations_can_hold_is_taken_whole_and_once(after, caplog):
    """Whether gradients are applied or gathered is a question that Keras asks the optimizer."""

    def make():
        return network(gradient_accumulation_steps=2)

    steps = batches((8, 8, 3), 5, count=5)
    after(NEVER)
    plain = make()
    _, expected = steps_of(plain, steps)
    after(1)
    model = make()
    with caplog.at_level("INFO", "kgraft"):
        chosen, logs = steps_of(model, steps)
    assert list(chosen._plays.values()) == [None]
    assert "not traced: what the step does depends on the value of a tensor" in caplog.text
    assert logs == expected
    assert all(np.array_equal(a, b) for a, b in zip(state(model), state(plain), strict=True))


def test_what_changes_between_epochs_is_traced_anew(after):
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype("float32")
    y = np.arange(4) % 5

    def weights(steps):
        after(steps)
        teacher, student = network(), network(rate=0.01)
        distiller = distil(student, [teacher])
        engine = Engine([distiller])
        for epoch in range(3):
            engine.steppers[0].build((x, y))
            engine.begin_epoch()
            for _ in range(3):
                engine.step([(x, y)])
            engine.end_epoch()
            distiller.temperature = 1.0 + epoch
            student.layers[1].trainable = epoch == 1
            distiller.optimizer.learning_rate = 0.01 * (epoch + 2)
        return student.get_weights()

    for own, other in zip(weights(1), weights(NEVER), strict=True):
        assert np.array_equal(own, other)


OPTIMIZERS = {
    name: getattr(keras.optimizers, name)
    for name in (
        *("Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "Ftrl", "Lamb", "Lion"),
        *("Muon", "Nadam", "RMSprop", "SGD"),
    )
}
ASKING = ("Adadelta", "Nadam", "SGD")


@pytest.mark.parametrize("options", [{"weight_decay": 0.1}, {"use_ema": True, "clipnorm": 0.1}])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_step_that_is_traced_is_taken_once_and_so_is_every_other(name, options, after):
    """SGD and Adadelta ask for the rate, Nadam reads a variable as NumPy."""

    def make():
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((4,)), layers.Dense(1), layers.Dense(2)])
        model.compile(OPTIMIZERS[name](1e-2, **options), "mse", metrics=["mae"])
        return model

    random = np.random.default_rng(0)
    x, y = (random.normal(size=(4, 8, n)).astype("float32") for n in (4, 2))
    steps = list(zip(x, y, strict=True))
    after(NEVER)
    plain = make()
    _, expected = steps_of(plain, steps)
    after(1)
    model = make()
    chosen, logs = steps_of(model, steps)
    assert logs == expected
    for own, other in zip(state(model), state(plain), strict=True):
        assert np.array_equal(own, other)
    played = all(play is not None for play in chosen._plays.values())
    assert played == (name not in ASKING), name


@pytest.mark.parametrize("kind", ["other", "not a number"])
def test_a_trace_that_is_another_step_is_never_played(kind, after, monkeypatch, caplog):
    class Wrong(traced_steps.Trace):
        def __call__(self, tensors):
            logs = super().__call__(tensors)
            if kind == "other":
                model.layers[1].kernel.assign(model.layers[1].kernel * 1.000001)
            else:
                model.layers[1].kernel.assign(model.layers[1].kernel * np.nan)
            return logs

    steps = batches((8, 8, 3), 5, count=4)
    after(NEVER)
    plain = network()
    steps_of(plain, steps)
    after(1)
    monkeypatch.setattr(traced_steps, "Trace", Wrong)
    model = network()
    with caplog.at_level("INFO", "kgraft"):
        chosen, _ = steps_of(model, steps)
    assert list(chosen._plays.values()) == [None]
    assert caplog.text.count("is not traced: a played step is off by") == 1
    assert all(np.array_equal(a, b) for a, b in zip(state(model), state(plain), strict=True))


def test_traces_of_a_fit_last_for_all_its_epochs(after, monkeypatch):
    made = []

    class Counted(traced_steps.Trace):
        def __init__(self, *args):
            made.append(1)
            super().__init__(*args)

    monkeypatch.setattr(traced_steps, "Trace", Counted)
    random = np.random.default_rng(0)
    x, y = random.normal(size=(20, 8, 8, 3)).astype("float32"), random.integers(0, 5, 20)
    run = kgraft.GraftingFit([network(), network()], teachers=[network()])
    stop = keras.callbacks.EarlyStopping("val_loss", patience=9)
    run.fit(x, y, batch_size=4, epochs=3, verbose=0, validation_data=(x, y), callbacks=[stop])
    assert len(made) == 5  # both peers' training and validation, and the teacher


def test_a_trace_lasts_for_all_epochs(after):
    engine, (batch,) = Engine([network()]), batches((8, 8, 3), 5, count=1)
    played = []
    for _ in range(3):
        engine.begin_epoch()
        engine.step([batch])
        engine.step([batch])
        engine.end_epoch()
        engine.steppers[0].evaluate([batch])
        plays = engine.steppers[0].steps()._plays
        played.append([play for form, play in plays.items() if form[0] == "train"])
    assert played[0] and played[0] == played[1] == played[2] != [None]


def test_a_loss_that_is_scaled_is_not_traced():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = network()
        assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
        assert why_not(model) == "its LossScaleOptimizer looks at the gradients in every step"
        x, y = batches((8, 8, 3), 5, count=1, size=8)[0]
        history = kgraft.GraftingFit([model]).fit(x, y, batch_size=4, verbose=0)[0]
    finally:
        keras.config.set_dtype_policy("float32")
    assert np.isfinite(history.history["loss"]).all()


def test_long_steps_are_left_alone_on_a_cpu(after, monkeypatch):
    monkeypatch.setattr(traced_steps, "_SHORT", 0.0)
    chosen, _ = steps_of(network(), batches((8, 8, 3), 5, count=4))
    assert not chosen._plays
