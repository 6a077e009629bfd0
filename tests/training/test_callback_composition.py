"""GraftCallback beside the callbacks that people have already."""

import logging

import keras
import numpy as np
import pytest

from kgraft.errors import UserError
from kgraft.training.callback import GraftCallback
from kgraft.training.checkpoint_files import CheckpointFiles
from kgraft.training.distiller import Distiller
from tests.training.callback_cases import (
    BACKEND,
    BATCH,
    arrays,
    assert_same,
    assert_usable,
    compile_,
    compiled,
    differ,
    everything,
    network,
)

KINDS = ["lock-step", "data", "untrained"] if BACKEND == "jax" else ["lock-step"]


def fit(model, callbacks, epochs=3, **options):
    x, y = arrays()
    options = {"batch_size": BATCH, "shuffle": False, "validation_data": (x, y), **options}
    return model.fit(x, y, epochs=epochs, verbose=0, callbacks=callbacks, **options).history


class Killed(keras.callbacks.Callback):
    """A process that dies when an epoch begins."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise RuntimeError("killed")


def restart_case(directory, *, evaluate="after", backup=True):
    """Model, peers and callbacks of one process."""
    model, peers = compiled(1), [compiled(2, learning_rate=0.02), compiled(3)]
    keras.utils.set_random_seed(7)
    grafting = GraftCallback(
        peers, evaluate=evaluate, backup_dir=directory / "peers" if backup else None
    )
    return model, peers, [grafting, keras.callbacks.BackupAndRestore(directory / "model")]


@pytest.mark.core
def test_early_stopping_restores_the_weights_that_had_the_best_metric():
    x, y = arrays()
    model, peer = compiled(1, learning_rate=1.5), compiled(2)
    stop = keras.callbacks.EarlyStopping("val_loss", patience=1, restore_best_weights=True)
    history = fit(model, [stop, GraftCallback([peer])], epochs=12)
    assert len(history["val_loss"]) < 12
    loss = model.evaluate(x, y, batch_size=BATCH, verbose=0)[0]
    assert loss == pytest.approx(min(history["val_loss"]), rel=1e-5)
    for one in (model, peer):
        assert_usable(one, x, y)


@pytest.mark.core
@pytest.mark.parametrize("evaluate", ["after", "before"])
def test_a_killed_fit_goes_on_as_if_nothing_had_happened(tmp_path, evaluate):
    reference, reference_peers, whole = restart_case(tmp_path / "whole", evaluate=evaluate)
    expected = fit(reference, whole)

    model, _, callbacks = restart_case(tmp_path / "killed", evaluate=evaluate)
    with pytest.raises(RuntimeError, match="killed"):
        fit(model, [*callbacks, Killed(2)])
    names = sorted(path.name for path in (tmp_path / "killed" / "peers").iterdir())
    assert names == ["epoch-000001", "epoch-000002"]

    model, peers, callbacks = restart_case(tmp_path / "killed", evaluate=evaluate)
    resumed = fit(model, callbacks)
    assert resumed["val_loss"] == pytest.approx(expected["val_loss"][2:], rel=1e-6)
    assert resumed["alpha"] == pytest.approx(expected["alpha"][2:], rel=1e-6)
    for one, other in zip([model, *peers], [reference, *reference_peers], strict=True):
        assert_same(everything(one), everything(other))
    epochs = [[epoch for epoch, _ in own[0].records] for own in (callbacks, whole)]
    assert epochs[0] == epochs[1] != []
    assert list((tmp_path / "killed" / "peers").iterdir()) == []


@pytest.mark.core
def test_a_fit_killed_between_or_in_a_backup_resumes_the_peers_of_the_models_epoch(tmp_path):
    class KilledBetween(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                raise RuntimeError("killed")

    model, _, (grafting, backup) = restart_case(tmp_path)
    with pytest.raises(RuntimeError, match="killed"):
        fit(model, [grafting, KilledBetween(), backup], validation_data=None)
    (tmp_path / "peers" / ".partial-000003").mkdir()
    (tmp_path / "peers" / ".partial-000003" / "state.json").write_text("{")
    model, peers, callbacks = restart_case(tmp_path)
    history = fit(model, callbacks, validation_data=None)
    assert len(history["loss"]) == 2
    assert list((tmp_path / "peers").iterdir()) == []
    assert int(keras.ops.convert_to_numpy(peers[0].optimizer.iterations)) == 18


@pytest.mark.parametrize("backup", [True, False])
def test_a_model_that_resumes_beside_fresh_peers_is_warned_of(tmp_path, caplog, backup):
    model, _, callbacks = restart_case(tmp_path, backup=False)
    with pytest.raises(RuntimeError, match="killed"):
        fit(model, [*callbacks, Killed(2)], validation_data=None)
    model, _, callbacks = restart_case(tmp_path, backup=backup)
    with caplog.at_level(logging.WARNING, "kgraft"):
        fit(model, callbacks, validation_data=None)
    (warning,) = [record.message for record in caplog.records if record.name == "kgraft"]
    assert "resumes at epoch 3 but the peers were never trained" in warning
    assert (str(tmp_path / "peers") if backup else "backup_dir=") in warning


def test_a_backup_within_an_epoch_is_refused(tmp_path):
    backup = keras.callbacks.BackupAndRestore(tmp_path / "model", save_freq=3)
    grafting = GraftCallback([compiled(2)], backup_dir=tmp_path / "peers")
    with pytest.raises(UserError, match=r"BackupAndRestore\(save_freq=3\) saves within an epoch"):
        fit(compiled(1), [grafting, backup])


def test_peers_of_another_shape_are_not_restored(tmp_path):
    with pytest.raises(RuntimeError, match="killed"):
        grafting = GraftCallback([compiled(2)], backup_dir=tmp_path)
        fit(compiled(1), [grafting, Killed(1)], validation_data=None)
    other = GraftCallback([compiled(2, filters=4)], backup_dir=tmp_path)
    with pytest.raises(UserError, match="is of other peers"):
        fit(compiled(1, filters=4), [other], initial_epoch=1)


@pytest.mark.core
def test_terminate_on_nan_stops_and_the_peers_stay_finite():
    x, y = arrays()
    model, peers = compiled(1), [compiled(2), compiled(3)]
    x_sick = x.copy()
    x_sick[-1] = np.nan  # in the last batch; the peers learn from healthy data of their own
    grafting = GraftCallback(peers, data=(x, y))
    model.fit(
        x_sick,
        y,
        batch_size=BATCH,
        epochs=3,
        shuffle=False,
        verbose=0,
        callbacks=[grafting, keras.callbacks.TerminateOnNaN()],
    )
    (_, record) = grafting.records[-1]
    assert len(grafting.records) == 1
    assert record.donors == (None, 2, 1)
    for peer in peers:
        assert_usable(peer, x, y)


@pytest.mark.core
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("sets", "when"),
    [
        ("rate", "on_train_batch_begin"),
        ("rate", "on_train_batch_end"),
        ("weights", "on_train_batch_end"),
        ("rate and look", "on_train_batch_begin"),
    ],
)
def test_what_others_set_in_an_epoch_counts_for_the_model_as_without_grafting(
    kind, first, sets, when
):
    """On jax it counts only where Keras was made to put the values into the model."""
    options = {"epochs": 2, "batch_size": 8}
    reference = compiled(1)
    expected = fit(reference, [Sets(reference, sets, when)], **options)

    model, peer = compiled(1), compiled(2)
    own = {"data": {"data": arrays()}, "untrained": {"train_peers": False}}.get(kind, {})
    grafting, setting = GraftCallback([peer], epochs_grafted=0, **own), Sets(model, sets, when)
    found = fit(model, [grafting, setting] if first else [setting, grafting], **options)
    assert_same(everything(model), everything(reference))
    for name, values in expected.items():
        assert found[name] == values
    if kind == "lock-step":
        twin = compiled(2)
        fit(twin, [], **options)
        for own_, other in zip(peer.get_weights(), twin.get_weights(), strict=True):
            np.testing.assert_allclose(own_, other, atol=1e-5)


@pytest.mark.core
def test_a_rate_set_in_an_epoch_counts_as_without_a_peer_that_shares_the_teacher():
    def distillers(teacher):
        return [compile_(Distiller(network(k), [teacher], name=f"d{k}")) for k in (1, 2)]

    alone, _ = distillers(network(9))
    fit(alone, [Sets(alone, "rate", "on_train_batch_begin")], epochs=2)
    model, peer = distillers(network(9))
    grafting = GraftCallback([peer], epochs_grafted=0)
    fit(model, [grafting, Sets(model, "rate", "on_train_batch_begin")], epochs=2)
    assert_same(everything(model), everything(alone))


class Sets(keras.callbacks.Callback):
    """Sets the learning rate or the weights of a model at every batch."""

    def __init__(self, model, sets, when):
        super().__init__()
        self.mine, self.sets, self.count = model, sets, 0
        setattr(self, when, self._set)

    def _set(self, batch, logs=None):
        self.count += 1
        model = self.model if self.sets.endswith("look") else self.mine
        if self.sets.startswith("rate"):
            model.optimizer.learning_rate = 0.1 / self.count
        elif self.count % 2:
            model.set_weights([np.full(w.shape, 0.1 * self.count) for w in model.weights])


@pytest.mark.core
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    "schedule",
    [
        lambda: keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.3),
        lambda: keras.callbacks.ReduceLROnPlateau("loss", patience=0, min_delta=9, factor=0.1),
    ],
)
def test_schedules_of_epochs_change_the_model_as_without_grafting(first, schedule):
    reference, model = compiled(1), compiled(1)
    expected = fit(reference, [schedule()])
    both = [GraftCallback([compiled(2)], epochs_grafted=0), schedule()]
    found = fit(model, both if first else both[::-1])
    assert_same(everything(model), everything(reference))
    assert expected.items() <= found.items()


def test_a_learning_rate_scheduler_drives_the_model_only():
    model, peer = compiled(1), compiled(2, learning_rate=0.02)
    scheduler = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.5)
    history = fit(model, [GraftCallback([peer]), scheduler], epochs=2)
    rate = keras.ops.convert_to_numpy(model.optimizer.learning_rate)
    assert rate == pytest.approx(0.0125)
    assert history["learning_rate"] == pytest.approx([0.025, 0.0125])
    assert keras.ops.convert_to_numpy(peer.optimizer.learning_rate) == pytest.approx(0.02)


def test_tensorboard_shows_the_peers(tmp_path):
    pytest.importorskip("tensorboard")
    board = keras.callbacks.TensorBoard(tmp_path, write_graph=False)
    fit(compiled(1), [GraftCallback([compiled(2)]), board], epochs=1)
    assert list(tmp_path.rglob("events*"))


def test_a_shared_teacher_is_left_to_the_models_backup(tmp_path):
    teacher = network(9)
    model, peer = (compile_(Distiller(network(k), [teacher])) for k in (1, 2))
    with pytest.raises(RuntimeError, match="killed"):
        fit(model, [GraftCallback([peer], backup_dir=tmp_path), Killed(1)])
    arrays, _ = CheckpointFiles(tmp_path).read(1)
    own = [name for name in arrays if name.isdecimal()]  # beside those of the records
    seeds = 2  # of the model's dropout, and its teacher's
    assert len(own) == len(peer.student.variables) + len(peer.optimizer.variables) + seeds


def test_a_damaged_backup_is_refused(tmp_path):
    model, _, callbacks = restart_case(tmp_path)
    with pytest.raises(RuntimeError, match="killed"):
        fit(model, [*callbacks, Killed(2)])
    file = tmp_path / "peers" / "epoch-000002" / "arrays.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    model, _, callbacks = restart_case(tmp_path)
    with pytest.raises(
        UserError, match=r"of epoch 2 is damaged \(arrays.safetensors has changed\)"
    ):
        fit(model, callbacks)


@pytest.mark.skipif(BACKEND != "torch", reason="half precision is slow to compile elsewhere")
def test_half_precision_peers_are_restored_exactly(tmp_path):
    keras.config.set_dtype_policy("bfloat16")
    try:
        model, peer, again = compiled(1), compiled(2), compiled(3)
    finally:
        keras.config.set_dtype_policy("float32")
    with pytest.raises(RuntimeError, match="killed"):
        fit(model, [GraftCallback([peer], backup_dir=tmp_path), Killed(1)])
    grafting = GraftCallback([again], backup_dir=tmp_path, epochs_grafted=0)
    with pytest.raises(RuntimeError, match="killed"):
        fit(model, [grafting, Killed(1)], initial_epoch=1)

    def widened(one):
        return [keras.ops.convert_to_numpy(keras.ops.cast(w, "float32")) for w in one.weights]

    assert not differ(widened(peer), widened(again))
