"""A peer that GraftCallback compiles gets exactly what the model was compiled with."""

import warnings

import keras
import numpy as np
import pytest
from keras import ops

import kgraft
from kgraft.errors import UserError
from kgraft.training.callback import GraftCallback
from kgraft.training.compile_copy import compile_as
from tests.training.callback_cases import (
    BACKEND,
    BATCH,
    arrays,
    assert_same,
    batches,
    compile_,
    compiled,
    network,
)


def copied(optimizer="sgd", loss="mse", *, peer=None, used=False, **options):
    """A model compiled with all that, and a peer compiled as it is."""
    model, peer = network(1), peer or network(2)
    model.compile(optimizer, loss, **options)
    if used:
        x, y = arrays(4)
        model.train_on_batch(x, np.eye(3, dtype="float32")[y])
    compile_as(peer, model, "peer 2")
    return model, peer


def refusal(*arguments, **options):
    with pytest.raises(UserError) as error:
        copied(*arguments, **options)
    assert "\n" not in str(error.value)
    assert "Call its compile() yourself." in str(error.value)
    return str(error.value)


def scaled(factor, name="scaled"):
    """A loss function; all of these have one name."""

    def loss(y_true, y_pred):
        return factor * ops.mean(ops.square(y_true - y_pred), axis=-1)

    loss.__name__ = name
    return loss


class Weighted(keras.losses.Loss):
    """A loss whose config does not tell its argument."""

    def __init__(self, weight=1.0):
        super().__init__(name="weighted")
        self.weight = weight

    def call(self, y_true, y_pred):
        return self.weight * ops.mean(ops.square(y_true - y_pred), axis=-1)


class Strong(keras.optimizers.SGD):
    """An optimizer whose config does not tell its argument."""

    def __init__(self, learning_rate=0.1, strength=1.0, **options):
        super().__init__(learning_rate, **options)
        self.strength = strength


class Hidden(keras.optimizers.SGD):
    """The same, with the argument in a private attribute."""

    def __init__(self, learning_rate=0.1, strength=1.0, **options):
        super().__init__(learning_rate, **options)
        self._strength = strength


class Demanding(keras.optimizers.SGD):
    """An optimizer that cannot be made from its config."""

    def __init__(self, strength):
        super().__init__(0.1)
        self.strength = strength


class Counting(keras.metrics.Metric):
    """A metric whose config does not tell its argument."""

    def __init__(self, step=1.0, name="counting", **options):
        super().__init__(name=name, **options)
        self.step = step
        self.count = self.add_weight(initializer="zeros", name="count")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.count.assign_add(self.step)

    def result(self):
        return self.count


class Steep(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule that is not registered and has no config."""

    def __init__(self, rate):
        self.rate = rate

    def __call__(self, step):
        return self.rate


@pytest.mark.core
def test_two_losses_and_two_metrics_of_one_name_stay_apart():
    inputs = keras.Input((3,))

    def two_heads(seed):
        keras.utils.set_random_seed(seed)
        hidden = keras.layers.Dense(4)(inputs)
        heads = {"a": keras.layers.Dense(1)(hidden), "b": keras.layers.Dense(1)(hidden)}
        return keras.Model(inputs, heads)

    def compiled_as(model):
        model.compile(
            keras.optimizers.SGD(0.01),
            loss={"a": scaled(1.0), "b": scaled(100.0)},
            loss_weights={"a": 0.5, "b": 2.0},
            metrics={"a": [scaled(1.0)], "b": [scaled(1000.0)]},
            weighted_metrics={"a": [keras.metrics.MeanSquaredError(name="wmse")], "b": []},
        )
        return model

    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 3)).astype("float32")
    y = {name: rng.normal(size=(8, 1)).astype("float32") for name in "ab"}
    model, peer, twin = compiled_as(two_heads(1)), two_heads(2), compiled_as(two_heads(2))
    grafting = GraftCallback([peer], mixer=kgraft.grafting.Independent(), engine="eager")
    history = model.fit(x, y, batch_size=4, shuffle=False, verbose=0, callbacks=[grafting]).history
    expected = twin.fit(x, y, batch_size=4, shuffle=False, verbose=0).history
    for own, other in zip(peer.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-5, atol=1e-6)
    assert {name for name in history if name.startswith("peer2_")} == {
        f"peer2_{name}" for name in expected
    }
    for name, values in expected.items():
        assert history[f"peer2_{name}"] == pytest.approx(values, rel=1e-4)


def test_a_loss_is_the_models_own_object_whatever_its_config_tells():
    loss = Weighted(7.0)
    _, peer = copied(loss=loss)
    assert peer.loss is loss


def test_a_lambda_is_a_loss_and_a_metric_like_any_other():
    def loss(y_true, y_pred):
        return ops.mean(ops.abs(y_true - y_pred), axis=-1)

    wrapped = keras.metrics.MeanMetricWrapper(loss, name="mine")
    model, peer = copied(loss=lambda y, p: loss(y, p), metrics=[wrapped, lambda y, p: loss(y, p)])
    assert peer.loss is model.loss
    own, function = peer._compile_config.config["metrics"]
    assert type(own) is keras.metrics.MeanMetricWrapper
    assert own is not wrapped
    assert (own._fn, own.name) == (loss, "mine")
    assert function is model._compile_config.config["metrics"][1]


def test_a_loss_with_state_of_its_own_is_refused():
    loss = Weighted()
    loss.weight = keras.Variable(1.0)
    assert "loss Weighted keeps state of its own in 'weight'" in refusal(loss=loss)


def test_a_loss_that_is_a_method_of_the_model_is_refused():
    class Own(keras.Sequential):
        def own_loss(self, y_true, y_pred):
            return ops.mean(y_pred)

    model = Own(network(1).layers, name="own")
    model.compile("sgd", model.own_loss)
    with pytest.raises(UserError, match="loss own_loss is a method of 'own'"):
        compile_as(network(2), model, "peer 2")


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"optimizer": Strong(strength=3.0)}, "Strong has strength=3.0 and came out with 1.0"),
        ({"optimizer": Hidden(strength=3.0)}, "Hidden has _strength=3.0 and came out with 1.0"),
        ({"optimizer": Demanding(3.0)}, "optimizer Demanding cannot be made from its config"),
        ({"metrics": [Counting(2.0)]}, "metric Counting has step=2.0 and came out with 1.0"),
    ],
)
def test_an_argument_that_a_config_does_not_tell_is_refused(part, message):
    for used in (False, True):
        assert message in refusal(used=used, **part)


def test_the_same_classes_with_their_default_arguments_are_copied():
    for used in (False, True):
        _, peer = copied(Strong(), metrics=[Counting()], used=used)
        assert type(peer.optimizer) is Strong
        copied(Hidden(), used=used)


OPTIMIZERS = [
    name
    for name, kind in sorted(vars(keras.optimizers).items())
    if isinstance(kind, type)
    and issubclass(kind, keras.optimizers.Optimizer)
    and name not in ("Optimizer", "LossScaleOptimizer", "MultiOptimizer", "LossScale")
]


@pytest.mark.parametrize("used", [False, pytest.param(True, marks=pytest.mark.core)])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_of_keras_is_copied_without_its_state(name, used):
    optimizer = vars(keras.optimizers)[name](0.02, clipvalue=0.5)
    model, peer = network(1), network(2)
    model.compile(optimizer, "mse")
    if used:
        optimizer.build(model.trainable_variables)
        optimizer.iterations.assign(5)
    compile_as(peer, model, "peer 2")
    assert type(peer.optimizer) is type(optimizer)
    assert peer.optimizer is not optimizer
    assert peer.optimizer.get_config() == optimizer.get_config()
    assert int(ops.convert_to_numpy(peer.optimizer.iterations)) == 0


@pytest.mark.core
def test_an_optimizer_is_copied_with_what_was_changed_since_it_was_made():
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    optimizer.momentum, optimizer.clipnorm, optimizer.learning_rate = 0.5, 2.0, 0.03
    _, peer = copied(optimizer)
    assert (peer.optimizer.momentum, peer.optimizer.clipnorm) == (0.5, 2.0)
    assert float(ops.convert_to_numpy(peer.optimizer.learning_rate)) == pytest.approx(0.03)


@pytest.mark.core
def test_a_schedule_that_nobody_has_registered_is_shared():
    schedule = Steep(0.3)
    _, peer = copied(keras.optimizers.Adam(schedule, beta_1=0.7), used=True)
    assert peer.optimizer._learning_rate is schedule
    assert peer.optimizer.beta_1 == 0.7


def decays(model):
    return [model.optimizer._use_weight_decay(v) for v in model.variables]


class Named(keras.layers.Layer):
    """A layer whose weight has a name of its own."""

    def __init__(self, weight):
        super().__init__()
        self.weight = self.add_weight(shape=(3,), name=weight)

    def call(self, x):
        return x * self.weight


@pytest.mark.core
@pytest.mark.parametrize("kind", [keras.optimizers.AdamW, kgraft.SGD])
@pytest.mark.parametrize("how", ["variables", "names", "a name that only the model has"])
def test_excluded_from_weight_decay_by_variable_or_by_name_is_so_in_the_peer(kind, how):
    model, peer = (
        keras.Sequential([keras.Input((8, 8, 1)), *network(k).layers, Named(f"scale{k}")])
        for k in (1, 2)
    )
    optimizer = kind(0.1)
    if how == "variables":
        optimizer.exclude_from_weight_decay(var_list=[model.variables[0], model.variables[3]])
    else:
        optimizer.exclude_from_weight_decay(var_names=["bias" if how == "names" else "scale1"])
    model.compile(optimizer, "mse")
    compile_as(peer, model, "peer 2")
    assert decays(peer) == decays(model)
    assert not all(decays(model))


class Late(keras.Sequential):
    """Not built before its first batch."""


def test_variables_excluded_from_weight_decay_in_a_peer_without_variables_are_refused():
    model, optimizer = network(1), keras.optimizers.AdamW()
    optimizer.exclude_from_weight_decay(var_list=[model.variables[0]])
    model.compile(optimizer, "mse")
    with pytest.raises(UserError, match=r"AdamW excludes some variables .* the peer is not built"):
        compile_as(Late([keras.layers.Dense(3)]), model, "peer 2")


@pytest.mark.core
def test_a_loss_scale_optimizer_is_copied_with_the_one_inside():
    inner = keras.optimizers.AdamW(0.02, beta_1=0.7)
    optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=8.0)
    _, peer = copied(optimizer)
    assert type(peer.optimizer) is keras.optimizers.LossScaleOptimizer
    assert peer.optimizer.initial_scale == 8.0
    assert peer.optimizer.inner_optimizer is not inner
    assert peer.optimizer.inner_optimizer.get_config() == inner.get_config()


def test_half_precision_peers_scale_their_loss_exactly_when_the_model_does():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        for auto in (True, False):
            model, peer = network(1), network(2)
            model.compile("sgd", "mse", auto_scale_loss=auto)
            compile_as(peer, model, "peer 2")
            assert type(peer.optimizer) is type(model.optimizer)
            assert isinstance(peer.optimizer, keras.optimizers.LossScaleOptimizer) is auto
    finally:
        keras.config.set_dtype_policy("float32")


def many(rules):
    fast, slow = keras.optimizers.SGD(0.1), keras.optimizers.Adam(0.001)
    return keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(fast, {rules: slow}))


multi = pytest.mark.skipif("MultiOptimizer" not in vars(keras.optimizers), reason="Keras 3.15 on")


@multi
@pytest.mark.core
def test_several_optimizers_in_one_are_copied_one_by_one():
    optimizer = many(".*kernel")
    model, peer = copied(optimizer, used=True)
    inside = peer.optimizer.optimizers
    assert [type(own) for own in inside] == [type(own) for own in optimizer.optimizers]
    assert not {id(own) for own in inside} & {id(own) for own in optimizer.optimizers}
    assert len(model.variables) == len(peer.variables)


@multi
def test_several_optimizers_chosen_by_names_that_the_peer_has_not_are_refused():
    path = network(1).variables[0].path
    model = network(1)
    model.compile(many(model.variables[0].path), "mse")
    assert path != model.variables[0].path
    with pytest.raises(UserError, match=f"by names, and {model.variables[0].path} is "):
        compile_as(network(2), model, "peer 2")
    assert "a function chooses" in refusal(
        keras.optimizers.MultiOptimizer(lambda variable: keras.optimizers.SGD())
    )


@pytest.mark.core
def test_everything_else_that_compile_takes_is_copied_as_it_is_now():
    steps = {} if BACKEND == "torch" else {"steps_per_execution": 3}
    model, peer = network(1), network(2)
    metric = keras.metrics.AUC(num_thresholds=7, name="auc")
    options = {"loss_weights": [0.25], "metrics": ["mse"], "weighted_metrics": [metric]}
    model.compile("adam", "mse", run_eagerly=True, **options, **steps)
    compile_as(peer, model, "peer 2")
    config = peer._compile_config.config
    assert config["loss_weights"] == [0.25]
    assert config["metrics"] == ["mse"]
    (own,) = config["weighted_metrics"]
    assert own is not metric
    assert own.get_config() == metric.get_config()
    for name in ("run_eagerly", "jit_compile", "steps_per_execution"):
        assert getattr(peer, name) == getattr(model, name)
    model.run_eagerly = False
    compile_as(peer, model, "peer 2")
    assert peer.run_eagerly is False


@pytest.mark.core
@pytest.mark.skipif(BACKEND != "tensorflow", reason="elsewhere a peer's step knows nothing of it")
def test_a_peer_that_copies_several_steps_an_execution_takes_them_one_by_one():
    x, y = arrays()
    model, peer, twin = compiled(1, steps_per_execution=4), network(2), compiled(2)
    grafting = GraftCallback([peer], epochs_grafted=0, engine="eager")
    model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[grafting])
    for batch in batches(x, y):
        twin.train_on_batch(*batch)
    for own, other in zip(peer.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_allclose(own, other, atol=1e-5)


class OwnCompile(keras.Sequential):
    """Its compile has an argument of its own, of which Keras knows nothing."""

    def compile(self, generator_rate, **options):
        super().compile(keras.optimizers.SGD(generator_rate), "mse", **options)


class OwnCompileTold(OwnCompile):
    """The same with the two methods that Keras asks such a model for."""

    def compile(self, generator_rate, **options):
        super().compile(generator_rate, **options)
        self.generator_rate = generator_rate

    def get_compile_config(self):
        return {"generator_rate": self.generator_rate}

    def compile_from_config(self, config):
        self.compile(**config)


@pytest.mark.parametrize("owner", ["both", "model", "peer"])
def test_a_compile_of_its_own_is_nothing_to_be_copied(owner):
    model = OwnCompile(network(1).layers) if owner != "peer" else network(1)
    peer = OwnCompile(network(2).layers, name="p") if owner != "model" else network(2)
    model.compile(0.1) if owner != "peer" else model.compile("sgd", "mse")
    x, y = arrays()
    with warnings.catch_warnings(), pytest.raises(UserError) as error:
        warnings.simplefilter("error")
        model.fit(x, np.eye(3)[y], verbose=0, callbacks=[GraftCallback([peer])])
    assert f"peer 2 ('{peer.name}')" in str(error.value)
    assert "OwnCompile has a compile() of its own" in str(error.value)
    assert "Call its compile() yourself." in str(error.value)


def test_a_model_that_tells_keras_how_to_compile_it_again_is_copied_so():
    model, peer = (OwnCompileTold(network(k).layers) for k in (1, 2))
    model.compile(0.03)
    compile_as(peer, model, "peer 2")
    assert peer.generator_rate == 0.03
    assert float(ops.convert_to_numpy(peer.optimizer.learning_rate)) == pytest.approx(0.03)


def test_two_models_without_an_optimizer_do_not_share_one():
    from kgraft.training.learners import check_optimizers

    models = [network(1), network(2)]
    for model in models:
        model.compile(optimizer=None, loss="mse")
    check_optimizers(models)
    inner = keras.optimizers.SGD()
    for model in models:
        model.compile(keras.optimizers.LossScaleOptimizer(inner), "mse")
    with pytest.raises(UserError, match="peer 1 and peer 2 share one optimizer"):
        check_optimizers(models)


def fit(model, callbacks, **options):
    x, y = arrays()
    model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=callbacks, **options)


@pytest.mark.parametrize(
    "again", [pytest.param("the same callback", marks=pytest.mark.core), "a new callback"]
)
def test_a_model_compiled_anew_for_a_second_fit_takes_the_copies_along(again):
    model, copy, own = compiled(1), network(2), compiled(3)
    grafting = GraftCallback([copy, own], epochs_grafted=0)
    fit(model, [grafting])
    first = copy.optimizer
    fit(model, [grafting])
    assert copy.optimizer is first  # nothing has changed
    assert int(ops.convert_to_numpy(first.iterations)) == 12
    users = own.optimizer
    model.compile(keras.optimizers.Adam(0.002), "sparse_categorical_crossentropy")
    grafting = grafting if again == "the same callback" else GraftCallback([copy, own])
    fit(model, [grafting])
    assert isinstance(copy.optimizer, keras.optimizers.Adam)
    assert copy.loss == "sparse_categorical_crossentropy"
    assert own.optimizer is users


def test_a_copy_that_its_user_compiles_is_theirs_from_then_on():
    model, peer = compiled(1), network(2)
    grafting = GraftCallback([peer])
    fit(model, [grafting])
    compile_(peer, 0.007)
    optimizer = peer.optimizer
    compile_(model)
    fit(model, [grafting])
    assert peer.optimizer is optimizer


@pytest.mark.core
def test_the_model_is_left_as_it_was():
    model, optimizer = network(1), keras.optimizers.Adam(Steep(0.1))
    metric = keras.metrics.AUC()
    model.compile(optimizer, "mse", metrics=[metric])
    before = [ops.convert_to_numpy(v.value) for v in optimizer.variables]
    compile_as(network(2), model, "peer 2")
    assert model.optimizer is optimizer
    assert isinstance(optimizer._learning_rate, Steep)
    assert_same(before, [ops.convert_to_numpy(v.value) for v in optimizer.variables])
