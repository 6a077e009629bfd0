"""Averages that optimizers keep of weights (`use_ema`): grafted as the weights are."""

import keras
import numpy as np
import pytest

from kgraft import GraftCallback
from kgraft.grafting import Average, FilterGraft, FixedGraft, Graft, Independent, Noise
from kgraft.training.fit import GraftingFit
from tests.training.test_fit import digits, network

pytestmark = pytest.mark.core
DATA = digits()
RATES = (0.1, 0.05, 0.02)


def averaging(lr, **options):
    model = network(lr=lr)
    model.compile(
        keras.optimizers.SGD(lr, momentum=0.5, use_ema=True, ema_momentum=0.9, **options),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def averages(model):
    kept = model.optimizer._model_variables_moving_average
    return [keras.ops.convert_to_numpy(average.value).copy() for average in kept]


def trained(model):
    return [keras.ops.convert_to_numpy(v.value).copy() for v in model.trainable_variables]


def watched(mixer):
    """A mixer whose last mixing is kept: averages and weights of all peers, before and after."""

    class Watched(type(mixer)):
        name = ""

        def apply(self, peers, state, moment):
            look = [[(averages(m), trained(m)) for m in peers.models]]
            done = mixer.apply(peers, state, moment)
            seen[:] = [*look, [(averages(m), trained(m)) for m in peers.models], done[1]]
            return done

    seen = []
    return Watched(), seen


@pytest.mark.parametrize("driver", ["run", "callback"])
def test_a_peer_ends_with_averages_that_were_blended_as_its_weights(driver):
    peers = [averaging(lr) for lr in RATES]
    mixer, seen = watched(Graft(sharpness=2.0))
    if driver == "run":
        GraftingFit(peers, mixer=mixer).fit(*DATA, batch_size=16, epochs=2, verbose=0)
    else:
        grafting = GraftCallback(peers[1:], mixer=mixer, data=DATA)
        peers[0].fit(*DATA, batch_size=16, epochs=2, verbose=0, callbacks=[grafting])
    before, after, record = seen
    for k, own in enumerate(peers):
        (alpha,) = record.coefficients[k]  # all ride with the one convolution
        assert 0.3 < alpha < 0.7
        for i in range(len(before[k][0])):
            wanted = alpha * before[k][0][i] + (1 - alpha) * before[k - 1][0][i]
            np.testing.assert_allclose(after[k][0][i], wanted, atol=1e-6)
            np.testing.assert_allclose(trained(own)[i], wanted, atol=1e-6)
        assert any(
            np.abs(a - w).max() > 1e-3 for a, w in zip(*before[k], strict=True)
        )  # averages are something else than weights


def test_two_peers_that_share_half_end_as_one():
    peers = [averaging(lr) for lr in RATES[:2]]
    GraftingFit(peers, mixer=FixedGraft(0.5)).fit(*DATA, epochs=2, verbose=0)
    for a, b in zip(*map(trained, peers), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_the_averages_of_all_go_on_from_their_mean():
    peers = [averaging(lr) for lr in RATES]
    mixer, seen = watched(Average())
    GraftingFit(peers, mixer=mixer).fit(*DATA, epochs=1, verbose=0)
    before, after, _ = seen
    for i in range(len(before[0][0])):
        mean = np.mean([own[0][i] for own in before], axis=0)
        for own in after:
            np.testing.assert_allclose(own[0][i], mean, atol=1e-6)


@pytest.mark.parametrize("mixer", [Noise(threshold=1e3), FilterGraft()], ids=["noise", "filter"])
def test_what_is_replaced_moves_its_average_by_as_much(mixer):
    peers = [averaging(lr) for lr in RATES[:2]]
    mixer, seen = watched(mixer)
    GraftingFit(peers, mixer=mixer).fit(*DATA, epochs=1, verbose=0)
    before, after, _ = seen
    moved = 0.0
    for (average, weights), (average_after, weights_after) in zip(before, after, strict=True):
        for a, w, a_after, w_after in zip(
            average, weights, average_after, weights_after, strict=True
        ):
            np.testing.assert_allclose(a_after - a, w_after - w, atol=1e-5)
            moved = max(moved, np.abs(w_after - w).max())
    assert moved > 0.01


def test_weights_stand_for_the_averages_of_a_peer_that_keeps_none():
    peers = [averaging(0.1), network(lr=0.05)]
    seen = []

    class Watched(FixedGraft):
        name = ""

        def apply(self, peers, state, moment):
            before = averages(peers.models[0]), trained(peers.models[1])
            done = super().apply(peers, state, moment)
            seen[:] = [*before, averages(peers.models[0])]
            return done

    GraftingFit(peers, mixer=Watched(0.25)).fit(*DATA, epochs=1, verbose=0)
    for average, weight, after in zip(*seen, strict=True):
        np.testing.assert_allclose(after, 0.25 * average + 0.75 * weight, atol=1e-6)


def test_networks_that_are_left_alone_keep_their_own():
    peers = [averaging(lr) for lr in RATES[:2]]
    twin = keras.models.clone_model(peers[1])
    twin.set_weights(peers[1].get_weights())
    twin.compile(keras.optimizers.SGD.from_config(peers[1].optimizer.get_config()), peers[1].loss)
    run = GraftingFit(peers, mixer=Independent(), engine="eager")
    run.fit(*DATA, epochs=2, batch_size=60, shuffle=False, verbose=0)
    twin.fit(*DATA, epochs=2, batch_size=60, shuffle=False, verbose=0)
    for a, b in zip(trained(peers[1]), trained(twin), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
