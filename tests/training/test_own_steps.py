"""Steps of a model's own get what Keras hands them: two parts of a batch, three, or one."""

import keras
import numpy as np
import pytest

import kgraft
from kgraft.grafting import Independent

pytestmark = pytest.mark.core

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(24, 4)).astype("float32")
Y = RANDOM.integers(0, 3, 24)
WEIGHTS = np.linspace(0.5, 1.5, 24).astype("float32")


class TwoParts(keras.Model):
    """As in Keras' guides: `x, y = data`."""

    parts = 2

    def train_step(self, *arguments):
        *state, data = arguments
        assert len(data) == self.parts
        return super().train_step(*state, data)

    def test_step(self, *arguments):
        *state, data = arguments
        assert len(data) == self.parts
        return super().test_step(*state, data)

    def predict_step(self, *arguments):
        *state, data = arguments
        return super().predict_step(*state, data * 2)


class ThreeParts(TwoParts):
    parts = 3


def made(kind, seed=0):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((4,))
    outputs = keras.layers.Dense(3)(keras.layers.Dense(5, activation="relu")(inputs))
    model = kind(inputs, outputs)
    model.compile(kgraft.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


@pytest.mark.parametrize("engine", ["auto", "eager"])
@pytest.mark.parametrize("kind", [TwoParts, ThreeParts])
def test_they_train_validate_and_predict_as_in_keras(kind, engine):
    weights = WEIGHTS if kind is ThreeParts else None
    parts = (X, Y) if weights is None else (X, Y, WEIGHTS)
    options = {"batch_size": 8, "epochs": 2, "verbose": 0, "shuffle": False}
    plain = made(kind)
    expected = plain.fit(X, Y, sample_weight=weights, validation_data=parts, **options)
    run = kgraft.GraftingFit([made(kind), made(kind, 1)], mixer=Independent(), engine=engine)
    found, _ = run.fit(X, Y, sample_weight=weights, validation_data=parts, **options)
    for name in ("loss", "val_loss"):
        np.testing.assert_allclose(found.history[name], expected.history[name], rtol=1e-5)
    np.testing.assert_allclose(
        run.predict(X, batch_size=8, verbose=0)[0],
        plain.predict(X, verbose=0),
        rtol=1e-5,
        atol=1e-6,
    )
    evaluated = run.evaluate(X, Y, sample_weight=weights, batch_size=8, verbose=0)[0]
    expected = plain.evaluate(X, Y, sample_weight=weights, batch_size=8, verbose=0)
    assert evaluated["loss"] == pytest.approx(expected, rel=1e-5)


def test_peers_of_a_callback_get_the_same():
    model, peer = made(TwoParts), made(TwoParts, 1)
    model.fit(X, Y, batch_size=8, epochs=2, verbose=0, callbacks=[kgraft.GraftCallback([peer])])
    assert int(peer.optimizer.iterations) == 6
