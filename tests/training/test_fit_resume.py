"""What one fit of a GraftingFit leaves to the next one, and what a killed one leaves on disk."""

import itertools

import keras
import numpy as np
import pytest
from keras.callbacks import BackupAndRestore

from kgraft import GraftCallback
from kgraft.errors import UserError
from kgraft.grafting import EpochMixer, Independent, Mixer, Papa
from kgraft.training.fit import GraftingFit
from tests.training.test_fit import Snapshots, digits, network

DATA = digits()


def twins(count=2):
    """Two sets of peers with the same weights and different learning rates."""
    first, second = ([network(lr=0.1 / (k + 1)) for k in range(count)] for _ in range(2))
    for a, b in zip(first, second, strict=True):
        b.set_weights(a.get_weights())
    return first, second


def assert_equal(peers, others):
    for a, b in zip(peers, others, strict=True):
        for weight, value in zip(a.get_weights(), b.get_weights(), strict=True):
            np.testing.assert_array_equal(weight, value)


@pytest.mark.parametrize(
    "options",
    [{}, {"every": 2, "epochs_grafted": 3}, {"evaluate": "before"}],
    ids=["default", "every", "before"],
)
def test_fits_of_one_epoch_are_one_fit_of_them_all(options):
    whole, parts = twins(3)
    one = GraftingFit(whole, seed=7, **options)
    one.fit(*DATA, epochs=4, verbose=0)
    run = GraftingFit(parts, seed=7, **options)
    for _ in range(4):
        run.fit(*DATA, epochs=1, verbose=0)
    assert_equal(whole, parts)
    assert [epoch for epoch, _ in run.records] == [epoch for epoch, _ in one.records]


@pytest.mark.core
def test_a_mixer_goes_on_with_its_state_from_fit_to_fit():
    class Counts(EpochMixer):
        def apply(self, peers, state, moment):
            seen.append(state.get("count", 0))
            return {"count": state.get("count", 0) + 1}, None

    for calls in ((3,), (1, 1, 1), (2, 1)):
        seen = []
        run = GraftingFit(twins()[0], mixer=Counts())
        for epochs in calls:
            run.fit(*DATA, epochs=epochs, verbose=0)
        assert seen == [0, 1, 2]
    seen = []
    model, peer = twins()[0]
    grafting = GraftCallback([peer], mixer=Counts())
    for _ in range(3):
        model.fit(*DATA, epochs=1, verbose=0, callbacks=[grafting])
    assert seen == [0, 1, 2]


@pytest.mark.core
def test_papas_highest_rate_is_that_of_all_fits():
    def falls(k):
        rate = keras.callbacks.LearningRateScheduler(lambda epoch: 0.05 * 0.3 ** next(epochs[k]))
        return [rate]

    found = []
    for calls in ((3,), (1, 1, 1)):
        epochs = [itertools.count() for _ in range(2)]
        peers = [network(lr=0.05) for _ in range(2)]
        for k, peer in enumerate(peers):
            rng = np.random.default_rng(k)
            peer.set_weights([rng.normal(size=w.shape, scale=0.1) ** 2 for w in peer.get_weights()])
        run = GraftingFit(peers, mixer=Papa(rate=0.5, every_steps=1))
        for count in calls:
            run.fit(*DATA, epochs=count, verbose=0, callbacks=falls)
        found.append(peers)
    assert_equal(*found)


@pytest.mark.core
def test_what_was_put_off_is_done_when_the_next_fit_begins():
    peers, _ = twins()
    run = GraftingFit(peers, evaluate="before")
    run.fit(*DATA, epochs=2, verbose=0)
    assert [epoch for epoch, _ in run.records] == [0]
    history = run.fit(*DATA, epochs=1, verbose=0)[0].history
    assert [epoch for epoch, _ in run.records] == [0, 1]
    assert history["alpha"] == [run.records[1][1].mean_coefficients[0]]


def test_callbacks_count_each_fit_anew_and_the_run_counts_all():
    told, numbers = [], []

    class Told(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            told.append(epoch)

    class Spy(Mixer):
        between_steps = True

        def due(self, moment):
            return True

        def apply(self, peers, state, moment):
            if moment.ends_epoch:
                numbers.append(moment.epoch)
            else:
                steps.append(moment.step)
            return state, None

    steps: list[int] = []
    run = GraftingFit([network()], mixer=Spy())
    for given in ({"epochs": 2}, {"epochs": 1}, {"epochs": 6, "initial_epoch": 5}, {"epochs": 1}):
        run.fit(*DATA, batch_size=30, verbose=0, callbacks=Told(), **given)
    assert told == [0, 1, 0, 5, 0]
    assert numbers == [0, 1, 2, 5, 6]
    assert steps == [0, 1, 2, 3, 4, 5, 10, 11, 12, 13]


def test_an_explicit_epoch_repeats_its_order():
    first, second = twins(1)
    run = GraftingFit(first)
    run.fit(*DATA, epochs=1, verbose=0)
    run.fit(*DATA, epochs=1, initial_epoch=0, verbose=0)
    other = GraftingFit(second)
    for _ in range(2):
        other.fit(*DATA, epochs=1, initial_epoch=0, verbose=0)
    assert_equal(first, second)
    third, fourth = twins(1)
    GraftingFit(third).fit(*DATA, epochs=2, batch_size=20, verbose=0)
    again = GraftingFit(fourth)
    for _ in range(2):
        again.fit(*DATA, epochs=1, batch_size=20, initial_epoch=0, verbose=0)
    assert not np.array_equal(third[0].get_weights()[0], fourth[0].get_weights()[0])


def test_an_epoch_that_was_interrupted_is_begun_anew():
    drawn = []

    class Fail(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            drawn.append(batch)
            if len(drawn) == 3:
                raise KeyboardInterrupt

    class Spy(Mixer):
        def apply(self, peers, state, moment):
            epochs.append(moment.epoch)
            return state, None

    epochs: list[int] = []
    run = GraftingFit([network()], mixer=Spy())
    with pytest.raises(KeyboardInterrupt):
        run.fit(*DATA, batch_size=30, epochs=3, verbose=0, callbacks=Fail())
    run.fit(*DATA, batch_size=30, epochs=1, verbose=0)
    assert epochs == [0, 1]


class Killed(keras.callbacks.Callback):
    """Ends the process, as it were, when an epoch begins."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise RuntimeError("killed")


@pytest.mark.core
@pytest.mark.parametrize("evaluate", ["after", "before"])
def test_a_killed_run_with_a_backup_of_every_peer_goes_on_where_it_was(tmp_path, evaluate):
    whole, killed = twins()
    GraftingFit(whole, evaluate=evaluate).fit(*DATA, epochs=4, verbose=0)

    def backups(k):
        return [BackupAndRestore(tmp_path / f"peer{k}")]

    with pytest.raises(RuntimeError, match="killed"):
        GraftingFit(killed, evaluate=evaluate).fit(
            *DATA, epochs=4, verbose=0, callbacks=lambda k: [*backups(k), Killed(2)]
        )
    again = [network(lr=0.1 / (k + 1)) for k in range(2)]
    seen = Snapshots(again)
    run = GraftingFit(again, evaluate=evaluate)
    histories = run.fit(
        *DATA, epochs=4, verbose=0, callbacks=lambda k: [*backups(k), *([seen] if k == 0 else [])]
    )
    assert histories[0].epoch == [2, 3]
    assert_equal(whole, again)
    run.fit(*DATA, epochs=1, verbose=0)  # what callbacks restored once counts in that fit only
    assert len(run.peers[0].history.epoch) == 1


def test_a_mixer_begins_on_what_callbacks_have_restored(tmp_path):
    class Begins(Independent):
        def __init__(self):
            self.found = []

        def init(self, peers, last=None):
            self.found += [model.get_weights()[0].copy() for model in peers.models]
            return {}

    def fit(peer, mixer, *callbacks):
        callbacks = [BackupAndRestore(tmp_path), *callbacks]
        GraftingFit([peer], mixer=mixer).fit(*DATA, epochs=2, verbose=0, callbacks=callbacks)

    peer, mixer = network(), Begins()
    with pytest.raises(RuntimeError, match="killed"):
        fit(peer, None, Killed(1))
    fit(network(), mixer)
    np.testing.assert_array_equal(mixer.found[0], peer.get_weights()[0])


def test_a_backup_of_one_peer_is_that_of_the_only_one(tmp_path):
    whole, killed = twins(1)
    GraftingFit(whole).fit(*DATA, epochs=3, verbose=0)
    with pytest.raises(RuntimeError, match="killed"):
        GraftingFit(killed).fit(
            *DATA, epochs=3, verbose=0, callbacks=[BackupAndRestore(tmp_path), Killed(1)]
        )
    again = [network()]
    GraftingFit(again).fit(*DATA, epochs=3, verbose=0, callbacks=BackupAndRestore(tmp_path))
    assert_equal(whole, again)


def test_backups_of_some_peers_only_are_refused(tmp_path):
    peers, _ = twins()
    before = [peer.get_weights() for peer in peers]
    for callbacks, message in (
        ([BackupAndRestore(tmp_path)], "would restore peer 1 but not peer 2: give every peer"),
        (lambda k: [BackupAndRestore(tmp_path)], "peer 1 and peer 2 have BackupAndRestore"),
    ):
        with pytest.raises(UserError, match=message) as error:
            GraftingFit(peers).fit(*DATA, verbose=0, callbacks=callbacks)
        assert "\n" not in str(error.value)
    for peer, weights in zip(peers, before, strict=True):
        np.testing.assert_array_equal(peer.get_weights()[0], weights[0])


def test_peers_that_were_saved_after_different_epochs_are_refused(tmp_path):
    def backup(k):
        return BackupAndRestore(tmp_path / f"peer{k}")

    with pytest.raises(RuntimeError, match="killed"):
        GraftingFit([network()]).fit(*DATA, epochs=3, verbose=0, callbacks=[backup(1), Killed(1)])
    peers, _ = twins()
    with pytest.raises(UserError, match="peers are restored after 0, 1 epochs"):
        GraftingFit(peers).fit(*DATA, epochs=3, verbose=0, callbacks=backup)
