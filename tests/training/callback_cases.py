"""Tiny networks and data for the tests of GraftCallback."""

import keras
import numpy as np
from keras import layers

BACKEND = keras.config.backend()
COUNT, BATCH = 22, 4  # six batches, the last one partial


def arrays(count=COUNT, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, 8, 8, 1)).astype("float32"), rng.integers(0, 3, count)


def network(seed, filters=3, dropout=0.3):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(filters, 3),
            layers.BatchNormalization(momentum=0.7),
            layers.ReLU(),
            layers.Dropout(dropout, seed=seed),
            layers.Flatten(),
            layers.Dense(3),
        ],
        name=f"net{seed}",
    )


def compile_(model, learning_rate=0.05, **options):
    model.compile(
        optimizer=keras.optimizers.SGD(learning_rate, momentum=0.9),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        **options,
    )
    return model


def compiled(seed, filters=3, learning_rate=0.05, **options):
    return compile_(network(seed, filters), learning_rate, **options)


def batches(x, y, size=BATCH):
    return [(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]


def everything(model):
    """Weights, seeds and optimizer of a model, as NumPy copies."""
    variables = [*model.variables, *model.optimizer.variables]
    return [keras.ops.convert_to_numpy(v.value).copy() for v in variables]


def assert_same(left, right):
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        np.testing.assert_array_equal(one, other)


def differ(left, right):
    return any(not np.array_equal(one, other) for one, other in zip(left, right, strict=True))


def assert_usable(model, x, y):
    """It predicts, evaluates and trains, and its weights are finite."""
    assert model.predict(x, verbose=0).shape == (len(x), 3)
    assert np.isfinite(model.evaluate(x, y, verbose=0)).all()
    before = model.get_weights()
    model.train_on_batch(x, y)
    assert all(np.isfinite(weight).all() for weight in model.get_weights())
    assert differ(before, model.get_weights())


def taught(model, batches_, epochs=1):
    """Everything of a model after a `fit` on these batches in this order."""
    model.fit(Listed(batches_), epochs=epochs, shuffle=False, verbose=0)
    return everything(model)


class Listed(keras.utils.PyDataset):
    """Batches in a list."""

    def __init__(self, batches_):
        super().__init__()
        self.batches = batches_

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


class Pairs(keras.utils.PyDataset):
    """Batches of arrays, `(x, y)` or `(x, y, sample_weight)`."""

    def __init__(self, *parts, size=BATCH):
        super().__init__()
        self.parts, self.size = parts, size

    def __len__(self):
        return -(-len(self.parts[0]) // self.size)

    def __getitem__(self, index):
        part = slice(index * self.size, (index + 1) * self.size)
        return tuple(values[part] for values in self.parts)
