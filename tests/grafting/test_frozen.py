"""Frozen weights are left alone, by every mixer, unless they are asked for."""

import keras
import numpy as np
import pytest
from keras import layers

import kgraft
from kgraft.errors import UserError
from kgraft.grafting import (
    Average,
    FilterGraft,
    FixedGraft,
    Graft,
    GraftPlan,
    Internal,
    Noise,
    Papa,
    RePr,
    Rotation,
    Wash,
)
from tests.grafting.driven import Driven

pytestmark = pytest.mark.core


def network(seed=0):
    """conv a - norm - conv b - norm - dense."""
    model = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.Conv2D(6, 3, name="a"),
            layers.BatchNormalization(name="norm_a"),
            layers.ReLU(),
            layers.Conv2D(6, 3, name="b"),
            layers.BatchNormalization(name="norm_b"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3, name="head"),
        ]
    )
    random = np.random.default_rng(seed)
    model.set_weights([random.normal(size=w.shape).astype("float32") for w in model.weights])
    return model


def peers(*frozen, count=2):
    models = [network(k) for k in range(count)]
    for model in models:
        for name in frozen:
            model.get_layer(name).trainable = False
    return models


def moved(model, before):
    """Layers of which some weight has changed."""
    pairs = zip(model.weights, before, model.get_weights(), strict=True)
    return {weight.path.split("/")[-2] for weight, a, b in pairs if not np.array_equal(a, b)}


def test_a_frozen_convolution_and_its_frozen_norm_stay_and_all_else_is_blended():
    models = peers("a", "norm_a")
    before = models[0].get_weights()
    Graft().mix(models)
    assert moved(models[0], before) == {"b", "norm_b", "head"}


def test_the_statistics_of_a_norm_follow_its_layer():
    models = peers("a")
    before = models[0].get_weights()
    Graft().mix(models)
    changed = [
        not np.array_equal(a, b) for a, b in zip(before, models[0].get_weights(), strict=True)
    ]
    assert changed == [False] * 2 + [True] * 12
    assert GraftPlan.of(models[0]).frozen == {0, 1}
    assert GraftPlan.of(peers("norm_a")[0]).frozen == {2, 3, 4, 5}


def test_frozen_weights_are_blended_where_that_is_asked_for():
    models = peers("a", "norm_a")
    before = models[0].get_weights()
    Graft(blend_frozen=True).mix(models)
    assert moved(models[0], before) == {"a", "norm_a", "b", "norm_b", "head"}
    asked, trained = GraftPlan.of(models[0], blend_frozen=True), GraftPlan.of(network())
    assert [group.members for group in asked.groups] == [g.members for g in trained.groups]


def test_a_dense_head_behind_a_frozen_convolution_owns_a_coefficient():
    plan = GraftPlan.of(peers("b", "norm_b")[0])
    assert [group.name.split("/")[-2] for group in plan.groups] == ["a", "head"]


def test_a_norm_behind_a_frozen_convolution_rides_with_the_one_before():
    plan = GraftPlan.of(peers("b")[0])
    members = {plan.weights[i][0].split("/")[-2] for i in plan.groups[0].members}
    assert members == {"a", "norm_a", "norm_b"}


def test_a_head_on_a_frozen_backbone_is_all_that_moves():
    def transfer(seed):
        backbone = network(seed)
        backbone.trainable = False
        images = keras.Input((8, 8, 2))
        return keras.Model(images, layers.Dense(2, name="new")(backbone(images)))

    models = [transfer(k) for k in range(2)]
    plan = Graft().plan(models)
    assert [group.name.split("/")[-2] for group in plan.groups] == ["new"]
    before = models[0].get_weights()
    Graft().mix(models)
    assert moved(models[0], before) == {"new"}


def test_a_single_frozen_weight_is_left_alone():
    models = peers()
    for model in models:
        model.get_layer("b").bias.trainable = False
    before = models[0].get_weights()
    Graft().mix(models)
    pairs = zip(models[0].weights, before, models[0].get_weights(), strict=True)
    assert [w.path.split("/", 1)[1] for w, a, b in pairs if np.array_equal(a, b)] == ["b/bias"]


@pytest.mark.parametrize(
    "mixer",
    [FixedGraft(), Rotation(), Average(), Papa(0.5), Wash(0.9), Noise(), Internal(), FilterGraft()],
    ids=lambda mixer: type(mixer).__name__,
)
def test_every_mixer_leaves_them_alone(mixer):
    models = peers("b", "norm_b")
    for model in models:  # filters that count as invalid, for the scions
        for name in ("a", "b"):
            kernel = model.get_layer(name).kernel
            kernel.assign(kernel * np.float32([1e-6, 1, 1, 1, 1, 1]))
    run = Driven(mixer, models)
    before = models[0].get_weights()
    run.epoch(0)
    run.step(0)
    assert "a" in moved(models[0], before)
    assert not {"b", "norm_b"} & moved(models[0], before)


def test_repr_drops_no_frozen_filters():
    with pytest.raises(UserError, match="nothing that RePr could drop"):
        RePr(1, 1, 1).plan(peers("b"))


def test_peers_that_are_frozen_differently_are_refused():
    models = peers()
    models[1].get_layer("b").trainable = False
    with pytest.raises(
        UserError, match=r"b/kernel is frozen \(trainable=False\) in peer 2 and trains in peer 1"
    ):
        Graft().plan(models)
    with pytest.raises(UserError, match="frozen"):
        Graft(blend_frozen=True).plan(models[::-1])


def test_where_everything_is_frozen_there_is_nothing_to_graft():
    models = peers()
    for model in models:
        model.trainable = False
    with pytest.raises(UserError, match="no kernel that trains"):
        Graft().plan(models)
    assert len(Graft(blend_frozen=True).plan(models).groups) == 2


def test_the_plan_is_of_the_moment_it_is_read():
    models = peers("a")
    frozen = Graft().plan(models)
    for model in models:
        model.get_layer("a").trainable = True
    assert len(Graft().plan(models).groups) == len(frozen.groups) + 1
    assert kgraft.GraftPlan.of(models[0]).frozen == frozenset()


@pytest.mark.skipif(
    keras.config.backend() != "torch", reason="Keras compiles what trains into its step there"
)
@pytest.mark.parametrize("driver", ["run", "callback"])
def test_what_a_callback_freezes_in_a_fit_is_left_alone_from_then_on(driver):
    class Freezes(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                for own in peers:
                    own.get_layer("first").trainable = False
            seen.append([own.get_layer("first").get_weights()[0] for own in peers])

    def made(lr):
        model = keras.Sequential(
            [
                keras.Input((6, 6, 1)),
                keras.layers.Conv2D(3, 3, name="first"),
                keras.layers.Conv2D(3, 3, name="second"),
                keras.layers.Flatten(),
                keras.layers.Dense(2),
            ]
        )
        model.compile(keras.optimizers.SGD(lr), "mse")
        return model

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 6, 6, 1)), rng.normal(size=(12, 2))
    peers, seen = [made(0.01 * (k + 1)) for k in range(3)], []
    if driver == "run":
        grafting = kgraft.GraftingFit(peers)
        grafting.fit(x, y, epochs=3, verbose=0, callbacks=[Freezes()])
    else:
        grafting = kgraft.GraftCallback(peers[1:])
        peers[0].fit(x, y, epochs=3, verbose=0, callbacks=[grafting, Freezes()])
    assert [len(record.groups) for _, record in grafting.records] == [2, 1, 1]
    for own, frozen in zip(peers, seen[1], strict=True):
        np.testing.assert_array_equal(own.get_layer("first").get_weights()[0], frozen)
    assert not np.array_equal(seen[1][0], seen[1][1])
