"""Mixers over several ranks, which are threads here, are mixers in one process, bit for bit."""

import itertools
from dataclasses import dataclass

import keras
import numpy as np
import pytest
from keras import layers

from kgraft.errors import UserError
from kgraft.grafting import (
    Average,
    EpochMixer,
    FilterGraft,
    FixedGraft,
    Graft,
    Internal,
    Lawa,
    Moment,
    Noise,
    Papa,
    Peers,
    RePr,
    Rotation,
    Wash,
)
from kgraft.grafting.averages import averages_of
from kgraft.links.carrier import TornError
from kgraft.links.link import ChangedError, Here, Link
from tests.links.rings import ended, joined, together, tried

pytestmark = pytest.mark.core
K = 3
SHARES = [[2, 1], [1, 2], [1, 1, 1]]


@dataclass(frozen=True)
class Swap(EpochMixer):
    """The mixer of docs/own-parts.md."""

    def apply(self, peers, state, moment):
        weights = peers.population()
        for group in peers.plan.groups:
            weights.mix(group.members, lambda values: values[::-1])
        weights.commit()
        return {"rates": peers.gather([float(k) for k in peers.places])}, None


MIXERS = {
    "graft": Graft(),
    "by l1": Graft(criterion="l1"),
    "frozen too": Graft(blend_frozen=True),
    "revive": Graft(revive=True),
    "fixed": FixedGraft(alpha=0.3),
    "rotation": Rotation(),
    "filters": FilterGraft(),
    "average": Average(),
    "papa": Papa(rate=0.5),
    "wash": Wash(share=0.3),
    "noise": Noise(threshold=100.0),
    "internal": Internal(threshold=100.0),
    "repr": RePr(full_epochs=1, share=0.4),
    "lawa": Lawa(last=2),
    "own": Swap(),
}


def model(k, *, dtype="float32", frozen=False):
    keras.utils.set_random_seed(50 + k)
    made = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.Conv2D(4, 3, use_bias=False, dtype=dtype),
            layers.BatchNormalization(dtype=dtype),
            layers.Conv2D(3, 3, use_bias=False, trainable=not frozen),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )
    random = np.random.default_rng(k)
    made.set_weights(
        [np.asarray(random.normal(size=w.shape) + 2, w.dtype) for w in made.get_weights()]
    )
    return made


def sick(made):
    made.set_weights([np.full_like(value, np.nan) for value in made.get_weights()])
    return made


def mixed(mixer, link, models):
    """Two epochs' ends, and the end of the training."""
    peers = Peers(models, mixer.plan(models), link=link)
    state = mixer.init(peers)
    records = []
    for epoch in range(2):
        state, record = mixer.apply(peers, state, Moment(epoch, epoch))
        records.append(record)
    mixer.finish(peers, state)
    return records


def here(models):
    link = Here()
    link.join(len(models))
    return link


def parts(shares, models):
    starts = np.cumsum([0, *shares])
    return [models[a:b] for a, b in itertools.pairwise(starts)]


def assert_equal(models, others):
    for one, other in zip(models, others, strict=True):
        for value, theirs in zip(one.get_weights(), other.get_weights(), strict=True):
            np.testing.assert_array_equal(value, theirs)


def assert_records(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert one.donors == other.donors and one.sick == other.sick
            np.testing.assert_array_equal(one.coefficients, other.coefficients)
            np.testing.assert_array_equal(one.information, other.information)


@pytest.mark.parametrize(
    ("name", "shares"),
    [
        *((name, SHARES[0]) for name in MIXERS),
        *itertools.product(("graft", "papa", "filters", "own", "wash"), SHARES[1:]),
    ],
    ids=str,
)
def test_over_ranks_as_in_one_process(name, shares):
    mixer, is_revived = MIXERS[name], name == "revive"

    def made():
        models = [model(k, frozen=name == "frozen too") for k in range(K)]
        return [*models[:1], sick(models[1]), *models[2:]] if is_revived else models

    expected, models = made(), made()
    records = mixed(mixer, here(expected), expected)
    links = joined(shares)
    for found in together(links, lambda *own: mixed(mixer, *own), parts(shares, models)):
        assert_records(found, records)
    ended(links)
    assert_equal(models, expected)
    if name not in ("lawa", "repr", "own"):  # to swap twice is to do nothing
        assert not np.array_equal(models[0].get_weights()[0], model(0).get_weights()[0])


NARROW = keras.config.backend() == "jax"  # has no float64 unless it is asked for


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", *([] if NARROW else ["float64"])])
def test_weights_of_several_kinds(dtype):
    expected, models = ([model(k, dtype=dtype) for k in range(K)] for _ in range(2))
    before = expected[0].get_weights()[0]
    for mixer in (Graft(), Papa(rate=0.5)):
        mixed(mixer, here(expected), expected)
        links = joined([2, 1])
        together(links, lambda *own, mixer=mixer: mixed(mixer, *own), parts([2, 1], models))
        ended(links)
    assert not np.array_equal(before, expected[0].get_weights()[0])
    assert_equal(models, expected)


def with_average(k):
    made = model(k)
    use_ema = k != 1  # one peer keeps none: its weights stand for them
    made.compile(keras.optimizers.SGD(0.01, use_ema=use_ema, ema_momentum=0.5), "mse")
    made.train_on_batch(np.ones((4, 6, 6, 2), "float32"), np.ones((4, 3), "float32"))
    return made


def averaged(link, models):
    own = [averages_of(made, made.weights) for made in models]
    peers = Peers(models, Graft().plan(models), averages=own, link=link)
    Graft().apply(peers, {}, Moment())
    return [
        {index: keras.ops.convert_to_numpy(value.value) for index, value in of.items()}
        for of in own
    ]


def test_optimizers_averages_are_grafted_as_in_one_process():
    expected, models = ([with_average(k) for k in range(K)] for _ in range(2))
    averages = averaged(here(expected), expected)
    links = joined([1, 2])
    found = [own for part in together(links, averaged, parts([1, 2], models)) for own in part]
    ended(links)
    assert [own.keys() for own in found] == [own.keys() for own in averages]
    assert found[0] and not found[1]
    for own, theirs in zip(found, averages, strict=True):
        for index, value in own.items():
            np.testing.assert_array_equal(value, theirs[index])
    assert_equal(models, expected)


def test_a_lost_peer_is_a_gap_in_the_ring():
    """It is not sick, and whoever would receive from it takes from the one before it."""
    expected, models = ([model(k) for k in range(K)] for _ in range(2))
    records = mixed(Graft(), here([expected[0], expected[2]]), [expected[0], expected[2]])
    links = joined([1, 1, 1], on_lost_peer="skip", timeout=0.5)
    links[1].end("it is switched off")
    pairs = [links[0], links[2]], [models[0:1], models[2:3]]
    for found in together(pairs[0], lambda *own: mixed(Graft(), *own), pairs[1]):
        for record, other in zip(found, records, strict=True):
            assert record.donors == (2, None, 0) and record.sick == frozenset()
            np.testing.assert_array_equal(record.coefficients[[0, 2]], other.coefficients)
            assert (record.coefficients[1] == 1).all() and np.isnan(record.information[1]).all()
    assert links[0].lost == {1}
    ended([links[0], links[2]])
    assert_equal([models[0], models[2]], [expected[0], expected[2]])
    assert_equal([models[1]], [model(1)])


def test_an_own_mixer_gets_the_peer_before_a_lost_one():
    models = [model(k) for k in range(K)]
    links = joined([1, 1, 1], on_lost_peer="skip", timeout=0.5)
    links[2].end("it is switched off")
    own = parts([1, 1, 1], models)
    together(links[:2], lambda *given: mixed(Swap(), *given), own[:2])
    ended(links[:2])
    # peer 3 is where peer 2 is: the first swaps with it, twice
    kernel = [made.get_weights()[0] for made in models]
    np.testing.assert_array_equal(kernel[0], model(1).get_weights()[0])


def test_peers_elsewhere_can_be_mixed_and_not_read():
    models = [model(k) for k in range(2)]
    links = joined([1, 1])

    def asked(link, own):
        weights = Peers(own, Graft().plan(own), link=link).population()
        other = 1 - link.rank
        errors = []
        for ask in (
            lambda: weights.weights(other, [0]),
            lambda: weights.on_host(other, [0]),
            lambda: weights.replace(other, 0, own[0].get_weights()[0]),
        ):
            with pytest.raises(UserError) as caught:
                ask()
            errors.append(str(caught.value))
        return errors

    for rank, errors in enumerate(together(links, asked, parts([1, 1], models))):
        assert all(f"peer {2 - rank} is in another process" in error for error in errors)
    ended(links)


class Fails:
    """A carrier that fails on one rank."""

    def __init__(self, carrier, times):
        self._carrier, self._left = carrier, times

    def exchange(self, own):
        self._carrier.exchange(own)
        if self._left:
            self._left -= 1
            raise TornError("the cable is out")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_mixing_that_is_torn_assigns_nothing_anywhere(dtype):
    models = [model(k, dtype=dtype) for k in range(2)]
    links = joined([1, 1])
    links[1].rows._carrier = Fails(links[1].rows._carrier, 1)

    def once(link, own):
        peers = Peers(own, Graft().plan(own), link=link)
        Graft().apply(peers, {}, Moment())

    for came in tried(links, once, parts([1, 1], models)):
        assert isinstance(came, ChangedError)
    assert_equal(models, [model(k, dtype=dtype) for k in range(2)])
    together(links, once, parts([1, 1], models))  # begun anew
    ended(links)
    expected = [model(k, dtype=dtype) for k in range(2)]
    once(here(expected), expected)
    assert_equal(models, expected)


class Alone(Link):
    """One rank of one, which one of its confirmations tells to begin anew."""

    def __init__(self, fails):
        super().__init__()
        self.fails, self.asked = fails, 0

    def join(self, peers):
        self.holds = {0: range(peers)}

    def begin_epoch(self, epoch):
        pass

    def gather_small(self, value, *, opens=False):
        return {0: value}

    def exchange(self, sent, wanted):
        pass

    def confirm(self):
        self.asked += 1
        if self.asked == self.fails:
            raise ChangedError

    def end(self, words=""):
        pass


@pytest.mark.parametrize("mixer", [Graft(), Papa(rate=0.5), Noise(threshold=100.0)])
def test_weights_and_averages_are_assigned_all_or_not_at_all(mixer):
    def looked():
        variables = [own for made in models for own in made.weights]
        variables += [own for of in averages for own in of.values()]
        return [keras.ops.convert_to_numpy(own.value).copy() for own in variables]

    for fails in (1, 2, 3):
        models = [with_average(k) for k in (0, 2)]
        averages = [averages_of(made, made.weights) for made in models]
        link = Alone(fails)
        peers = Peers(models, mixer.plan(models), averages=averages, link=link)
        state, before = mixer.init(peers), looked()
        try:
            mixer.apply(peers, state, Moment())
        except ChangedError:
            assert all(map(np.array_equal, before, looked()))
        else:
            assert link.asked
            moved = {id(own) for own in before if own.size > 4}
            moved -= {id(a) for a, b in zip(before, looked(), strict=True) if np.array_equal(a, b)}
            assert moved


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_nothing_may_be_mixed_too(dtype):
    """E.g. the frozen weights of a group, by Wash."""
    models = [model(k, dtype=dtype) for k in range(2)]
    links = joined([1, 1])

    def nothing(link, own):
        weights = Peers(own, Graft().plan(own), link=link).population()
        weights.mix([], lambda values: values)
        assert weights.of_donors([], (1, 0)) == {link.rank: []}
        weights.graft([], np.ones((2, 0)), (1, 0))
        weights.pull([], [0.5] * 2, [True] * 2)
        weights.commit()

    together(links, nothing, parts([1, 1], models))
    ended(links)
    assert_equal(models, [model(k, dtype=dtype) for k in range(2)])


def test_a_rank_may_come_back_into_a_repr_that_has_dropped_its_filters():
    """The others bring theirs back, it has none to: nobody waits for it."""
    mixer = RePr(full_epochs=1, pruned_epochs=1, cycles=1, share=0.4)
    expected, models = ([model(k) for k in range(2)] for _ in range(2))
    links = joined([1, 1])

    def goes_on(link, own):
        peers = Peers(own, mixer.plan(own), link=link)
        state = mixer.init(peers)
        if link.rank == 0:
            state, _ = mixer.apply(peers, state, Moment(0, 0))
            assert any(state["dropped"])
        mixer.apply(peers, state, Moment(1, 1))
        return link.gather_small(link.rank)

    assert together(links, goes_on, parts([1, 1], models)) == [{0: 0, 1: 1}] * 2
    ended(links)
    alone = Peers(expected[:1], mixer.plan(expected[:1]), link=here(expected[:1]))
    state, _ = mixer.apply(alone, mixer.init(alone), Moment(0, 0))
    mixer.apply(alone, state, Moment(1, 1))
    assert_equal(models, expected)
