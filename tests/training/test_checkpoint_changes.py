"""What a training that goes on is told of: what has changed since, and what is not kept."""

import keras
import numpy as np
import pytest
from keras import layers

from kgraft.errors import StorageError, UserError
from kgraft.grafting import Noise
from kgraft.training.checkpoint_files import CheckpointFiles
from kgraft.training.fit import GraftingFit
from tests.training.test_checkpoints import DATA, Kill, Killed, network, numbers, trained


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 3}, r"is of another training \(seed: 3, was 0\): give another directory"),
        ({"mixer": Noise()}, r"is of another training \(mixer, "),
        (
            {"made": lambda k: network(k, clipnorm=1.0)},
            "peer 1, clipnorm: 1, was null",
        ),
        (
            {"made": lambda k: network(k, use_ema=True)},
            "peer 1, use_ema: true, was false",
        ),
        ({"epochs": 1}, r"has 2 epochs, epochs=1 are fewer: give another directory"),
        (
            {"teachers": [network(7)], "temperature": 3.0},
            "teachers: 1, was 0",
        ),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(tmp_path, changed, message):
    trained(tmp_path, epochs=2)
    with pytest.raises(UserError, match=message):
        trained(tmp_path, **{"epochs": 3, **changed})


def test_how_peers_are_taught_is_part_of_a_training(tmp_path):
    trained(tmp_path, epochs=1, teachers=[network(7)])
    with pytest.raises(UserError, match="learning, temperature: 3, was 2"):
        trained(tmp_path, epochs=2, teachers=[network(7)], temperature=3.0)


def other_loss(k):
    model = network(k)
    loss = keras.losses.SparseCategoricalCrossentropy()
    model.compile(model.optimizer, loss, metrics=["accuracy"])
    return model


def other_rate(k):
    model = network(k)
    model.layers[6].rate = 0.4
    return model


X, Y = DATA


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"made": other_loss}, "compile, peer 1, loss, config, from_logits: false, was true"),
        ({"made": other_rate}, "layer, peer 1, 9 (Dropout), rate: 0.4, was 0.3;"),
        ({"made": lambda k: network(k, lr=0.05)}, "learning rate, peer 1: 0.05, was 0.1;"),
        ({"x": X + 0.001}, f"data, x: {len(X)} examples ("),
        ({"x": X[:-1], "y": Y[:-1]}, f"data, x: {len(X) - 1} examples ("),
        ({"y": Y[::-1].copy()}, f"data, y: {len(X)} examples ("),
        ({"y": np.where(np.arange(len(Y)) == 57, (Y + 1) % 3, Y)}, "data, y: "),
        ({"shuffle": False}, "data, shuffle: false, was true"),
        ({"class_weight": {0: 2.0}}, f"data, sample_weight: {len(X)} examples ("),
        ({"validation_data": DATA}, "validation data: {"),
    ],
)
def test_what_has_changed_since_is_named(tmp_path, caplog, changed, message):
    options = {"x": X, "y": Y, "batch_size": 16, "verbose": 0, "checkpoint": tmp_path}
    made = changed.pop("made", network) if "made" in changed else network
    GraftingFit([network(k) for k in range(2)]).fit(epochs=1, **options)
    caplog.clear()
    GraftingFit([made(k) for k in range(2)]).fit(epochs=2, **{**options, **changed})
    said = [own for own in caplog.messages if "is not the one that began" in own]
    assert len(said) == 1 and message in said[0]


def test_nothing_is_named_where_nothing_has_changed(tmp_path, caplog):
    def batches():
        yield from [(X[:16], Y[:16])] * 3

    for epochs in (1, 2):
        trained(tmp_path / "arrays", epochs=epochs)
        run = GraftingFit([network(k) for k in range(2)])
        run.fit(
            [batches(), batches()],
            epochs=epochs,
            steps_per_epoch=1,
            verbose=0,
            checkpoint=tmp_path / "own",
        )
    assert not [own for own in caplog.messages if "is not the one that began" in own]


def test_a_fit_that_somebody_has_ended_early_counts_what_it_was(tmp_path):
    """And the fit after it goes on, though it is not told how long that one was."""

    def program(checkpoint, kill=None):
        run = GraftingFit([network(k) for k in range(2)])
        options = {"batch_size": 16, "verbose": 0, "checkpoint": checkpoint}
        stop = keras.callbacks.EarlyStopping("loss", patience=0, min_delta=9.0)
        first = run.fit(*DATA, epochs=8, callbacks=[stop], **options)
        second = run.fit(*DATA, epochs=3, callbacks=[Kill(*kill)] if kill else [], **options)
        run.fit(*DATA, epochs=0, **options)
        third = run.fit(*DATA, epochs=2, **options)
        return run, [len(own[0].epoch) for own in (first, second, third)]

    whole, lengths = program(tmp_path / "whole")
    assert lengths == [2, 3, 2]
    with pytest.raises(Killed):
        program(tmp_path / "broken", kill=(1,))
    run, lengths = program(tmp_path / "broken")
    assert lengths == [0, 3, 2]
    assert [epoch for epoch, _ in run.records] == [*range(7)]
    for a, b in zip(numbers(run), numbers(whole), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_fit_that_is_over_names_what_has_changed_too(tmp_path, caplog):
    trained(tmp_path, epochs=2)
    caplog.clear()
    trained(tmp_path, epochs=2, made=other_loss)
    assert "holds all of this fit, 2 epochs" in caplog.text
    assert "from_logits: false, was true" in caplog.text and "too late for what was" in caplog.text


def test_other_teachers_are_named(tmp_path, caplog):
    trained(tmp_path, epochs=1, teachers=[network(7)])
    trained(tmp_path, epochs=2, teachers=[network(8)])
    assert "not the one that began: teacher: " in caplog.text


def test_fits_that_are_not_saved_may_stand_between_those_that_are(tmp_path):
    def program(checkpoint, kill=None):
        run = GraftingFit([network(k) for k in range(2)])
        options = {"batch_size": 16, "verbose": 0}
        run.fit(*DATA, epochs=2, checkpoint=checkpoint, **options)
        run.fit(*DATA, epochs=1, **options)
        own = [] if kill is None else [Kill(kill)]
        run.fit(*DATA, epochs=3, checkpoint=checkpoint, callbacks=own, **options)
        run.fit(*DATA, epochs=1, **options)
        return run

    whole = program(tmp_path / "whole")
    with pytest.raises(Killed):
        program(tmp_path / "broken", 2)
    for _ in range(2):  # resumed, and once more when all is over
        run = program(tmp_path / "broken")
        assert [epoch for epoch, _ in run.records] == [*range(7)]
        for a, b in zip(numbers(run), numbers(whole), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_fit_may_be_set_back(tmp_path):
    def program(checkpoint, kill=None):
        run = GraftingFit([network(k) for k in range(2)])
        options = {"batch_size": 16, "verbose": 0, "checkpoint": checkpoint}
        run.fit(*DATA, epochs=4, **options)
        own = [] if kill is None else [Kill(kill)]
        run.fit(*DATA, initial_epoch=1, epochs=3, callbacks=own, **options)
        return run

    whole = program(tmp_path / "whole")
    assert CheckpointFiles(tmp_path / "whole").epochs()[-1] == 3
    for kill in (1, 2):
        with pytest.raises(Killed):
            program(tmp_path / "broken", kill)
    run = program(tmp_path / "broken")
    for a, b in zip(numbers(run), numbers(whole), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("when", [(0, 0), (0, 1)])
def test_peers_that_were_broken_off_in_a_fits_first_epoch_begin_it_anew(tmp_path, when):
    options = {"epochs": 2, "batch_size": 16, "verbose": 0}

    def fitted(run, checkpoint, callbacks=()):
        return run.fit(*DATA, checkpoint=checkpoint, callbacks=list(callbacks), **options)

    whole = GraftingFit([network(k) for k in range(2)], mixer=Noise())
    for _ in range(2):
        fitted(whole, tmp_path / "whole")
    run = GraftingFit([network(k) for k in range(2)], mixer=Noise())
    for _ in range(2):
        for _ in range(2):
            with pytest.raises(Killed):
                fitted(run, tmp_path / "broken", [Kill(*when)])
        histories = fitted(run, tmp_path / "broken")
        assert [own.epoch for own in histories] == [[0, 1], [0, 1]]
    assert [epoch for epoch, _ in run.records] == [epoch for epoch, _ in whole.records]
    for a, b in zip(numbers(run), numbers(whole), strict=True):
        np.testing.assert_array_equal(a, b)


def test_other_fits_than_those_that_were_saved_are_refused(tmp_path):
    run = GraftingFit([network(k) for k in range(2)])
    for _ in range(2):
        run.fit(*DATA, epochs=2, batch_size=16, verbose=0, checkpoint=tmp_path)
    run = GraftingFit([network(k) for k in range(2)])
    run.fit(*DATA, epochs=1, batch_size=16, verbose=0)
    with pytest.raises(UserError, match=r"fits that began at .* \[0, 2\], these at \[1\]"):
        run.fit(*DATA, epochs=2, batch_size=16, verbose=0, checkpoint=tmp_path)


def test_a_directory_has_one_writer(tmp_path):
    class Second(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            with pytest.raises(UserError, match="another process is training in"):
                trained(tmp_path, epochs=1)
            told.append(epoch)

    told = []
    trained(tmp_path, epochs=1, callbacks=[Second()])
    assert told == [0]
    trained(tmp_path, epochs=2)


def test_a_directory_may_be_told_relative_and_left(tmp_path, monkeypatch):
    class Leaves(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            monkeypatch.chdir(tmp_path / "elsewhere")

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    trained("here", epochs=2, callbacks=[Leaves()])
    assert CheckpointFiles(tmp_path / "here").epochs()[-1] == 2


def test_a_checkpoint_that_may_not_be_read_is_not_written_over(tmp_path, monkeypatch):
    trained(tmp_path, epochs=2)
    before = CheckpointFiles(tmp_path).epochs()

    def refuses(*arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("kgraft.training.checkpoint_files.read_text", refuses)
    with pytest.raises(StorageError, match=r"epoch-000002 cannot be read: Permission denied"):
        trained(tmp_path, epochs=3)
    assert CheckpointFiles(tmp_path).epochs() == before
    modes = {file.stat().st_mode for file in (tmp_path / "epoch-000002").iterdir()}
    assert len(modes) == 1


class Words(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.word, self.by_epoch, self.half = "q", {}, np.float32(0.1)
        self.drawn = np.random.default_rng(3)

    def on_epoch_end(self, epoch, logs=None):
        self.word += "x"
        self.by_epoch[epoch, "loss"] = logs["loss"]
        self.half = self.half * np.float32(0.9) + np.float32(0.1 * epoch / 3)


def test_dicts_of_any_keys_and_numpy_numbers_are_kept_and_words_are_named(tmp_path, caplog):
    whole, broken = Words(), Words()
    trained(tmp_path / "whole", epochs=4, callbacks=[whole])
    with pytest.raises(Killed):
        trained(tmp_path / "broken", (2,), epochs=4, callbacks=[Words()])
    caplog.clear()
    trained(tmp_path / "broken", epochs=4, callbacks=[broken])
    assert broken.by_epoch == whole.by_epoch and len(broken.by_epoch) == 4
    assert broken.half == whole.half and broken.half.dtype == np.float32
    assert caplog.text.count("Words has drawn, word, which no checkpoint holds") == 1


class Counting(keras.Model):
    def __init__(self):
        super().__init__(name="counting")
        self.dense, self.seen, self.factor = layers.Dense(3), 0, 2.0

    def call(self, x):
        return self.dense(layers.Flatten()(x))

    def train_step(self, *arguments):
        self.seen += 1
        return super().train_step(*arguments)


def test_what_a_model_holds_beside_its_variables_is_named(tmp_path, caplog):
    def made(k):
        keras.utils.set_random_seed(k)
        model = Counting()
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        return model

    for epochs in (1, 2):
        caplog.clear()
        trained(tmp_path, epochs=epochs, made=made, engine="eager")
    said = [own for own in caplog.messages if "no variables" in own]
    jitted = keras.config.backend() != "torch"  # its Python is called while it is traced
    assert jitted or said == [
        "counting.seen: attributes of layers that are no variables are not saved: they begin anew."
    ]


class Drawing(keras.utils.PyDataset):
    def __init__(self):
        super().__init__()
        self.random = np.random.default_rng(0)

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return X[:16] + self.random.normal(size=(16, 8, 8, 1)), Y[:16]


def test_a_data_set_that_draws_for_itself_is_named(tmp_path, caplog):
    for epochs in (1, 2):
        caplog.clear()
        run = GraftingFit([network(k) for k in range(2)])
        run.fit(Drawing(), epochs=epochs, verbose=0, checkpoint=tmp_path)
    assert "the Drawing draws from random numbers of its own (random)" in caplog.text


def test_what_never_acts_is_said_of_the_whole_training_alone(tmp_path, caplog):
    options = {"epochs": 5, "every": 3, "epochs_grafted": 3}
    with pytest.raises(Killed):
        trained(tmp_path, (3,), **options)
    run, _ = trained(tmp_path, **options)
    assert [epoch for epoch, _ in run.records] == [2]
    assert "never acts" not in caplog.text
