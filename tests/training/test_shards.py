import keras
import numpy as np
import pytest

from kgraft.data import Augment, BatchStream
from kgraft.engines.backends.lazy import gathered
from kgraft.engines.replicas import Replicas
from kgraft.training.batches import Limited, first_batch, side_by_side
from kgraft.training.distiller import Taught
from kgraft.training.feeds import feed_of
from kgraft.training.shards import Shard, shards

pytestmark = pytest.mark.skipif(keras.config.backend() != "torch", reason="replicas need torch")


def replica(number, count):
    return Replicas(number, count, lambda flat: None)


def as_numpy(batch):
    return [
        np.array(keras.ops.convert_to_numpy(part))
        for part in keras.tree.flatten(batch)
        if part is not None
    ]


class Batches:
    """Batches of nests, of a feed that gathers none late."""

    def __init__(self, sizes):
        self.sizes, self.steps = sizes, len(sizes)

    def for_peer(self, peer):
        return Batches([size + peer for size in self.sizes])

    def epoch(self, epoch):
        for size in self.sizes:
            rows = np.arange(size) + 100 * epoch
            yield {"a": rows, "b": (rows * 2, None)}, Taught(rows * 3, rows * 4), rows * 5


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_parts_are_those_of_array_split(count):
    sizes = list(range(count, 14))
    whole = list(Batches(sizes).epoch(1))
    for number in range(count):
        shard = Shard(Batches(sizes), replica(number, count))
        assert shard.steps == len(sizes)
        for batch, own in zip(whole, shard.epoch(1), strict=True):
            rows = np.array_split(batch[2] // 5, count)[number]
            x, y, weights = own
            assert isinstance(y, Taught) and x["b"][1] is None
            for k, part in enumerate((x["a"], x["b"][0], y.targets, y.probabilities, weights)):
                np.testing.assert_array_equal(part, rows * (k + 1))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_batch_with_fewer_examples_than_replicas_goes_to_all(number):
    shard = Shard(Batches([2, 1, 3]), replica(number, 3))
    assert [len(weights) for *_, weights in shard.epoch(0)] == [2, 1, 1]
    assert [len(weights) for *_, weights in shard.for_peer(1).epoch(0)] == [1, 2, 2 - (number > 0)]


def streams():
    images = np.random.default_rng(0).integers(0, 256, (11, 6, 6, 3)).astype("uint8")
    options = {"batch_size": 4, "seed": 5, "peer": 1, "augment": Augment(pad=2)}
    labels = np.arange(11)
    return [
        BatchStream(images, labels, **options),
        BatchStream(images, labels, resident=False, **options),
        Limited(BatchStream(images, labels, **options), 2),
        feed_of(images, labels, batch_size=4, seed=5),
        feed_of(images, labels, batch_size=4, class_weight={1: 2.0}),
    ]


@pytest.mark.parametrize("feed", range(5))
@pytest.mark.parametrize("count", [2, 3])
def test_parts_put_together_are_the_batches_crops_and_all(feed, count):
    feed = streams()[feed]
    parts = [list(Shard(feed, replica(number, count)).epoch(2)) for number in range(count)]
    for batch, *own in zip(feed.epoch(2), *parts, strict=True):
        joined = [np.concatenate(leaves) for leaves in zip(*map(as_numpy, own), strict=True)]
        for part, wanted in zip(joined, as_numpy(batch), strict=True):
            np.testing.assert_array_equal(part, wanted)


def test_of_batches_that_are_gathered_late_only_the_part_is_gathered():
    feed = feed_of(np.zeros((8, 3), "float32"), np.arange(8), batch_size=4)
    seen = []
    gather = type(feed)._gather

    class Counted(type(feed)):
        def _gather(self, index):
            seen.append(len(index))
            return gather(self, index)

    counted = Counted(feed.arrays, 4)
    list(Shard(counted, replica(0, 2)).epoch(0))
    assert seen == [2, 2]


def test_peers_with_one_feed_in_common_get_the_very_same_part():
    one, other = Batches([4]), Batches([4])
    made = shards([one, other, one], replica(1, 2))
    assert made[0] is made[2] and made[0] is not made[1]
    (drawn,) = side_by_side(made, 0, lazy=True)
    assert drawn[0] is drawn[2] and len(gathered(drawn[0])[2]) == 2
    assert len(first_batch(made[0])[2]) == 2
