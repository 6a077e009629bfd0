"""Peers whose weights are not finite: they start again where that is asked for, or the run ends."""

import keras
import numpy as np
import pytest

from kgraft import DivergedError, GraftCallback
from kgraft.grafting import FixedGraft, Graft, Independent
from kgraft.training.fit import GraftingFit
from tests.training.test_fit import digits, network

pytestmark = pytest.mark.core
DATA = digits()


class Poison(keras.callbacks.Callback):
    """A peer's weights and momenta are lost in some epoch."""

    def __init__(self, models, epoch=1):
        super().__init__()
        self.models, self.epoch = models, epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            for model in self.models:
                for variable in [*model.trainable_variables, *model.optimizer.variables]:
                    if keras.backend.is_float_dtype(variable.dtype) and variable.shape:
                        variable.assign(np.full(variable.shape, np.nan))


def finite(model):
    return all(np.isfinite(weight).all() for weight in model.get_weights())


def momenta(model):
    kept = (model.optimizer.iterations, model.optimizer._learning_rate)
    return [
        keras.ops.convert_to_numpy(own.value)
        for own in model.optimizer.variables
        if not any(own is other for other in kept)
    ]


class Watched(Graft):
    """Keeps the weights before and after the last grafting."""

    name = ""

    def apply(self, peers, state, moment):
        before = [model.get_weights() for model in peers.models]
        done = super().apply(peers, state, moment)
        after = [model.get_weights() for model in peers.models]
        SEEN[:] = [before, after, done[1], [momenta(m) for m in peers.trained]]
        return done


SEEN = []


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_sick_peer_starts_again_from_its_donor(caplog, optimizer):
    peers = [network(lr=0.01 * (k + 1)) for k in range(3)]
    if optimizer == "adam":
        for peer in peers:
            peer.compile(keras.optimizers.Adam(0.001), peer.loss)
    run = GraftingFit(peers, mixer=Watched(revive=True))
    with caplog.at_level("WARNING", "kgraft"):
        run.fit(*DATA, epochs=2, verbose=0, callbacks=[Poison([peers[1]])])
    assert "peer 2 has weights that are not finite: it starts again from those of peer 1" in (
        caplog.text
    )
    before, after, record, state = SEEN
    assert record.sick == {1} and record.donors == (2, 0, 0)
    np.testing.assert_array_equal(record.coefficients[1], 0.0)
    for own, donor in zip(after[1], before[0], strict=True):
        np.testing.assert_array_equal(own, donor)
    for k, donor in ((0, 2), (2, 0)):
        alpha = record.coefficients[k, 0]
        for own, mine, theirs in zip(after[k], before[k], before[donor], strict=True):
            np.testing.assert_allclose(own, alpha * mine + (1 - alpha) * theirs, atol=1e-6)
    assert all((own == 0).all() for own in state[1])
    assert any((own != 0).any() for own in state[0])
    assert int(keras.ops.convert_to_numpy(peers[1].optimizer.iterations)) == 4
    run.fit(*DATA, epochs=1, verbose=0)
    assert all(map(finite, peers))


def test_by_default_it_stays_as_it_is():
    peers = [network(lr=0.01 * (k + 1)) for k in range(3)]
    run = GraftingFit(peers)
    run.fit(*DATA, epochs=2, verbose=0, callbacks=[Poison([peers[1]])])
    assert list(map(finite, peers)) == [True, False, True]
    assert run.records[-1][1].donors == (2, None, 0)


@pytest.mark.parametrize("mixer", [Graft(revive=True), FixedGraft(), Independent()])
def test_a_run_without_a_living_peer_ends(mixer):
    peers = [network(lr=0.01) for _ in range(2)]
    run = GraftingFit(peers, mixer=mixer)
    with pytest.raises(DivergedError, match=r"^epoch 2: no peer has finite weights any more"):
        run.fit(*DATA, epochs=5, verbose=0, callbacks=[Poison(peers)])


def test_so_does_a_fit_with_a_callback():
    model, peer = network(lr=0.01), network(lr=0.02)
    spoilt = DATA[0].copy()
    spoilt[-1] = np.nan
    with pytest.raises(DivergedError, match=r"^epoch 1: no peer has finite weights any more"):
        model.fit(spoilt, DATA[1], epochs=3, verbose=0, callbacks=[GraftCallback([peer])])


def test_a_single_network_too():
    peer = network(lr=0.01)
    with pytest.raises(DivergedError, match=r"^epoch 2: the model has no finite weights"):
        GraftingFit([peer]).fit(*DATA, epochs=5, verbose=0, callbacks=[Poison([peer])])
