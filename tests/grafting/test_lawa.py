"""Latest weight averaging: which epochs count, and what goes on afterwards."""

import keras
import numpy as np
import pytest

import kgraft
from kgraft.grafting import Independent, Lawa

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(24, 4)).astype("float32")
Y = RANDOM.integers(0, 3, 24)


def network(seed):
    keras.utils.set_random_seed(seed)
    layers = [keras.Input((4,)), keras.layers.Dense(5), keras.layers.BatchNormalization()]
    model = keras.Sequential([*layers, keras.layers.ReLU(), keras.layers.Dense(3)])
    model.compile(kgraft.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


class Seen(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.weights = []

    def on_epoch_end(self, epoch, logs=None):
        self.weights.append(self.model.get_weights())


def trained(mixer, epochs=4, **options):
    seen = [Seen(), Seen()]
    run = kgraft.GraftingFit([network(0), network(1)], mixer=mixer)
    run.fit(X, Y, batch_size=8, epochs=epochs, verbose=0, callbacks=lambda k: [seen[k]], **options)
    return run, [own.weights for own in seen]


@pytest.mark.core
@pytest.mark.parametrize(("last", "counted"), [(1, 1), (2, 2), (9, 4)])
def test_a_network_ends_as_the_mean_of_its_last_epochs(last, counted):
    run, seen = trained(Lawa(last))
    _, plain = trained(Independent())
    for own, alone in zip(seen, plain, strict=True):  # the training is what it would be without
        for a, b in zip(own[-1], alone[-1], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    for peer, epochs in zip(run.peers, seen, strict=True):
        for found, *values in zip(peer.get_weights(), *epochs[-counted:], strict=True):
            np.testing.assert_allclose(found, np.mean(values, axis=0), rtol=1e-5, atol=1e-6)


def test_four_fits_are_one():
    whole, _ = trained(Lawa(3))
    run, _ = trained(Lawa(3), epochs=1)
    for _ in range(3):
        run.fit(X, Y, batch_size=8, epochs=1, verbose=0)
    for own, other in zip(whole.peers, run.peers, strict=True):
        for a, b in zip(own.get_weights(), other.get_weights(), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_weights_that_somebody_has_set_since_stay():
    run, _ = trained(Lawa(2))
    given = [np.ones_like(own) for own in run.peers[0].get_weights()]
    run.peers[0].set_weights(given)

    class First(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == 0:
                found.append(self.model.get_weights())

    found = []
    run.fit(X, Y, batch_size=8, epochs=1, verbose=0, callbacks=[First()])
    for a, b in zip(found[0], given, strict=True):
        np.testing.assert_array_equal(a, b)


def test_epochs_of_a_network_that_was_replaced_do_not_count():
    run, before = trained(Lawa(3))
    run.peers[0].set_weights(network(7).get_weights())
    seen = [Seen(), Seen()]
    run.fit(X, Y, batch_size=8, epochs=1, verbose=0, callbacks=lambda k: [seen[k]])
    for found, value in zip(run.peers[0].get_weights(), seen[0].weights[0], strict=True):
        np.testing.assert_array_equal(found, value)
    others = zip(run.peers[1].get_weights(), *before[1][-2:], seen[1].weights[0], strict=True)
    for found, *values in others:  # the other one has gone on
        np.testing.assert_allclose(found, np.mean(values, axis=0), rtol=1e-5, atol=1e-6)


def test_it_goes_on_where_it_was_broken_off(tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    whole, _ = trained(Lawa(3))
    run = kgraft.GraftingFit([network(0), network(1)], mixer=Lawa(3))
    with pytest.raises(KeyboardInterrupt):
        run.fit(X, Y, batch_size=8, epochs=4, verbose=0, callbacks=[Stop()], checkpoint=tmp_path)
    resumed = kgraft.GraftingFit([network(0), network(1)], mixer=Lawa(3))
    resumed.fit(X, Y, batch_size=8, epochs=4, verbose=0, checkpoint=tmp_path)
    for own, other in zip(whole.peers, resumed.peers, strict=True):
        for a, b in zip(own.get_weights(), other.get_weights(), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("last", [0, -1, 2.5, None])
def test_a_number_of_epochs_that_is_none_is_refused(last):
    with pytest.raises(kgraft.UserError, match="last"):
        Lawa(last)


@pytest.mark.core
def test_beside_a_fit_model_and_peer_end_as_means():
    class Ends(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            ends.append([own.get_weights() for own in (self.model, peer)])

    ends, model, peer = [], network(0), network(1)
    grafting = kgraft.GraftCallback([peer], mixer=Lawa(2))
    model.fit(X, Y, batch_size=8, epochs=3, verbose=0, callbacks=[grafting, Ends()])
    for k, own in enumerate((model, peer)):
        for found, *values in zip(own.get_weights(), *(e[k] for e in ends[-2:]), strict=True):
            np.testing.assert_allclose(found, np.mean(values, axis=0), rtol=1e-5, atol=1e-6)
