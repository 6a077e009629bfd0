"""What the ranks of a ring, which are threads here, have in common, and are told of each other."""

import keras
import numpy as np
import pytest
from keras import layers

from kgraft.errors import UserError
from kgraft.grafting import Graft, Peers
from kgraft.training.alike import check_alike, check_same
from kgraft.training.batches import as_short_as_any
from kgraft.training.feeds import feed_of
from tests.links.rings import ended, joined, together, tried

pytestmark = pytest.mark.core
LESS = np.zeros((3, 1), "float32")


def network(seed, policy="float32"):
    keras.utils.set_random_seed(seed)
    shape = [keras.Input((4, 4, 1)), layers.Conv2D(2, 3, dtype=policy), layers.Flatten()]
    return keras.Sequential([*shape, layers.Dense(2)])


def compared(networks, *mixers):
    """What each rank finds, or is told: the first one has two networks, each other one has one."""
    links = joined([2, *[1] * (len(networks) - 2)])
    here = [networks[:2], *([own] for own in networks[2:])]
    plans = [Graft().plan(own) for own in here]
    each = [mixers[place % len(mixers)] for place in range(len(links))]
    peers = [
        Peers(own, plan, link=link) for own, plan, link in zip(here, plans, links, strict=True)
    ]
    found = tried(links, lambda link, own, mixer: check_alike(own, mixer, {}), peers, each)
    ended(links)
    return found


def test_equal_weights_in_different_processes_are_found():
    assert compared([network(k) for k in (0, 1, 2, 3)], Graft()) == [None] * 3
    assert compared([network(k) for k in (0, 1, 2, 1)], Graft()) == [(1, 3)] * 3
    # within one process it is the user's to see
    assert compared([network(k) for k in (0, 0, 2, 3)], Graft()) == [None] * 3


def test_the_setting_in_which_mixers_differ_is_named():
    networks = [network(k) for k in range(3)]
    for error in compared(networks, Graft(), Graft(sharpness=3.0)):
        assert "peer 1 and peer 3" in str(error)
        assert "different mixers (sharpness is 500.0 and 3.0)" in str(error)


def test_dtype_policies_have_to_be_the_same():
    networks = [network(0), network(1), network(2, "mixed_bfloat16")]
    for error in compared(networks, Graft()):
        assert isinstance(error, UserError)
        assert "different dtype policies (number 2 is none and mixed_bfloat16)" in str(error)


def test_what_differs_between_ranks_is_named():
    same = {"seed": 3, "checkpoint=": "given"}
    check_same({0: same, 2: same}, "they are one")
    with pytest.raises(UserError, match=r"^seed is 3 on rank 0 and 4 on rank 2: they are one\.$"):
        check_same({0: same, 1: same, 2: {**same, "seed": 4}}, "they are one")


def test_who_comes_back_ends_epochs_where_the_shortest_list_did():
    links = joined([1, 1])
    feeds = [[feed_of(LESS[:n], LESS[:n, 0], batch_size=1)] for n in (3, 2)]

    def steps(link, own, epoch):
        return as_short_as_any(own, link, epoch)[0].steps

    for epoch, (first, second) in enumerate([feeds, feeds[:1] * 2]):
        told = together(links, steps, [first, second], [epoch] * 2)
        assert told == [2 + epoch] * 2
    links[0].returning = True  # it asks nobody
    assert [steps(links[0], feeds[0], epoch) for epoch in (0, 1)] == [2, 3]
    ended(links)
