"""Teachers are asked once a batch, or once a run, and say the same."""

import keras
import numpy as np
import pytest
from keras import layers

import kgraft
from kgraft.data import Augment, BatchStream
from kgraft.equations import mean_probabilities
from kgraft.training.distiller import Distiller, Taught, distil
from kgraft.training.feeds import feed_of
from kgraft.training.fit import GraftingFit
from kgraft.training.teaching import Classrooms, Teaching

pytestmark = pytest.mark.core

SHAPE, CLASSES = (8, 8, 1), 3


@keras.saving.register_keras_serializable("test")
class Counting(layers.Layer):
    """Counts how often it is run (on jax and tensorflow: traced)."""

    calls = 0

    def call(self, x):
        type(self).calls += 1
        return x


def network(seed, counting=False):
    keras.utils.set_random_seed(seed)
    x = inputs = keras.Input(SHAPE)
    x = layers.Activation("relu")(layers.Conv2D(4, 3)(x))
    x = Counting()(x) if counting else x
    return keras.Model(inputs, layers.Dense(CLASSES)(layers.GlobalAveragePooling2D()(x)))


def student(seed, rate=0.05):
    model = network(seed)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(kgraft.SGD(rate), loss, metrics=["accuracy"])
    return model


def arrays(count=24):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, *SHAPE), dtype=np.uint8)
    return images, rng.integers(0, CLASSES, count)


def numpy(x):
    return keras.ops.convert_to_numpy(x)


def stream(**options):
    options = {"augment": Augment(0, False), **options}
    return BatchStream(*arrays(), batch_size=8, seed=0, peer=0, **options)


def test_a_taught_batch_holds_the_teachers_mean_probabilities():
    teachers = [network(8), network(9)]
    x = np.float32(arrays()[0]) / 255
    batch = Teaching(teachers, 3.0).of((x, np.zeros(24), np.ones(24)))
    expected = mean_probabilities([teacher(x, training=False) for teacher in teachers], 3.0)
    assert isinstance(batch[1], Taught) and len(batch) == 3
    np.testing.assert_allclose(numpy(batch[1].probabilities), numpy(expected), atol=1e-6)


def test_a_distiller_learns_the_same_from_taught_targets():
    teacher = network(9)
    x, y = np.float32(arrays()[0]) / 255, arrays()[1]
    asking, told = (distil(student(1), [teacher]) for _ in range(2))
    asking.train_on_batch(x, y)
    told.train_on_batch(*Teaching([teacher], 2.0).of((x, y)))
    assert asking.get_metrics_result().keys() == told.get_metrics_result().keys()
    for name, value in asking.get_metrics_result().items():
        np.testing.assert_allclose(
            float(told.get_metrics_result()[name]), float(value), rtol=1e-5, err_msg=name
        )
    for own, other in zip(told.student.get_weights(), asking.student.get_weights(), strict=True):
        np.testing.assert_allclose(own, other, atol=1e-6)


@pytest.mark.parametrize("kind", ["arrays", "stream"])
def test_images_that_never_change_are_predicted_once_in_any_order(kind):
    teacher = network(9)
    images, labels = arrays()
    feed = stream() if kind == "stream" else feed_of(np.float32(images) / 255, labels, batch_size=8)
    taught = Teaching([teacher], 2.0).feed(feed)
    for epoch in (0, 1):
        pairs = zip(taught.for_peer(2).epoch(epoch), feed.for_peer(2).epoch(epoch), strict=True)
        for (x, y, *_), (same_x, same_y, *_) in pairs:
            np.testing.assert_array_equal(numpy(x), numpy(same_x))
            np.testing.assert_array_equal(numpy(y.targets), numpy(same_y))
            expected = mean_probabilities([teacher(x, training=False)], 2.0)
            np.testing.assert_allclose(numpy(y.probabilities), numpy(expected), atol=1e-6)


def test_augmented_images_are_predicted_batch_by_batch():
    assert Teaching([network(9)], 2.0).feed(stream(augment=Augment(1))) is None


@pytest.mark.skipif(keras.config.backend() != "torch", reason="elsewhere a trace runs")
@pytest.mark.parametrize(
    ("options", "augment", "passes"),
    [
        # 3 batches of images that never change: once, whatever the epochs and peers
        ({"epochs": 4}, Augment(0, False), 3),
        # 2 epochs of 3 batches for each of 2 peers
        ({"epochs": 2}, Augment(1), 2 * 3 * 2),
        ({"epochs": 2, "shared_batches": True}, Augment(1), 2 * 3),
    ],
)
def test_teachers_run_no_oftener_than_they_must(options, augment, passes):
    teacher = network(9, counting=True)
    run = GraftingFit([student(1), student(2)], [teacher])
    run.fit(stream(augment=augment), epochs=1, verbose=0)  # builds the trainees
    Counting.calls = 0
    GraftingFit(run.peers, [teacher]).fit(stream(augment=augment), verbose=0, **options)
    assert Counting.calls == passes


def test_shared_batches_are_the_first_peers():
    alone = GraftingFit([student(2)], seed=3)
    alone.fit(stream(augment=Augment(1)), epochs=1, verbose=0)
    twins = GraftingFit([student(1), student(2)], epochs_grafted=0, seed=3)
    twins.fit(stream(augment=Augment(1)), epochs=1, verbose=0, shared_batches=True)
    for own, other in zip(twins.peers[1].get_weights(), alone.peers[0].get_weights(), strict=True):
        np.testing.assert_allclose(own, other, atol=1e-6)


def test_distillers_of_one_classroom_share_a_pass():
    teacher = network(9)
    rooms = Classrooms()
    x, y = np.float32(arrays()[0]), arrays()[1]
    first, second = (Distiller(network(k), [teacher]) for k in (1, 2))
    other = Distiller(network(3), [teacher], temperature=4.0)
    batch = (x, y)
    one, two, three = (rooms.taught(model, batch) for model in (first, second, other))
    assert one[1].probabilities is two[1].probabilities
    assert three[1].probabilities is not one[1].probabilities
    assert rooms.taught(network(4), batch) is batch
