"""TensorBoard for all peers: what GraftingFit and GraftCallback log, each epoch once."""

import shutil

import keras
import numpy as np
import pytest

import kgraft
from kgraft.errors import UserError
from tests.reference.event_files import steps, values
from tests.training.test_fit import digits, network

DATA = digits()


def networks(count=2):
    return [network(lr=0.1 / (k + 1)) for k in range(count)]


def scalars(folder, tag):
    return [value for _, value in values(folder)[tag]]


class Stops(keras.callbacks.Callback):
    """An end that nobody has asked for."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if self.now == self.epoch:
            raise KeyboardInterrupt

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch


@pytest.mark.core
def test_every_peer_has_its_metrics_coefficients_and_filters(tmp_path):
    run = kgraft.GraftingFit(networks(3))
    board = kgraft.TensorBoard(tmp_path, run)
    histories = run.fit(*DATA, epochs=2, verbose=0, validation_data=DATA, callbacks=board)
    assert sorted(own.name for own in tmp_path.iterdir()) == ["peer 1", "peer 2", "peer 3"]
    for k, history in enumerate(histories):
        own = tmp_path / f"peer {k + 1}"
        named = {name: n for name, n in history.history.items() if not name.startswith("peer")}
        for name, numbers in named.items():
            np.testing.assert_allclose(scalars(own, name), numbers, rtol=1e-6)
        np.testing.assert_allclose(scalars(own, "lr"), [0.1 / (k + 1)] * 2, rtol=1e-6)
        more = {"lr", "alpha_of_layers", "filters"}
        assert steps(own) == {tag: [1, 2] for tag in {*named, *more}}
        for (_, histogram), (_, record) in zip(
            values(own)["alpha_of_layers"], run.records, strict=True
        ):
            assert histogram.num == len(record.groups)
            np.testing.assert_allclose(histogram.sum, record.coefficients[k].sum())


def test_without_grafting_there_are_no_coefficients(tmp_path):
    run = kgraft.GraftingFit(networks(), every=2)
    run.fit(*DATA, epochs=3, verbose=0, callbacks=kgraft.TensorBoard(tmp_path, run))
    assert steps(tmp_path / "peer 2")["alpha_of_layers"] == [2]
    assert steps(tmp_path / "peer 2")["alpha"] == [1, 2, 3]


def test_coefficients_stand_where_alpha_does(tmp_path):
    run = kgraft.GraftingFit(networks(), evaluate="before", epochs_grafted=2)
    run.fit(*DATA, epochs=4, verbose=0, callbacks=kgraft.TensorBoard(tmp_path, run))
    blended = [n + 1 for n, own in enumerate(scalars(tmp_path / "peer 1", "alpha")) if own != 1]
    assert steps(tmp_path / "peer 1")["alpha_of_layers"] == blended == [2, 3]


@pytest.mark.core
def test_a_training_that_goes_on_has_every_epoch_once(tmp_path):
    def train(folder, *callbacks):
        keras.utils.set_random_seed(3)
        run = kgraft.GraftingFit(networks())
        watching = [kgraft.TensorBoard(folder / "logs", run), *callbacks]
        saved = kgraft.Checkpoints(folder / "saved", every=2)
        run.fit(*DATA, epochs=5, verbose=0, callbacks=watching, checkpoint=saved)

    train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "out", Stops(3))
    assert steps(tmp_path / "out/logs/peer 2")["loss"] == [1, 2, 3]
    train(tmp_path / "out")
    for peer in ("peer 1", "peer 2"):
        whole, own = (values(tmp_path / name / "logs" / peer) for name in ("whole", "out"))
        assert {tag: [step for step, _ in numbers] for tag, numbers in own.items()} == {
            tag: [1, 2, 3, 4, 5] for tag in whole
        }
        assert own == whole


def test_fits_of_one_epoch_are_counted_on(tmp_path):
    run = kgraft.GraftingFit(networks())
    board = kgraft.TensorBoard(tmp_path, run)
    for _ in range(3):
        run.fit(*DATA, epochs=1, verbose=0, callbacks=board)
    assert steps(tmp_path / "peer 1")["loss"] == [1, 2, 3]
    run.fit(*DATA, initial_epoch=5, epochs=6, verbose=0, callbacks=board)
    assert steps(tmp_path / "peer 1")["loss"] == [1, 2, 3, 6]


def test_a_callback_that_is_new_to_its_training_goes_on(tmp_path):
    run = kgraft.GraftingFit(networks(), every=2)
    for epochs in (3, 2):
        board = kgraft.TensorBoard(tmp_path / "fit", run)
        run.fit(*DATA, epochs=epochs, verbose=0, callbacks=[board])
    assert steps(tmp_path / "fit/peer 2")["loss"] == [1, 2, 3, 4, 5]
    assert steps(tmp_path / "fit/peer 2")["alpha_of_layers"] == [2, 4]
    model, *peers = networks()
    graft = kgraft.GraftCallback(peers)
    for epochs in (2, 1):
        watching = [graft, kgraft.TensorBoard(tmp_path / "callback", graft)]
        model.fit(*DATA, epochs=epochs, verbose=0, callbacks=watching)
    assert steps(tmp_path / "callback/peer 1")["loss"] == [1, 2, 3]


def test_a_count_that_is_set_back_writes_over_what_came_after(tmp_path):
    run = kgraft.GraftingFit(networks())
    board = kgraft.TensorBoard(tmp_path, run)
    run.fit(*DATA, epochs=3, verbose=0, callbacks=board)
    run.fit(*DATA, initial_epoch=1, epochs=2, verbose=0, callbacks=board)
    assert steps(tmp_path / "peer 1")["loss"] == [1, 2]


@pytest.mark.parametrize("behind", [False, True], ids=["fit", "callback"])
def test_curves_of_another_training_are_not_written_over(tmp_path, behind):
    def train(folder="logs", **given):
        model, *peers = networks()
        training = kgraft.GraftCallback(peers) if behind else kgraft.GraftingFit([model, *peers])
        fit, before = (model.fit, [training]) if behind else (training.fit, [])
        board = kgraft.TensorBoard(tmp_path / folder, training)
        fit(*DATA, epochs=1, verbose=0, callbacks=[*before, board], **given)

    train()
    before = values(tmp_path / "logs/peer 2")
    with pytest.raises(UserError, match=r"logs/peer 1 has the curves of another .*: give another"):
        train()
    assert values(tmp_path / "logs/peer 2") == before
    train("more")


def test_a_training_that_was_killed_before_its_first_checkpoint_begins_anew(tmp_path):
    def train(*callbacks):
        run = kgraft.GraftingFit(networks())
        board = kgraft.TensorBoard(tmp_path / "logs", run)
        saved = kgraft.Checkpoints(tmp_path / "saved", every=3)
        run.fit(*DATA, epochs=3, verbose=0, callbacks=[board, *callbacks], checkpoint=saved)

    with pytest.raises(KeyboardInterrupt):
        train(Stops(1))
    assert steps(tmp_path / "logs/peer 1")["loss"] == [1]
    shutil.rmtree(tmp_path / "saved")  # as a kill leaves it
    train()
    assert steps(tmp_path / "logs/peer 1")["loss"] == [1, 2, 3]


def test_a_program_of_several_fits_goes_on_with_its_count(tmp_path):
    def program(*callbacks):
        keras.utils.set_random_seed(3)
        run = kgraft.GraftingFit(networks())
        board = kgraft.TensorBoard(tmp_path / "logs", run)
        for number in range(4):
            more = callbacks if number == 2 else ()
            watching, saved = [board, *more], tmp_path / "saved"
            run.fit(*DATA, epochs=1, verbose=0, callbacks=watching, checkpoint=saved)

    with pytest.raises(KeyboardInterrupt):
        program(Stops(0))
    assert steps(tmp_path / "logs/peer 2")["loss"] == [1, 2]
    program()
    assert steps(tmp_path / "logs/peer 2")["loss"] == [1, 2, 3, 4]


@pytest.mark.core
def test_beside_a_graft_callback(tmp_path):
    model, *peers = networks()
    graft = kgraft.GraftCallback(peers)
    board = kgraft.TensorBoard(tmp_path, graft)
    fit = model.fit(*DATA, epochs=2, verbose=0, validation_data=DATA, callbacks=[graft, board])
    first, second = tmp_path / "peer 1", tmp_path / "peer 2"
    for name in ("loss", "val_loss", "alpha"):
        np.testing.assert_allclose(scalars(first, name), fit.history[name], rtol=1e-6)
    np.testing.assert_allclose(scalars(second, "loss"), fit.history["peer2_loss"], rtol=1e-6)
    np.testing.assert_allclose(scalars(second, "lr"), [0.05, 0.05], rtol=1e-6)
    assert steps(second)["alpha_of_layers"] == steps(second)["filters"] == [1, 2]
    means = [record.mean_coefficients for _, record in graft.records]
    np.testing.assert_allclose(scalars(first, "alpha"), [own[0] for own in means], rtol=1e-6)
    np.testing.assert_allclose(scalars(second, "alpha"), [own[1] for own in means], rtol=1e-6)
    assert "val_loss" not in steps(second)


@pytest.mark.parametrize("evaluate", ["after", "before"])
def test_without_grafting_a_peer_keeps_all_of_its_own(tmp_path, evaluate):
    model, *peers = networks()
    graft = kgraft.GraftCallback(peers, every=2, evaluate=evaluate)
    board = kgraft.TensorBoard(tmp_path, graft)
    model.fit(*DATA, epochs=3, verbose=0, callbacks=[graft, board])
    ((_, record),) = graft.records
    alphas = [1.0, 1.0, 1.0]
    alphas[1 if evaluate == "after" else 2] = record.mean_coefficients[1]
    np.testing.assert_allclose(scalars(tmp_path / "peer 2", "alpha"), alphas, rtol=1e-6)


def test_it_is_refused_where_its_training_does_not_call_it(tmp_path):
    model, *peers = networks()
    graft = kgraft.GraftCallback(peers)
    board = kgraft.TensorBoard(tmp_path, graft)
    behind = r"comes behind its GraftCallback, in the same fit: callbacks=\[grafting, kgraft"
    with pytest.raises(UserError, match=behind):
        model.fit(*DATA, verbose=0, callbacks=[board, graft])
    with pytest.raises(KeyboardInterrupt):
        model.fit(*DATA, verbose=0, callbacks=[graft, board, Stops(0)])
    for own, callbacks in ((peers[0], [board]), (model, [board, graft])):
        with pytest.raises(UserError, match=behind):
            own.fit(*DATA, verbose=0, callbacks=callbacks)
    run = kgraft.GraftingFit(networks())
    board = kgraft.TensorBoard(tmp_path, run)
    with pytest.raises(KeyboardInterrupt):
        run.fit(*DATA, verbose=0, callbacks=[board, Stops(0)])
    with pytest.raises(UserError, match="belongs to the fit of its GraftingFit"):
        run.peers[0].fit(*DATA, verbose=0, callbacks=[board])
    assert not list(tmp_path.iterdir())


def test_networks_without_convolutions_have_a_map_too(tmp_path):
    def attends():
        inputs = keras.Input((8, 8, 1))
        x = keras.layers.Reshape((8, 8))(inputs)
        x = keras.layers.MultiHeadAttention(2, 4)(x, x)
        x = keras.layers.LSTM(4)(x)
        model = keras.Model(inputs, keras.layers.Dense(3)(x))
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        return model

    run = kgraft.GraftingFit([attends(), attends()])
    run.fit(*DATA, epochs=1, verbose=0, callbacks=kgraft.TensorBoard(tmp_path, run))
    assert steps(tmp_path / "peer 2")["filters"] == [1]


def test_it_is_given_once(tmp_path):
    run = kgraft.GraftingFit(networks())
    with pytest.raises(UserError, match="is for all peers and watches the first of its training"):
        run.fit(*DATA, verbose=0, callbacks=lambda k: [kgraft.TensorBoard(tmp_path, run)])


def test_it_needs_to_know_who_trains(tmp_path):
    with pytest.raises(UserError, match=r"TensorBoard\(training=.*expected the GraftingFit that"):
        kgraft.TensorBoard(tmp_path, network())


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"name": "a/b"}, "name='a/b': expected what a folder can be called"),
        ({"name": ""}, "name='': expected what a folder can be called"),
        ({"name": 7}, "name=7: expected a"),
        ({"first": "x"}, "first='x': expected a whole number"),
        ({"first": -1}, "first=-1"),
        ({"log_dir": 3}, "log_dir is 3: expected a directory's name."),
        ({"log_dir": ""}, "log_dir is '': expected a directory's name."),
        ({"log_dir": __file__}, "test_tensorboard.py' is a file: expected a directory."),
    ],
)
def test_wrong_arguments_are_named(given, line):
    run = kgraft.GraftingFit(networks())
    with pytest.raises(UserError) as refused:
        kgraft.TensorBoard(**{"log_dir": "logs", "training": run, **given})
    assert line in str(refused.value)
