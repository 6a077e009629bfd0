"""A fit that is killed and started again ends as one that was not."""

import random
import threading

import keras
import numpy as np
import pytest
from keras import layers

import kgraft
from kgraft.errors import StorageError, UserError
from kgraft.grafting import Graft, Independent, Noise, Papa, RePr, Wash
from kgraft.training.checkpoint_files import CheckpointFiles
from kgraft.training.checkpoints import Checkpoints, Keeper
from kgraft.training.fit import GraftingFit
from kgraft.training.joint_state import StatefulCallback
from tests.training.test_fit import digits

DATA = digits()


class Killed(Exception):
    pass


class Kill(keras.callbacks.Callback):
    """An end that nobody has foreseen, in the middle of an epoch."""

    def __init__(self, epoch, batch=1):
        super().__init__()
        self.when = epoch, batch

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.when:
            raise Killed


def network(k, lr=0.1, **options):
    keras.utils.set_random_seed(k)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(4, 3, name="first"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Conv2D(4, 3, name="second"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Dropout(0.3),
            layers.Flatten(),
            layers.Dense(3),
        ],
        name="net",
    )
    model.compile(
        keras.optimizers.SGD(lr / (k + 1), momentum=0.9, **options),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def trained(checkpoint=None, kill=None, *, epochs=6, callbacks=(), made=network, **options):
    run = GraftingFit([made(k) for k in range(2)], **options)
    own = callbacks if kill is None else [*callbacks, Kill(*kill)]
    histories = run.fit(
        *DATA,
        epochs=epochs,
        batch_size=16,
        verbose=0,
        validation_data=DATA,
        callbacks=own,
        checkpoint=checkpoint,
    )
    return run, histories


def numbers(run):
    return [
        keras.ops.convert_to_numpy(variable.value).copy()
        for peer in run.peers
        for variable in [*peer.variables, *peer.optimizer.variables]
    ]


def assert_alike(one, other):
    (run, histories), (run_, histories_) = one, other
    for a, b in zip(numbers(run), numbers(run_), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(histories, histories_, strict=True):
        assert a.history == b.history
        assert a.epoch == b.epoch
    for (epoch, a), (epoch_, b) in zip(run.records, run_.records, strict=True):
        assert (epoch, a.groups, a.donors, a.sick) == (epoch_, b.groups, b.donors, b.sick)
        np.testing.assert_array_equal(a.information, b.information)
        np.testing.assert_array_equal(a.coefficients, b.coefficients)


@pytest.mark.core
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"engine": "eager"},
        {"every": 2, "evaluate": "before"},
        {"mixer": Noise(threshold=1e3)},
        {"mixer": Papa(every_steps=2)},
        {"mixer": Wash(0.1)},
        {"mixer": RePr(full_epochs=1, pruned_epochs=2, cycles=2)},
        {"mixer": Independent()},
        {"mutual": kgraft.Mutual()},
        {"made": lambda k: network(k, use_ema=True, ema_momentum=0.9)},
    ],
    ids=["graft", "eager", "before", "noise", "papa", "wash", "repr", "alone", "mutual", "ema"],
)
def test_a_killed_fit_goes_on_as_if_nothing_had_happened(tmp_path, options):
    whole = trained(**options)
    for kill in ((2, 1), (4, 0)):
        with pytest.raises(Killed):
            trained(tmp_path, kill, **options)
    again = trained(tmp_path, **options)
    assert_alike(again, whole)
    assert_alike(trained(tmp_path, **options), whole)  # it is over: nothing is trained twice


def test_taught_peers_too(tmp_path):
    def taught():
        return {"teachers": [network(7), network(8)], "mixer": Graft(sharpness=5.0)}

    whole = trained(**taught())
    with pytest.raises(Killed):
        trained(tmp_path, (3, 0), **taught())
    assert_alike(trained(tmp_path, **taught()), whole)


def test_the_process_own_chance_goes_on_too(tmp_path):
    class Draws(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            drawn = [random.random(), np.random.random(), keras.random.uniform(())]
            told.append([float(keras.ops.convert_to_numpy(number)) for number in drawn])

    told = []
    trained(callbacks=[Draws()])
    whole, told[:] = told.copy(), []
    with pytest.raises(Killed):
        trained(tmp_path, (3, 0), callbacks=[Draws()])
    trained(tmp_path, callbacks=[Draws()])
    assert told == whole


@pytest.mark.core
def test_callbacks_go_on_with_what_they_know(tmp_path):
    def watching():
        return [
            keras.callbacks.EarlyStopping("loss", patience=2, restore_best_weights=True),
            keras.callbacks.ReduceLROnPlateau("loss", patience=1, factor=0.5, min_delta=10.0),
        ]

    options = {"epochs": 12, "made": lambda k: network(k, lr=3.0)}
    first = watching()
    whole = trained(callbacks=first, **options)
    stopped = len(whole[1][0].epoch)
    assert stopped < 12
    with pytest.raises(Killed):
        trained(tmp_path, (stopped - 1, 0), callbacks=watching(), **options)
    second = watching()
    assert_alike(trained(tmp_path, callbacks=second, **options), whole)
    assert second[0].stopped_epoch == first[0].stopped_epoch == stopped - 1
    # the kill came after what it restores: it stays stopped
    assert_alike(trained(tmp_path, callbacks=watching(), **options), whole)


def test_a_setting_that_was_changed_since_is_not_set_back(tmp_path):
    with pytest.raises(Killed):
        trained(tmp_path, (2, 0), callbacks=[keras.callbacks.EarlyStopping("loss", patience=50)])
    changed = keras.callbacks.EarlyStopping("loss", patience=60)
    trained(tmp_path, callbacks=[changed])
    assert changed.patience == 60


def test_a_callback_may_say_itself_what_is_kept(tmp_path):
    class Counting(StatefulCallback):
        def __init__(self):
            super().__init__()
            self.seen = {0}

        def on_epoch_end(self, epoch, logs=None):
            self.seen.add(epoch)

        def save(self):
            return {"seen": sorted(self.seen)}

        def restore(self, saved):
            self.seen = set(saved["seen"])

    with pytest.raises(Killed):
        trained(tmp_path, (2, 0), callbacks=[Counting()])
    last = Counting()
    trained(tmp_path, callbacks=[last])
    assert last.seen == set(range(6))


def test_what_a_callback_holds_comes_back_as_it_was_or_is_named(tmp_path, caplog):
    class Own(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.pair, self.names = (0, 0.5), np.array(["a", "bb"])
            self.seen, self.epochs = {0}, told

        def on_epoch_end(self, epoch, logs=None):
            self.pair = (*self.pair[:1], epoch + 0.5)
            self.seen.add(epoch)
            self.epochs.append(epoch)

    told = []
    with pytest.raises(Killed):
        trained(tmp_path, (2, 0), callbacks=[Own()])
    told = []
    own = Own()
    with caplog.at_level("WARNING", "kgraft"):
        trained(tmp_path, epochs=4, callbacks=[own])
    assert own.pair == (0, 3.5)
    assert told == [0, 1, 2, 3] and own.epochs is told
    assert "Own has names, seen, which no checkpoint holds" in caplog.text


def test_a_place_in_a_data_set_that_is_lost_is_told(tmp_path, caplog):
    class Changes(keras.utils.PyDataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return tuple(part[index * 20 : index * 20 + 20] for part in DATA)

        def on_epoch_end(self):
            pass

    def fitted(kill):
        run = GraftingFit([network(k) for k in range(2)])
        own = [Kill(*kill)] if kill else []
        run.fit(Changes(), epochs=3, verbose=0, callbacks=own, checkpoint=tmp_path)

    with pytest.raises(Killed):
        fitted((1, 0))
    with caplog.at_level("WARNING", "kgraft"):
        fitted(None)
    assert "what the PyDataset's on_epoch_end has changed is not saved" in caplog.text


def test_several_fits_in_one_directory_are_one_training(tmp_path):
    def program(checkpoint, kill=None):
        run = GraftingFit([network(k) for k in range(2)])
        histories = []
        for fit, epochs in enumerate((3, 4)):
            own = [Kill(kill[1])] if kill and kill[0] == fit else []
            histories += run.fit(
                *DATA, epochs=epochs, batch_size=16, verbose=0, callbacks=own, checkpoint=checkpoint
            )
            for peer in run.peers:
                peer.optimizer.learning_rate = 0.01
        return run, histories

    whole, _ = program(None)
    for kill in ((0, 2), (1, 2)):
        with pytest.raises(Killed):
            program(tmp_path, kill)
    run, histories = program(tmp_path)
    for a, b in zip(numbers(run), numbers(whole), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [len(own.epoch) for own in histories] == [0, 0, 4, 4]
    assert len(run.records) == 7


def test_what_broke_a_training_off_costs_the_epoch_and_no_more(tmp_path):
    with pytest.raises(Killed):
        trained(Checkpoints(tmp_path, every=100), (4, 1))
    assert CheckpointFiles(tmp_path).epochs() == [4]


@pytest.mark.core
def test_peers_that_were_broken_off_go_on_themselves(tmp_path):
    """As in a notebook: the cell is interrupted, and run again."""
    whole = trained(tmp_path / "whole")
    run = GraftingFit([network(k) for k in range(2)])
    options = {"epochs": 6, "batch_size": 16, "verbose": 0, "validation_data": DATA}
    for kill in ([Kill(3)], [Kill(4)]):
        with pytest.raises(Killed):
            run.fit(*DATA, callbacks=kill, checkpoint=tmp_path / "broken", **options)
    histories = run.fit(*DATA, checkpoint=tmp_path / "broken", **options)
    assert_alike((run, histories), whole)
    again = run.fit(*DATA, checkpoint=tmp_path / "broken", **{**options, "epochs": 1})
    assert [own.epoch for own in again] == [[0], [0]]
    assert run.records[-1][0] == 6


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, r"checkpoint is 3: expected a directory"),
        ("", r"checkpoint directory '': expected a path"),
        (__file__, r"test_checkpoints\.py is a file"),
    ],
)
def test_a_directory_that_is_none_is_refused(given, message):
    with pytest.raises(UserError, match=message):
        trained(given)


def test_settings_out_of_range_are_refused():
    with pytest.raises(UserError, match=r"Checkpoints\(every=0\): expected 1 or more"):
        Checkpoints("here", every=0)
    with pytest.raises(UserError, match=r"Checkpoints\(keep=0\): expected 1 or more"):
        Checkpoints("here", keep=0)


def test_two_ways_to_resume_are_one_too_many(tmp_path):
    with pytest.raises(UserError, match="both resume"):
        trained(
            tmp_path / "a",
            callbacks=lambda k: [keras.callbacks.BackupAndRestore(tmp_path / f"b{k}")],
        )


def test_a_disk_that_is_full_ends_the_training_in_one_line(tmp_path, monkeypatch):
    def write(self, epoch, arrays, state):
        if epoch == 3:
            raise StorageError("full.")
        real(self, epoch, arrays, state)

    real = CheckpointFiles.write
    monkeypatch.setattr(CheckpointFiles, "write", write)
    with pytest.raises(StorageError, match=r"full\."):
        trained(Checkpoints(tmp_path, every=1))
    assert 2 in CheckpointFiles(tmp_path).epochs()


def keeper(directory, monkeypatch, epoch_seconds, write_seconds, **options):
    """Which epochs are written where an epoch and a writing take so long."""
    clock, written = [0.0], []

    def write(self, epoch, arrays, state):
        clock[0] += write_seconds
        written.append(epoch)

    class AtOnce(threading.Thread):
        def start(self):
            self.run()

        def join(self, timeout=None):
            pass

    monkeypatch.setattr(CheckpointFiles, "write", write)
    monkeypatch.setattr("kgraft.training.checkpoints.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("kgraft.training.checkpoints.threading.Thread", AtOnce)
    with Keeper(Checkpoints(directory, **options), lambda: ({}, {})) as kept:
        for epoch in range(1, 9):
            clock[0] += epoch_seconds
            kept.end_of_epoch(epoch, last=epoch == 8)
    return written


def test_epochs_that_take_longer_than_a_writing_are_saved(tmp_path, monkeypatch):
    assert keeper(tmp_path, monkeypatch, 5, 2) == [*range(1, 9)]


def test_shorter_ones_wait_for_ten_minutes(tmp_path, monkeypatch):
    assert keeper(tmp_path, monkeypatch, 210, 300) == [1, 3, 5, 7, 8]


def test_or_for_the_nth(tmp_path, monkeypatch):
    assert keeper(tmp_path, monkeypatch, 5, 2, every=3) == [3, 6, 8]
