"""Bytes and seconds of many ranks, held against numbers counted by hand and laws."""

import dataclasses
from collections import Counter
from itertools import permutations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kgraft.errors import UserError
from kgraft.links import cost
from kgraft.links.park import Edge, Park, Placement, crossings, edges, ranks_per_peer

TWO_BY_FOUR = Park(2, 4, 100.0, 400.0, 0.5, 0.25)


def park(hosts, gpus, **more):
    return Park(hosts, gpus, 100.0, 400.0, 0.5, 0.25, **more)


@st.composite
def layouts(draw):
    hosts, gpus = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    ranks = hosts * gpus
    wide = draw(st.sampled_from([own for own in range(1, ranks + 1) if ranks % own == 0]))
    peers = draw(st.integers(ranks // wide, ranks // wide + 7))
    return park(hosts, gpus), Placement(ranks, peers, wide)


def through(machines, flows):
    """Most that a card sends or receives, most within a host, one flow after another."""
    out, into, inside = Counter(), Counter(), Counter()
    for sender, target, size in flows:
        source, goal = sender // machines.gpus, target // machines.gpus
        if source == goal:
            inside[source] += size
        else:
            out[source] += size
            into[goal] += size
    most = [max(own.values(), default=0) for own in (out, into, inside)]
    return max(most[:2]), most[2]


def test_a_lane_s_ring_by_hand():
    """Two hosts of four, four peers of two ranks: blocks 0 and 1 on the first host."""
    placement = Placement(8, 4, 2)
    assert edges(TWO_BY_FOUR, placement, 1) == (
        Edge(3, 0, 7, 1, "network"),
        Edge(0, 1, 1, 3, "host"),
        Edge(1, 2, 3, 5, "network"),
        Edge(2, 3, 5, 7, "host"),
    )
    assert [edge.sender for edge in edges(TWO_BY_FOUR, placement, 0)] == [6, 0, 2, 4]


def test_peers_are_placed_evenly_and_neighbours_stay_together():
    placement = Placement(4, 6)
    assert [list(placement.local(block)) for block in range(4)] == [[0, 1], [2, 3], [4], [5]]
    assert (placement.least, placement.most) == (1, 2)
    ways = [edge.way for edge in edges(park(2, 2), placement, 0)]
    assert ways == ["network", "process", "host", "process", "network", "host"]


@given(layouts())
def test_edges_that_leave_their_rank_are_what_travels(layout):
    machines, placement = layout
    found = [
        (edge.sender, edge.target)
        for lane in range(placement.ranks_per_peer)
        for edge in edges(machines, placement, lane)
        if edge.way != "process"
    ]
    assert sorted(found) == sorted(crossings(placement))
    members = placement.blocks
    assert len(found) == (placement.ranks if members > 1 else 0)


def test_a_ring_s_traffic_by_hand():
    """Of each host two edges a lane, one of them to the other host; two lanes."""
    traffic = cost.ring_traffic(TWO_BY_FOUR, Placement(8, 4, 2), 30.0)
    assert traffic == cost.Traffic(sent=30, received=30, card=60, inside=60, rounds=1)
    assert traffic.transfer(TWO_BY_FOUR) == 0.6  # 60 / 100, not 60 / 400
    assert traffic.latencies(TWO_BY_FOUR) == 0.5


def test_512_ranks_for_16_peers_send_everything_between_hosts():
    """Each host has eight lanes of one block: eight edges leave it, eight reach it."""
    machines, placement = park(64, 8), Placement(512, 16, 32)
    assert {edge.way for edge in edges(machines, placement, 31)} == {"network"}
    traffic = cost.ring_traffic(machines, placement, 10)
    assert (traffic.card, traffic.inside) == (80, 0)


def test_a_mean_s_traffic_by_hand():
    """Four members, slices of 25: each sends two to each of three, two of whom are elsewhere."""
    traffic = cost.mean_traffic(park(2, 2), Placement(4, 4), 100.0)
    assert traffic == cost.Traffic(sent=150, received=150, card=200, inside=100, rounds=6)
    assert traffic.transfer(park(2, 2)) == 2.0
    assert traffic.latencies(park(2, 2)) == 3.0


def test_a_mean_of_two_peers_a_rank_sends_the_slices_of_both():
    """2 x 25 of its peers and 25 of the sum to each of three."""
    traffic = cost.mean_traffic(park(2, 2), Placement(4, 8), 100.0)
    assert (traffic.sent, traffic.received) == (225, 225)


@given(layouts())
def test_a_mean_s_traffic_is_that_of_all_pairs(layout):
    machines, placement = layout
    members, wide = placement.blocks, placement.ranks_per_peer
    flows = [
        (
            placement.rank(a, lane),
            placement.rank(b, lane),
            (len(placement.local(a)) + 1) * 12 / members,
        )
        for a, b in permutations(range(members), 2)
        for lane in range(wide)
    ]
    traffic = cost.mean_traffic(machines, placement, 12.0)
    sent, received = Counter(), Counter()
    for sender, target, size in flows:
        sent[sender] += size
        received[target] += size
    assert traffic.sent == pytest.approx(max(sent.values(), default=0))
    assert traffic.received == pytest.approx(max(received.values(), default=0))
    assert (traffic.card, traffic.inside) == pytest.approx(through(machines, flows))


def test_gradients_by_hand():
    """Four replicas: 2 x 3/4 each way, over four edges; two of them between two hosts."""
    one = cost.gradient_traffic(park(1, 4), Placement(4, 1, 4), 100.0)
    assert one == cost.Traffic(sent=150, received=150, card=0, inside=600, rounds=6)
    two = cost.gradient_traffic(park(2, 2), Placement(4, 1, 4), 100.0)
    assert two == cost.Traffic(sent=150, received=150, card=150, inside=150, rounds=6)
    both = cost.gradient_traffic(park(1, 4), Placement(4, 2, 4), 100.0)  # two peers, in turns
    assert (both.sent, both.rounds) == (300, 12)
    assert cost.gradient_traffic(park(1, 4), Placement(4, 4), 100.0) == cost.Traffic()


def test_a_gather_by_hand():
    """Four members in two lanes, 5 requests each of 8 ranks, 8 x 4 values that are read."""
    machines = park(1, 8, answering=0.001)
    expected = 5 * 2 * 0.25 + 8 * 5 * 0.001 + 8 * 4 * 16 / 400
    assert cost.gather_seconds(machines, Placement(8, 4, 2), 16) == pytest.approx(expected)
    machines = park(2, 4, answering=0.001)
    expected = 5 * 2 * 0.5 + 8 * 5 * 0.001 + 8 * 4 * 16 / 100
    assert cost.gather_seconds(machines, Placement(8, 4, 2), 16) == pytest.approx(expected)
    assert cost.gather_seconds(machines, Placement(8, 4, 8), 16) == 0


def test_a_grafting_by_hand():
    machines = park(1, 2, copying=50.0, mixing=25.0)
    took = cost.grafting(machines, Placement(2, 5), 100.0, groups=3)
    assert took.copies == 4.0  # one row down, one up
    assert took.link == 0.5  # two rows, 400 bytes a second
    assert took.latencies == 0.25
    gathers = 3 * 2 * 5 * 0.25 + 2 * 5 * (8 + 24 + 8) / 400
    assert took.gathers == pytest.approx(gathers)
    assert took.mixing == 12.0  # three peers; the other rank has two
    assert took.seconds == pytest.approx(16.75 + gathers)


def test_an_averaging_by_hand():
    machines = park(1, 2, copying=50.0, mixing=25.0)
    took = cost.averaging(machines, Placement(2, 2), 100.0)
    assert (took.copies, took.link, took.latencies, took.mixing) == (4.0, 0.5, 0.5, 4.0)
    assert took.gathers == pytest.approx(3 * 2 * 5 * 0.25 + 2 * 2 * (8 + 8 + 8) / 400)


def test_an_epoch_by_hand():
    mixing = cost.Mixing(cost.Traffic(), 1.0, 2.0, 3.0, 4.0, 5.0)
    epoch = cost.Epoch(mixing, mixings=0.2, steps=10, gradients=0.5, training=12.0)
    assert (epoch.ring, epoch.reducing, epoch.seconds) == (3.0, 5.0, 20.0)
    assert cost.training_seconds(Placement(4, 3, 2), images=1000, rate=50.0) == 20.0


@given(layouts())
def test_one_rank_or_one_block_sends_nothing_to_other_members(layout):
    machines, placement = layout
    assume(placement.blocks == 1)
    took = cost.grafting(machines, placement, 100.0, groups=3)
    assert took.traffic == cost.Traffic()
    assert took.seconds == cost.averaging(machines, placement, 100.0).seconds == 0


@given(layouts(), st.sampled_from([cost.ring_traffic, cost.mean_traffic, cost.gradient_traffic]))
def test_twice_the_bandwidth_is_half_the_transfer_and_one_host_needs_no_network(layout, traffic):
    machines, placement = layout
    found = traffic(machines, placement, 1000.0)
    twice = dataclasses.replace(machines, network=200.0, inside=800.0)
    assert found.transfer(twice) == pytest.approx(found.transfer(machines) / 2)
    assert traffic(machines, placement, 2000.0).card == pytest.approx(2 * found.card)
    if machines.hosts == 1:
        assert found.card == 0
    if machines.gpus == 1:
        assert found.inside == 0


@given(layouts())
def test_a_ring_takes_no_less_than_one_row_through_one_link(layout):
    machines, placement = layout
    assume(placement.blocks > 1)
    least = 1000.0 / max(machines.network, machines.inside)
    assert cost.ring_traffic(machines, placement, 1000.0).transfer(machines) >= least


def test_a_measurement_s_prediction():
    assert cost.predicted_exchange(4, 1e6, bandwidth=2e9, latency=0.001) == pytest.approx(0.003)
    assert cost.predicted_exchange(1, 1e6, bandwidth=2e9, latency=0.001) == 0
    with pytest.raises(UserError, match=r"Park\(network=0\): expected"):
        cost.predicted_exchange(4, 1e6, bandwidth=0, latency=0.001)


def test_ranks_are_shared_alike_or_refused():
    assert [ranks_per_peer(512, peers) for peers in (1, 16, 512, 700)] == [512, 32, 1, 1]
    with pytest.raises(UserError, match="512 ranks cannot be shared alike by 12 peers: 8 or 16 "):
        ranks_per_peer(512, 12)
    with pytest.raises(UserError, match="7 ranks cannot be shared alike by 3 peers: 7 peers can"):
        ranks_per_peer(7, 3)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((8, 4, 3), "8 ranks with 3 per peer: 3 does not divide 8, 2 or 4 does."),
        ((8, 4, 16), "8 ranks with 16 per peer: 16 does not divide 8, 8 does."),
        (
            (8, 4, 1),
            "8 ranks with 1 per peer are 8 blocks, more than the 4 peers: take 2 ranks per peer, "
            "or at least 8 peers.",
        ),
        (
            (8, 3, 2),
            "8 ranks with 2 per peer are 4 blocks, more than the 3 peers: take more ranks per "
            "peer, or at least 4 peers.",
        ),
        ((0, 3), "Placement(ranks=0): expected 1 or more."),
    ],
)
def test_what_cannot_be_placed_is_refused(given, said):
    with pytest.raises(UserError) as refused:
        Placement(*given)
    assert str(refused.value) == said


def test_a_lane_that_is_not_there_is_refused():
    with pytest.raises(UserError, match="lane=2: expected"):
        edges(TWO_BY_FOUR, Placement(8, 4, 2), 2)
