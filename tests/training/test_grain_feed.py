"""grain's data sets: whose epoch is which, and what cannot be read."""

import keras
import numpy as np
import pytest

import kgraft
from kgraft.errors import UserError
from kgraft.training.feeds import feed_of, validation_feed
from kgraft.training.grain_feed import GrainFeed

grain = pytest.importorskip("grain")

COUNT = 22
X = np.random.default_rng(0).normal(size=(COUNT, 3)).astype("float32")
Y = np.arange(COUNT) % 2


def data_set(*, shuffled=True):
    found = grain.MapDataset.source(list(range(COUNT)))
    found = found.seed(5).shuffle() if shuffled else found
    return found.map(lambda i: (X[i], np.int32(i))).batch(4)


def numbers(feed, epoch):
    return [int(i) for _, y in feed.epoch(epoch) for i in keras.ops.convert_to_numpy(y)]


@pytest.mark.core
def test_peers_and_epochs_have_orders_of_their_own_that_are_known_by_their_numbers():
    feed = feed_of(data_set())
    assert isinstance(feed, GrainFeed) and feed.steps == 6
    orders = [numbers(feed.for_peer(k), epoch) for k in range(2) for epoch in range(3)]
    assert all(sorted(own) == list(range(COUNT)) for own in orders)
    assert len({tuple(own) for own in orders}) == 6
    grains_own = [int(i) for b in data_set().repeat(2).to_iter_dataset() for i in b[1]]
    assert orders[0] + orders[1] == grains_own
    assert numbers(feed_of(data_set()).for_peer(1), 2) == orders[5]
    assert numbers(feed_of(data_set(shuffled=False)).for_peer(1), 2) == list(range(COUNT))


def test_an_endless_data_set_has_as_many_steps_as_it_is_given():
    feed = feed_of(data_set().repeat(), steps=3)
    assert feed.steps == 3 and len(list(feed.epoch(1))) == 3
    with pytest.raises(UserError, match="without end: give steps_per_epoch"):
        feed_of(data_set().repeat())


@pytest.mark.core
def test_peers_are_trained_and_go_on(tmp_path):
    def peers():
        found = []
        for k in range(2):
            keras.utils.set_random_seed(k)
            model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(COUNT)])
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            model.compile(kgraft.SGD(0.1), loss, metrics=["accuracy"])
            found.append(model)
        return found

    whole = peers()
    histories = kgraft.GraftingFit(whole).fit(
        data_set(), epochs=3, verbose=0, validation_data=data_set(shuffled=False)
    )
    assert len(histories[0].history["val_loss"]) == 3
    first, again = peers(), peers()
    kgraft.GraftingFit(first).fit(data_set(), epochs=2, verbose=0, checkpoint=tmp_path)
    kgraft.GraftingFit(again).fit(data_set(), epochs=3, verbose=0, checkpoint=tmp_path)
    for own, other in zip(whole, again, strict=True):
        for a, b in zip(own.get_weights(), other.get_weights(), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (lambda: grain.MapDataset.source([]), "of length 0"),
        (lambda: grain.MapDataset.source([1, 2]), r"expected batches \(x, y\)"),
        (
            lambda: grain.MapDataset.source([(np.ones((8, 8, 1)), 1)] * 2),
            "gives single examples: expected batches",
        ),
    ],
)
def test_what_is_no_set_of_batches_is_told_in_one_line(data, said):
    with pytest.raises(UserError, match=said):
        list(feed_of(data()).epoch(0))
    with pytest.raises(UserError, match="batch_size cannot be given with a"):
        feed_of(data_set(), batch_size=3)


def test_validation_reads_it_in_its_own_order():
    feed = validation_feed(data_set(shuffled=False), steps=2)
    assert numbers(feed, 0) == numbers(feed, 1) == list(range(8))
