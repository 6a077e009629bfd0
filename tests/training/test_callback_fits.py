"""GraftCallback over several fits, to the end of a fit, and from data with weights."""

import logging

import keras
import numpy as np
import pytest

import kgraft
from kgraft.errors import UserError
from kgraft.grafting import GraftPlan
from kgraft.grafting.mixer import Mixer
from kgraft.training.callback import GraftCallback
from tests.reference import grafting as reference
from tests.training.callback_cases import (
    BATCH,
    Pairs,
    arrays,
    assert_same,
    compile_,
    compiled,
    differ,
    everything,
    network,
)


def fit(model, callbacks, **options):
    x, y = arrays()
    options = {"batch_size": BATCH, "shuffle": False, "verbose": 0, **options}
    return model.fit(x, y, callbacks=callbacks, **options).history


def averaging(seed, **options):
    model = network(seed)
    model.compile(
        keras.optimizers.SGD(0.1, momentum=0.5, use_ema=True, ema_momentum=0.8),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        **options,
    )
    return model


@pytest.mark.core
def test_peers_that_average_their_weights_end_with_the_averages_as_fits_model_does():
    model, peer, twin = averaging(1), averaging(2), averaging(2)
    grafting = GraftCallback([peer], epochs_grafted=0, engine="eager")
    fit(model, [grafting], epochs=2)
    fit(twin, [], epochs=2)
    for own, other in zip(peer.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_allclose(own, other, atol=1e-5)


def test_averages_take_their_place_after_the_last_epoch_and_not_in_an_interrupted_fit():
    class Last(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.weights = peer.get_weights()
            if epoch == self.killed:
                raise RuntimeError("killed")

    model, peer = averaging(1), averaging(2)
    grafting, last = GraftCallback([peer], epochs_grafted=0), Last()
    last.killed = 0
    with pytest.raises(RuntimeError, match="killed"):
        fit(model, [grafting, last], epochs=2)
    assert_same(peer.get_weights(), last.weights)
    last.killed = None
    fit(model, [grafting, last], epochs=1)
    assert differ(peer.get_weights(), last.weights)


def test_averages_are_there_whatever_restores_the_models_best_weights():
    model, peer = averaging(1, metrics=["accuracy"]), averaging(2)
    stop = keras.callbacks.EarlyStopping("loss", patience=0, restore_best_weights=True, mode="max")
    for callbacks in ([stop, GraftCallback([peer])], [GraftCallback([peer]), stop]):
        fit(model, callbacks, epochs=3)
        assert_same(model.get_weights(), stop.best_weights)
        average = peer.optimizer._model_variables_moving_average
        for own, mean in zip(peer.trainable_variables, average, strict=True):
            np.testing.assert_array_equal(
                keras.ops.convert_to_numpy(own), keras.ops.convert_to_numpy(mean)
            )


def test_a_fit_has_one_grafting():
    callback = GraftCallback([network(2)])
    for second in (GraftCallback([network(3)]), callback):
        model = compiled(1)
        before = model.get_weights()
        with pytest.raises(
            UserError, match=r"^fit has two GraftCallbacks, .*one of them all the p"
        ):
            fit(model, [callback, keras.callbacks.TerminateOnNaN(), second])
        assert_same(model.get_weights(), before)
    fit(compiled(1), [callback])


def test_a_clone_follows_a_model_that_is_compiled_anew_unless_it_was_compiled_itself():
    model = network(1)
    peers = [keras.models.clone_model(model)]
    compile_(model)
    peers.append(keras.models.clone_model(model))
    grafting = GraftCallback(peers)
    fit(model, [grafting])
    model.compile(keras.optimizers.Adam(), model.loss)
    fit(model, [grafting])
    assert [type(peer.optimizer).__name__ for peer in peers] == ["Adam", "SGD"]


class Begins(Mixer):
    """Writes down what it is asked, and grafts nothing."""

    def __init__(self):
        self.calls = []

    def init(self, peers, last=None):
        steps = [int(keras.ops.convert_to_numpy(m.optimizer.iterations)) for m in peers.models]
        self.calls.append(("begin", steps))
        return {"graftings": last["graftings"] if last else 0}

    def apply(self, peers, state, moment):
        self.calls.append(("apply", moment.epoch))
        return {"graftings": state["graftings"] + 1}, None

    def finish(self, peers, state):
        assert isinstance(peers.plan, GraftPlan)
        self.calls.append(("end", len(peers), state["graftings"]))
        return state


@pytest.mark.core
def test_a_mixer_is_told_when_a_training_begins_and_when_it_has_ended():
    mixer = Begins()
    model, grafting = compiled(1), GraftCallback([compiled(2)], mixer=mixer)
    fit(model, [grafting], epochs=2)
    fit(model, [grafting])
    once = [("begin", [0, 0]), ("apply", 0), ("apply", 1), ("end", 2, 2)]
    assert mixer.calls == [*once, ("begin", [12, 12]), ("apply", 2), ("end", 2, 3)]


def test_a_mixer_of_peers_that_are_not_built_begins_as_soon_as_they_are():
    def late():
        parts = [keras.layers.Conv2D(3, 3), keras.layers.Flatten(), keras.layers.Dense(3)]
        return compile_(keras.Sequential(parts))

    mixer = Begins()
    fit(late(), [GraftCallback([late()], mixer=mixer)])
    assert mixer.calls == [("begin", [1, 0]), ("apply", 0), ("end", 2, 1)]


def test_a_grafting_put_off_at_the_end_of_a_fit_is_done_when_the_next_one_begins():
    def trained(fits):
        model, peer = compiled(1), compiled(2)
        grafting = GraftCallback([peer], evaluate="before", engine="eager")
        alphas = []
        for options in fits:
            alphas += fit(model, [grafting], **options)["alpha"]
        return [everything(model), everything(peer)], alphas, [e for e, _ in grafting.records]

    whole, alphas, epochs = trained([{"epochs": 3}])
    single = [{"initial_epoch": epoch, "epochs": epoch + 1} for epoch in range(3)]
    parts, alphas_of_parts, epochs_of_parts = trained(single)
    assert epochs_of_parts == epochs == [0, 1]
    assert alphas_of_parts == alphas
    for one, other in zip(parts, whole, strict=True):
        assert_same(one, other)


def test_a_grafting_put_off_is_forgotten_when_another_model_is_trained():
    model, peer, other = compiled(1), compiled(2), compiled(3)
    grafting = GraftCallback([peer], evaluate="before")
    fit(model, [grafting])
    before = everything(peer)
    grafting.train_peers = False
    fit(other, [grafting], epochs=1)
    assert_same(everything(peer), before)
    assert grafting.records == []


def test_fit_called_epoch_by_epoch_reads_the_peers_data_on():
    own = arrays(18, seed=5)  # 5 batches for 6 steps: passes and epochs part

    def trained(fits):
        peer = compiled(2)
        grafting = GraftCallback([peer], data=own, epochs_grafted=0, engine="eager")
        model = compiled(1)
        for options in fits:
            fit(model, [grafting], **options)
        return everything(peer)

    whole = trained([{"epochs": 3}])
    assert_same(
        trained([{"initial_epoch": epoch, "epochs": epoch + 1} for epoch in range(3)]), whole
    )
    assert_same(trained([{"epochs": 1}] * 3), whole)  # nobody has to count


def test_a_killed_fit_reads_the_peers_data_on(tmp_path):
    class Killed(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise RuntimeError("killed")

    own = arrays(18, seed=5)

    def case(name):
        model, peer = compile_(network(1, dropout=0)), compiled(2)
        grafting = GraftCallback([peer], data=own, backup_dir=tmp_path / name)
        backup = keras.callbacks.BackupAndRestore(tmp_path / f"{name}-model")
        return model, peer, [grafting, backup]

    model, whole, callbacks = case("whole")
    fit(model, callbacks, epochs=3)
    model, _, callbacks = case("killed")
    with pytest.raises(RuntimeError, match="killed"):
        fit(model, [*callbacks, Killed()], epochs=3)
    model, resumed, callbacks = case("killed")
    fit(model, callbacks, epochs=3)
    assert_same(everything(resumed), everything(whole))


def test_a_fit_killed_after_its_last_epoch_still_restores_the_peers(tmp_path):
    class Killed(keras.callbacks.Callback):
        def on_train_end(self, logs=None):
            raise RuntimeError("killed")

    def case():
        model, peer = compiled(1), compiled(2)
        grafting = GraftCallback([peer], backup_dir=tmp_path / "peers")
        return model, peer, [grafting, keras.callbacks.BackupAndRestore(tmp_path / "model")]

    model, peer, callbacks = case()
    with pytest.raises(RuntimeError, match="killed"):
        fit(model, [Killed(), *callbacks], epochs=2)
    trained = everything(peer)
    model, peer, callbacks = case()
    fit(model, callbacks, epochs=2)
    assert_same(everything(peer), trained)


class Sums(Mixer):
    """Knows the sum of the peers' first weights at the ends of all epochs; grafts nothing."""

    def __init__(self):
        self.finished = []

    def init(self, peers, last=None):
        return last or {"sums": [np.zeros(3) for _ in peers.models]}

    def apply(self, peers, state, moment):
        own = [model.get_weights()[0].sum((0, 1, 2)) for model in peers.models]
        return {"sums": [a + b for a, b in zip(state["sums"], own, strict=True)]}, None

    def finish(self, peers, state):
        self.finished.append(state["sums"])
        return state


@pytest.mark.core
@pytest.mark.parametrize("at", ["on_epoch_begin", "on_train_end"])
def test_what_a_mixer_knows_survives_a_kill_in_an_epoch_and_after_the_last(tmp_path, at):
    class Killed(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if at == "on_epoch_begin" and epoch == 2:
                raise RuntimeError("killed")

        def on_train_end(self, logs=None):
            if at == "on_train_end":
                raise RuntimeError("killed")

    def case(name):
        model, peer, mixer = compile_(network(1, dropout=0)), compiled(2), Sums()
        grafting = GraftCallback([peer], mixer=mixer, backup_dir=tmp_path / name)
        return model, mixer, [grafting, keras.callbacks.BackupAndRestore(tmp_path / f"{name}-own")]

    model, whole, callbacks = case("whole")
    fit(model, callbacks, epochs=3)
    model, killed, callbacks = case("killed")
    with pytest.raises(RuntimeError, match="killed"):
        fit(model, [Killed(), *callbacks], epochs=3)
    model, resumed, callbacks = case("killed")
    fit(model, callbacks, epochs=3)
    assert killed.finished == []
    assert_same(resumed.finished[0], whole.finished[0])


@pytest.mark.parametrize("first", [True, False])
def test_a_callback_behind_backup_and_restore_is_warned_of(tmp_path, caplog, first):
    grafting = GraftCallback([compiled(2)], data=arrays(), backup_dir=tmp_path / "peers")
    backup = keras.callbacks.BackupAndRestore(tmp_path / "model")
    with caplog.at_level(logging.WARNING, "kgraft"):
        fit(compiled(1), [grafting, backup] if first else [backup, grafting])
    lines = [record.message for record in caplog.records if record.name == "kgraft"]
    assert len(lines) == (0 if first else 1)
    assert first or ("Put GraftCallback first" in lines[0] and "\n" not in lines[0])


def test_an_order_that_is_warned_of_is_one_that_loses_something(tmp_path):
    """Without validation the model's backup holds an epoch without its grafting."""

    class Killed(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                self.ended = self.model.get_weights()
                raise RuntimeError("killed")

    for first in (True, False):
        model, backup = compiled(1), keras.callbacks.BackupAndRestore(tmp_path / str(first))
        grafting, killed = GraftCallback([compiled(2)], data=arrays()), Killed()
        order = [grafting, backup] if first else [backup, grafting]
        with pytest.raises(RuntimeError, match="killed"):
            fit(model, [*order, killed], epochs=2)
        model.load_weights(tmp_path / str(first) / "latest.weights.h5")
        assert differ(model.get_weights(), killed.ended) is not first


WEIGHTS = {0: 1.0, 1: 3.0, 2: 0.0}


@pytest.mark.parametrize(
    "kind", [pytest.param("arrays", marks=pytest.mark.core), "a data set", "a list"]
)
def test_class_weights_of_the_peers_own_data_weigh_its_examples(kind):
    x, y = arrays(12, seed=5)
    weights = np.array([WEIGHTS[label] for label in y.tolist()], "float32")
    data = {
        "arrays": ((x, y), (x, y, weights)),
        "a data set": (Pairs(x, y), Pairs(x, y, weights)),
        "a list": ([(x, y)], [(x, y, weights)]),
    }[kind]

    def trained(data, **options):
        peer = compiled(2)
        grafting = GraftCallback([peer], data=data, epochs_grafted=0, engine="eager", **options)
        fit(compiled(1), [grafting], class_weight=WEIGHTS)
        return everything(peer)

    expected = trained(data[1])
    assert_same(trained(data[0], class_weight=WEIGHTS), expected)
    assert differ(trained(data[0], class_weight={}), expected)  # said to be unweighted


@pytest.mark.parametrize("weights", ["class_weight", "sample_weight"])
def test_weights_in_fit_that_the_peers_own_data_has_not_are_refused(weights):
    given = WEIGHTS if weights == "class_weight" else np.ones(22, "float32")
    grafting = GraftCallback([compiled(2)], data=arrays())
    with pytest.raises(UserError, match=r"data of peer2 \('net2'\) has no weights") as error:
        fit(compiled(1), [grafting], **{weights: given})
    assert "class_weight=" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_training_that_does_not_feed_the_peers_is_refused():
    model, grafting = compiled(1), GraftCallback([compiled(2)], data=arrays())
    grafting.set_model(model)
    grafting.set_params({"epochs": 1})
    grafting.on_train_begin()
    grafting.on_epoch_begin(0)
    with pytest.raises(UserError, match="no batch of this training has reached the peers"):
        grafting.on_epoch_end(0, {})


def test_peers_with_several_optimizers_or_scaled_losses_are_trained():
    if "MultiOptimizer" not in vars(keras.optimizers):
        pytest.skip("Keras 3.15 on")

    def both():
        rules = {".*kernel": keras.optimizers.Adam(0.01)}
        chosen = keras.optimizers.OptimizerMap(keras.optimizers.SGD(0.1), rules)
        return keras.optimizers.MultiOptimizer(chosen)

    for optimizer in (both, lambda: keras.optimizers.LossScaleOptimizer(kgraft.SGD(0.01))):
        model, peer = network(1), network(2)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer(), loss)
        history = fit(model, [GraftCallback([peer])], epochs=2)
        assert np.isfinite(history["peer2_loss"]).all()
        assert history["peer2_loss"][1] != history["peer2_loss"][0]


def test_the_blend_is_still_the_reference_when_the_plan_comes_with_the_first_batch():
    def late(seed):
        keras.utils.set_random_seed(seed)
        parts = [keras.layers.Conv2D(3, 3), keras.layers.Flatten(), keras.layers.Dense(3)]
        return compile_(keras.Sequential(parts))

    class Before(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.weights = [model.get_weights(), peer.get_weights()]

    model, peer, before = late(1), late(2), Before()
    fit(model, [before, GraftCallback([peer])])
    groups = [(group.kernel, group.members) for group in GraftPlan.of(model).groups]
    expected, _ = reference.graft(before.weights, groups)
    for one, wanted in zip((model, peer), expected, strict=True):
        for weight, value in zip(one.get_weights(), wanted, strict=True):
            np.testing.assert_allclose(weight, value, atol=1e-6)


@pytest.mark.core
@pytest.mark.parametrize("schedule", [{"every": 2}, {"epochs_grafted": 1}, {"evaluate": "before"}])
def test_a_schedule_counts_epochs_over_all_fits(schedule):
    """Four fits of one epoch are one of four."""
    once, often = (GraftCallback([compiled(2)], **schedule) for _ in range(2))
    whole, pieces = compiled(1), compiled(1)
    fit(whole, [once], epochs=4, shuffle=False)
    for _ in range(4):
        fit(pieces, [often], epochs=1, shuffle=False)
    assert [epoch for epoch, _ in often.records] == [epoch for epoch, _ in once.records] != []
    for own, other in zip(pieces.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_allclose(own, other, atol=1e-6)


def test_an_initial_epoch_sets_the_count():
    grafting = GraftCallback([compiled(2)], every=2)
    model = compiled(1)
    fit(model, [grafting], epochs=3)
    fit(model, [grafting], epochs=6, initial_epoch=4)
    assert [epoch for epoch, _ in grafting.records] == [1, 5]
