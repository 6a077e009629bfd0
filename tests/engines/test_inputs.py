"""Inputs that a model cannot take are refused alike by every engine, in one line, before a step."""

import keras
import numpy as np
import pytest

from kgraft import GraftCallback, GraftingFit, UserError

pytestmark = pytest.mark.core
Y = np.arange(8) % 3
WRONG = {
    "channels": ((8, 8, 8, 1), (8, 8, 8, 2), r"\(None, 8, 8, 2\): .* value 1"),
    "too small": ((8, 8, 8, 1), (8, 2, 8, 1), r"\(None, 2, 8, 1\): "),
    "rank": ((8, 8, 8, 2), (8, 8, 8), r"\(None, 8, 8\): Invalid input shape for input\. "),
    "width": ((8, 6), (8, 7), r"\(None, 7\): .* value 6"),
    "keys": ({"a": (8, 6), "b": (8, 6)}, {"a": (8, 6), "c": (8, 6)}, 'Missing data for input "b"'),
    "number": ({"a": (8, 6), "b": (8, 6)}, {"a": (8, 6)}, 'Missing data for input "b"'),
    "second": ({"a": (8, 6), "b": (8, 6)}, {"a": (8, 6), "b": (8, 5)}, "Input 1"),
}


def network(shape):
    layers = keras.layers
    if isinstance(shape, dict):
        inputs = {name: keras.Input(own[1:], name=name) for name, own in shape.items()}
        total = layers.Add()([layers.Dense(4)(own) for own in inputs.values()])
        model = keras.Model(inputs, layers.Dense(3)(total))
    else:
        own = [layers.Conv2D(4, 3), layers.GlobalAveragePooling2D()] if len(shape) == 4 else []
        normal = layers.BatchNormalization()
        model = keras.Sequential([keras.Input(shape[1:]), normal, *own, layers.Dense(3)])
    return model


def compiled(shape):
    model = network(shape)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss, metrics=["accuracy"])
    return model


def numbers(shape):
    if isinstance(shape, dict):
        return {name: numbers(own) for name, own in shape.items()}
    return np.random.default_rng(0).random(shape).astype("float32")


@pytest.mark.parametrize("engine", ["eager", "compiled"])
@pytest.mark.parametrize("case", WRONG)
def test_every_kind_of_step_refuses_what_keras_refuses(case, engine):
    right, wrong, told = WRONG[case]
    run = GraftingFit([compiled(right), compiled(right)], engine=engine)
    told = rf"^model '\w+' cannot take inputs of shape .*{told}.* Expected \S.*\.$"
    with pytest.raises(UserError, match=told):
        run.fit(numbers(wrong), Y, batch_size=4, verbose=0)
    run.fit(numbers(right), Y, batch_size=4, verbose=0)
    before = [peer.get_weights() for peer in run.peers]
    with pytest.raises(UserError, match=told):
        run.fit(numbers(wrong), Y, batch_size=4, verbose=0)
    for peer, own in zip(run.peers, before, strict=True):
        assert all(map(np.array_equal, peer.get_weights(), own))
    with pytest.raises(UserError, match=told):
        run.evaluate(numbers(wrong), Y, verbose=0)
    with pytest.raises(UserError, match=told):
        run.fit(numbers(right), Y, verbose=0, validation_data=(numbers(wrong), Y))
    with pytest.raises(UserError, match=told):
        run.predict(numbers(wrong))


@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_a_peers_own_data_are_refused_as_fits_would_be(engine):
    shape, wrong, told = WRONG["channels"]
    peer = network(shape)
    before = peer.get_weights()
    callback = GraftCallback([peer], data=(numbers(wrong), Y), engine=engine)
    with pytest.raises(UserError, match=told):
        compiled(shape).fit(numbers(shape), Y, verbose=0, callbacks=[callback])
    assert all(map(np.array_equal, peer.get_weights(), before))


@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_what_teachers_cannot_take_is_told_alike(engine):
    shape, wrong, told = WRONG["width"]
    run = GraftingFit([compiled(shape)], [network(shape)], engine=engine)
    with pytest.raises(UserError, match=told):
        run.fit(numbers(wrong), Y, verbose=0)


@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_a_model_without_a_graph_is_asked_after_its_step_has_failed(engine):
    class Around(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = network((8, 8, 8, 1))

        def call(self, x, training=None):
            return self.inner(x, training=training)

    model = Around()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    run = GraftingFit([model], engine=engine)
    run.fit(numbers((8, 8, 8, 1)), Y, verbose=0)
    with pytest.raises(UserError, match=r"^model 'around\w*' cannot take .* value 1"):
        run.fit(numbers((8, 8, 8, 2)), Y, verbose=0)


@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_images_of_another_size_are_taken_as_keras_takes_them(engine):
    model = compiled((8, 8, 8, 1))
    large = numbers((8, 10, 10, 1))
    expected = keras.ops.convert_to_numpy(model(large, training=False))
    found = GraftingFit([model], engine=engine).predict(large)[0]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_errors_that_are_not_of_the_inputs_stay_what_they_are():
    class Failing(keras.losses.Loss):
        def call(self, y_true, y_pred):
            raise ZeroDivisionError("of a loss")

    model = network((8, 6))
    model.compile("sgd", Failing(), run_eagerly=True)
    with pytest.raises(ZeroDivisionError, match="of a loss"):
        GraftingFit([model], engine="eager").fit(numbers((8, 6)), Y, verbose=0)
