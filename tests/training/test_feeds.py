"""Feeds: each peer's batches from whatever fit takes, weighted, limited and told about."""

import logging

import keras
import numpy as np
import pytest

import kgraft
from kgraft import data
from kgraft.data.order import epoch_order
from kgraft.errors import UserError
from kgraft.grafting import Independent
from kgraft.training.batches import first_batch, side_by_side
from kgraft.training.feeds import feed_of, feeds_of, in_one_order, validation_feed
from kgraft.training.fit import GraftingFit
from tests.training.test_fit import digits, network

X, Y = digits()


class Batches(keras.utils.PyDataset):
    """Batch i holds the number i, twice; remembers what it was told."""

    def __init__(self, count=5, weighted=False, **options):
        super().__init__(**options)
        self.count, self.weighted, self.told = count, weighted, []

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        own = np.full((2, 1), index, np.float32), np.full(2, index % 3)
        return (*own, np.ones(2)) if self.weighted else own

    def on_epoch_begin(self):
        self.told.append("begin")

    def on_epoch_end(self):
        self.told.append("end")


class Endless(Batches):
    """The same without an end."""

    @property
    def num_batches(self):
        return None


def order(feed, epoch=0):
    return [int(keras.ops.convert_to_numpy(batch[0])[0, 0]) for batch in feed.epoch(epoch)]


@pytest.mark.core
@pytest.mark.parametrize("workers", [1, 3])
def test_every_peer_reads_the_batches_of_a_data_set_in_an_order_of_its_own(workers):
    feed = feed_of(Batches(9, workers=workers), seed=4)
    for peer in range(3):
        for epoch in range(2):
            expected = epoch_order(9, seed=4, peer=peer, epoch=epoch).tolist()
            assert order(feed.for_peer(peer), epoch) == expected
            assert order(feed.for_peer(peer), epoch) == expected
    assert order(feed_of(Batches(9, workers=workers), shuffle=False).for_peer(1)) == list(range(9))
    assert feed.steps == 9


@pytest.mark.skipif(keras.config.backend() == "tensorflow", reason="Keras peeks untold there")
def test_a_data_set_is_told_of_each_epoch_once_as_in_model_fit():
    def dense():
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(3)])
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        return model

    ours, theirs = Batches(), Batches()
    GraftingFit([dense() for _ in range(3)], mixer=Independent()).fit(ours, epochs=2, verbose=0)
    dense().fit(theirs, epochs=2, verbose=0)
    assert ours.told == theirs.told
    listed = Batches()
    peers = [dense() for _ in range(2)]
    GraftingFit(peers, mixer=Independent()).fit([listed, listed], epochs=2, verbose=0)
    assert listed.told == theirs.told


def test_an_endless_data_set_is_told_of_each_epoch_once():
    own = Endless()
    feeds = feeds_of(3, own, steps=2)
    told = len(own.told)
    drawn = [[batch[0][0, 0] for batch in batches] for batches in side_by_side(feeds, 0)]
    assert drawn == [[0, 0, 0], [1, 1, 1]]
    assert own.told[told:] == ["begin", "end"]
    assert [batch[0][0, 0] for batch in feeds[2].epoch(1)] == [2, 3]


def test_a_reader_that_is_ahead_ends_the_epoch_for_all():
    """Peers of a GraftCallback read pass after pass, none of them waits for the last batch."""
    own = Batches(2)
    first = feed_of(own)
    second = first.for_peer(1)
    streams = [first.epoch(0), second.epoch(0)]
    for _ in range(2):
        for stream in streams:
            next(stream)
    assert own.told == ["begin"]
    assert next(streams[0], None) is None
    streams[0] = first.epoch(1)
    next(streams[0])
    assert own.told == ["begin", "end", "begin"]
    assert next(streams[1], None) is None
    next(second.epoch(1))
    assert own.told == ["begin", "end", "begin"]


def test_an_epoch_that_is_left_early_is_over():
    own = Batches()
    feeds = feeds_of(2, own)
    drawn = side_by_side(feeds, 0)
    next(drawn)
    assert own.told == ["begin"]
    drawn.close()
    assert own.told == ["begin", "end"]
    assert first_batch(feeds[0])[0].shape == (2, 1)
    assert own.told == ["begin", "end", "begin", "end"]


def test_a_list_of_data_sets_gives_every_peer_an_order_of_its_own():
    feeds = feeds_of(2, [Batches(9), Batches(9)], seed=4)
    assert [order(feed) for feed in feeds] == [
        epoch_order(9, seed=4, peer=peer, epoch=0).tolist() for peer in range(2)
    ]


def test_arrays_in_tuples_are_one_data_set_a_peer():
    peers, alone = [network(), network()], [network(), network()]
    for a, b in zip(peers, alone, strict=True):
        b.set_weights(a.get_weights())
    half = [(X[:30], Y[:30]), (X[30:], Y[30:], np.linspace(0, 1, 30))]
    GraftingFit(peers, mixer=Independent()).fit(half, batch_size=10, shuffle=False, verbose=0)
    for model, (x, y, *weights) in zip(alone, half, strict=True):
        weights = weights[0] if weights else None
        model.fit(x, y, sample_weight=weights, batch_size=10, shuffle=False, verbose=0)
    for a, b in zip(peers, alone, strict=True):
        for weight, value in zip(a.get_weights(), b.get_weights(), strict=True):
            np.testing.assert_allclose(weight, value, atol=1e-5)
    orders = feeds_of(2, [(X, Y), (X, Y)], seed=1, batch_size=60)
    first, second = (keras.ops.convert_to_numpy(first_batch(feed)[1]) for feed in orders)
    assert not np.array_equal(first, second)


@pytest.mark.core
def test_steps_an_epoch_go_on_through_data_that_are_not_shuffled():
    feed = feed_of(Batches(5), shuffle=False, steps=2)
    assert [order(feed, epoch) for epoch in range(4)] == [[0, 1], [2, 3], [4], [0, 1]]
    arrays = feed_of(np.arange(5.0)[:, None], batch_size=1, shuffle=False, steps=2)
    assert [order(arrays, epoch) for epoch in range(4)] == [[0, 1], [2, 3], [4], [0, 1]]
    assert feed.steps == arrays.steps == 2
    shuffled = feed_of(Batches(5), seed=3, steps=2)
    assert order(shuffled, 1) == epoch_order(5, seed=3, peer=0, epoch=1).tolist()[:2]
    assert order(feed_of(Batches(3), shuffle=False, steps=9)) == [0, 1, 2]


def stream(**options):
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1)).astype(np.uint8)
    given = {"batch_size": 5, "seed": 0, "peer": 0} | options
    return data.BatchStream(images, np.arange(20) % 3, **given)


@pytest.mark.core
def test_class_weights_and_steps_hold_with_a_stream():
    feed = feed_of(stream(), class_weight={0: 5.0, 1: 0.5}, steps=2)
    assert feed.steps == 2
    for peer in range(2):
        drawn = list(feed.for_peer(peer).epoch(1))
        expected = list(stream(peer=peer).epoch(1))[:2]
        for (x, y, weights), (own, labels) in zip(drawn, expected, strict=True):
            np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (x, own)))
            np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (y, labels)))
            labels = keras.ops.convert_to_numpy(labels)
            np.testing.assert_array_equal(weights, np.array([5.0, 0.5, 1.0])[labels])


def test_a_run_on_a_stream_takes_as_many_steps_as_it_is_told_and_weighs_classes():
    trained = []
    for given in ({"class_weight": {0: 9.0}}, {}):
        keras.utils.set_random_seed(3)
        peer = network()
        GraftingFit([peer]).fit(stream(), steps_per_epoch=3, epochs=2, verbose=0, **given)
        assert int(peer.optimizer.iterations) == 6
        trained.append(peer.get_weights()[0])
    assert not np.allclose(*trained)


@pytest.mark.parametrize("kind", ["PyDataset", "feed", "generator"])
def test_class_weight_beside_the_sample_weights_of_a_data_set_is_refused(kind):
    weighted = Batches(2, weighted=True)
    made = {
        "PyDataset": weighted,
        "feed": feed_of(X, Y, np.ones(60)),
        "generator": (weighted[i] for i in range(2)),
    }[kind]
    feed = feed_of(made, class_weight={0: 2.0})
    with pytest.raises(UserError, match="class_weight and sample_weight exclude each other"):
        first_batch(feed)


@pytest.mark.core
def test_one_sample_weight_counts_for_every_output():
    feed = feed_of(X, {"a": Y, "b": Y}, np.linspace(0, 1, 60), batch_size=60, shuffle=False)
    weights = first_batch(feed)[2]
    assert sorted(weights) == ["a", "b"]


def test_validation_of_what_can_be_read_once_is_the_same_for_all_peers_and_epochs():
    def generator():  # no two batches alike
        for seed in range(100):
            yield digits(10, seed)

    peers = [network(lr=0.0), network(lr=0.0)]
    peers[1].set_weights(peers[0].get_weights())
    run = GraftingFit(peers, mixer=Independent())
    histories = run.fit(
        X, Y, epochs=2, verbose=0, shuffle=False, validation_data=generator(), validation_steps=4
    )
    found = np.array([history.history["val_loss"] for history in histories])
    assert found.shape == (2, 2)
    np.testing.assert_array_equal(found[0], found[1])


@pytest.mark.core
@pytest.mark.parametrize("kind", ["PyDataset", "stream", "arrays"])
def test_validation_steps_are_the_first_batches_whoever_asks(kind):
    made = {"PyDataset": Batches(5), "stream": stream(), "arrays": (np.arange(20.0)[:, None], None)}
    feed = validation_feed(made[kind], 5 if kind == "arrays" else None, 2)
    first, again = (
        [keras.ops.convert_to_numpy(batch[0]) for batch in feed.epoch(0)] for _ in range(2)
    )
    assert len(first) == feed.steps == 2
    np.testing.assert_array_equal(first, again)


def test_what_gives_all_peers_one_order_is_known():
    in_order = {"seed": 0, "shuffle": False}
    assert all(map(in_one_order, (feed_of(Batches(), **in_order), feed_of(X, Y, **in_order))))
    assert in_one_order(feed_of(stream(shuffle=False), steps=2, class_weight={0: 2.0}))
    assert in_one_order(feed_of(X, Y, shuffle="batch"))
    assert in_one_order(feed_of(Endless(), steps=2))
    assert not any(map(in_one_order, (feed_of(Batches()), feed_of(X, Y), feed_of(stream()))))


def test_one_order_for_all_peers_is_said_once(caplog):
    with caplog.at_level(logging.WARNING, "kgraft"):
        GraftingFit([network(), network()]).fit(X, Y, verbose=0)
        GraftingFit([network()]).fit(X, Y, verbose=0, shuffle=False)
        assert not any("one order" in record.message for record in caplog.records)
        GraftingFit([network(), network()]).fit(X, Y, verbose=0, shuffle=False)
    assert [record.message for record in caplog.records if record.name == "kgraft"] == [
        "all peers read the data in one order, the weakest setting of the papers: shuffle them, or "
        "give a list with one data set for every peer."
    ]


def test_two_peers_of_shared_batches_and_one_learning_rate_are_warned_of_once(caplog):
    with caplog.at_level(logging.WARNING, "kgraft"):
        alone = GraftingFit([network(), network()], mixer=Independent())
        alone.fit(X, Y, verbose=0, shared_batches=True)
        assert not caplog.records
        run = GraftingFit([network(), network()])
        for _ in range(2):
            run.fit(X, Y, verbose=0, shared_batches=True)
    (warning,) = [record.message for record in caplog.records if record.name == "kgraft"]
    assert "2 peers learn from the same batches" in warning and "shared_batches" in warning


@pytest.mark.skipif(keras.config.backend() != "torch", reason="torch DataLoader")
def test_a_loader_says_by_its_sampler_whether_all_peers_see_one_order():
    torch = pytest.importorskip("torch")
    pairs = torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    loader, sampler = torch.utils.data.DataLoader, torch.utils.data.RandomSampler(pairs)
    batches = torch.utils.data.BatchSampler(sampler, 20, drop_last=False)
    assert in_one_order(feed_of(loader(pairs, batch_size=20)))
    assert not in_one_order(feed_of(loader(pairs, batch_size=20, shuffle=True)))
    assert not in_one_order(feed_of(loader(pairs, batch_sampler=batches)))
    weighted = feed_of(loader(pairs, batch_size=20), class_weight={0: 3.0})
    assert np.unique(first_batch(weighted)[2]).tolist() == [1.0, 3.0]


@pytest.mark.core
def test_shuffled_within_batches_a_batch_keeps_its_examples():
    feed = feed_of(np.arange(10.0)[:, None], batch_size=4, shuffle="batch")
    drawn = [keras.ops.convert_to_numpy(batch[0])[:, 0].tolist() for batch in feed.epoch(0)]
    assert [sorted(own) for own in drawn] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert any(own != sorted(own) for own in drawn)


def test_teachers_see_weighted_batches_of_a_stream():
    teacher, peer = network(6, compiled=False), network()
    run = kgraft.GraftingFit([peer], [teacher])
    history = run.fit(stream(), verbose=0, class_weight={0: 2.0}, steps_per_epoch=2)
    assert history[0].history["distillation_loss"][0] > 0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: feed_of(Batches(0)), "a Batches of length 0"),
        (lambda: feed_of(keras.utils.PyDataset()), "a PyDataset without a length"),
        (lambda: feed_of(np.zeros((0, 2))), "x holds no example"),
        (lambda: feed_of(np.float32(3)), "a single number"),
        (lambda: feed_of(X, np.array(["cat"] * 60)), "a ndarray of <U3: expected numbers"),
        (lambda: feed_of(Batches(), np.zeros(3)), "y cannot be given with a Batches"),
        (lambda: feeds_of(2, [Batches()] * 2, shared=True), "need one data set, no list"),
    ],
)
def test_mistakes_are_told_in_one_line(build, message):
    with pytest.raises(UserError, match=message) as error:
        build()
    assert "\n" not in str(error.value)
