"""RingLink when a rank is lost, hangs, is late, or comes back: one that is there says why."""

import itertools
import logging
import time

import numpy as np
import pytest

from kgraft.errors import LostPeerError
from kgraft.links.link import ChangedError, LeftOutError
from kgraft.links.ring_link import RingLink
from tests.links.memory_store import MemoryStore
from tests.links.rings import Ranks, ended, fall_silent, joined, links, together, tried

TIMEOUT = 0.5  # a rank beats five times as often


@pytest.fixture(autouse=True)
def processes(monkeypatch):
    """Threads share a pid: every link gets one of its own, on a machine where nobody can look."""
    numbers, own = itertools.count(1000), {"host": "here", "machine": "", "began": "0"}
    monkeypatch.setattr("kgraft.links.roll.own_presence", lambda: {**own, "pid": next(numbers)})


@pytest.fixture
def ring():
    """Makes rings whose ranks have begun an epoch, and ends them."""
    made = []

    def make(peers, store=None, **options):
        own = joined(peers, store, **{"timeout": TIMEOUT, **options})
        made.extend(own)
        together(own, lambda link: link.begin_epoch(0))
        return own

    yield make
    ended(made)


def again(link, store, **options):
    """The same rank as another process."""
    options = {"timeout": TIMEOUT, "on_lost_peer": link.on_lost_peer, **options}
    return RingLink(rank=link.rank, ranks=link.ranks, store=store, **options)


def interrupt():
    raise InterruptedError


def barrier(link):
    link.barrier()
    return link.members


def next_epoch(epoch):
    def work(link):
        link.begin_epoch(epoch)
        return link.members

    return work


def test_who_does_not_come_to_the_start_is_named():
    own = links(3, timeout=0.05)
    for error in tried(own[:2], lambda link: link.join(1)):
        assert isinstance(error, LostPeerError)
        assert str(error) == (
            "rank 2 of 3 did not come within 0.5 s (link: memory): was it started?"
        )
    ended(own)


def test_a_silent_rank_is_named_with_host_and_peers_on_all_others(ring):
    own = ring([1, 2, 1])
    fall_silent(own[1])
    for error in tried([own[0], own[2]], barrier):
        assert isinstance(error, LostPeerError)
        assert str(error).startswith("rank 1 on here (peers 2, 3) is lost in epoch 1: it is silent")
        assert str(error).endswith("(link: memory, timeout 0.5 s).")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("gone", "its process is gone"),
        ("stopped", r"its process is stopped \(SIGSTOP\), not heard"),
    ],
)
def test_what_the_system_says_of_a_lost_rank_is_told(ring, monkeypatch, state, message):
    own = ring([1, 1])
    pid = own[0]._roll._known[1]["pid"]
    monkeypatch.setattr(
        "kgraft.links.roll.state_of", lambda known: state if known["pid"] == pid else "runs"
    )
    fall_silent(own[1])
    with pytest.raises(LostPeerError, match=f"rank 1 on here .peer 2. is lost.*{message}"):
        own[0].barrier()


def test_who_ends_with_words_is_quoted_at_once(ring):
    own = ring([1, 1], timeout=30.0)
    began = time.monotonic()
    with pytest.raises(ValueError, match="no such"), own[1]:
        raise ValueError("no such file\nand more")
    with pytest.raises(LostPeerError, match=r"it has ended \(ValueError: no such file\)"):
        own[0].barrier()
    assert time.monotonic() - began < 5


def test_who_has_gone_on_is_not_told_what_came_after(ring):
    """The last word of a rank that ended is there for those who come later."""
    own = ring([1, 1])
    tried([own[0]], lambda link: link._say(f"{link.start}/e0.0/1", "bye"))
    own[0].end()
    assert own[1].gather_small("last") == {0: "bye", 1: "last"}
    with pytest.raises(LostPeerError, match=r"rank 0 on here .*it has left the ring"):
        own[1].barrier()


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_who_is_stopped_while_it_waits_stops_all(ring, policy):
    own = ring([1, 1, 1], on_lost_peer=policy, timeout=10.0)

    own[1].check = interrupt
    waiting = Ranks([lambda link=link: barrier(link) for link in own[:2]])
    time.sleep(0.1)
    first, second = waiting.ended()
    assert isinstance(second, InterruptedError)
    said = "rank 1 on here (peer 2) was stopped."
    assert (type(first), str(first)) == (LostPeerError, said)
    with pytest.raises(LostPeerError, match=r"rank 1 on here \(peer 2\) was stopped"):
        own[2].barrier()


def test_an_interrupt_after_all_have_come_is_the_next_waits(ring):
    """The ranks agree either way: nobody is stopped by one that has gone on with the others."""
    own = ring([1, 1])
    key = f"{own[0].start}/{own[0]._at}/{own[0]._number}"

    def check():
        own[1]._say(key, "late")  # all decide that it is there, while this one is interrupted
        own[1]._agreement().on(key, (0, 1), lambda: None)
        interrupt()

    own[0].check = check
    assert own[0].gather_small("first") == {0: "first", 1: "late"}


def test_who_is_alive_and_late_beyond_patience_is_lost(ring, monkeypatch):
    monkeypatch.setattr("kgraft.links.roll.PATIENCE", 1.5)
    own = ring([1, 1])
    began = time.monotonic()
    with pytest.raises(LostPeerError, match="it is alive, and has kept the others waiting for 1 s"):
        own[0].barrier()
    assert time.monotonic() - began > 0.75


def test_patience_grows_with_the_epoch(ring, monkeypatch):
    monkeypatch.setattr("kgraft.links.roll.PATIENCE", 1.0)
    own = ring([1, 1])
    time.sleep(0.5)  # this rank's epoch: twenty times as long is waited
    waiting = Ranks([lambda: barrier(own[0])])
    time.sleep(1.2)
    own[1].barrier()
    assert waiting.ended() == [(0, 1)]


def test_a_slow_rank_is_named_once_an_epoch(ring, monkeypatch, caplog):
    monkeypatch.setattr("kgraft.links.roll._AT_ONCE", 0.1)
    own = ring([1, 1, 1], timeout=10.0)
    for epoch in (0, 1):
        waiting = Ranks([lambda link=link: barrier(link) for link in own[:2]])
        time.sleep(1.0)
        own[2].barrier()
        waiting.ended()
        said = [told for told in caplog.messages if "takes more than" in told]
        assert len(said) == 1 + epoch
        assert said[-1] == (
            "rank 2 on here (peer 3) takes more than 10 times as long as this one for epoch "
            f"{epoch + 1}: it is not lost yet."
        )
        together(own, next_epoch(epoch + 1))


def test_the_ring_closes_over_a_lost_rank_and_lets_it_in_again(ring, caplog):
    caplog.set_level(logging.WARNING, "kgraft")
    own = ring([1, 2, 1], on_lost_peer="skip")
    fall_silent(own[1])
    for error in tried([own[0], own[2]], barrier):
        assert isinstance(error, ChangedError)
    assert together([own[0], own[2]], barrier) == [(0, 2)] * 2
    assert own[0].lost == own[2].lost == {1, 2}
    assert any(
        "rank 1 on here (peers 2, 3) is lost in epoch 1" in told and "closes over the gap" in told
        for told in caplog.messages
    )
    with pytest.raises(LeftOutError):
        own[1].barrier()
    back = Ranks([own[1].rejoin])
    time.sleep(0.1)
    assert together([own[0], own[2]], next_epoch(1)) == [(0, 1, 2)] * 2
    assert back.ended() == [1]
    assert together(own, barrier) == [(0, 1, 2)] * 3
    assert own[0].lost == frozenset()
    assert "rank 1 on here (peers 2, 3) is in the ring again." in caplog.messages
    together(own, next_epoch(2))


def test_a_rank_that_is_lost_when_an_epoch_begins_is_just_left_out(ring):
    own = ring([1, 1, 1], on_lost_peer="skip")
    fall_silent(own[0])
    assert together(own[1:], next_epoch(1)) == [(1, 2)] * 2
    assert [link.is_first for link in own[1:]] == [True, False]
    assert together(own[1:], RingLink.share, ["one", "two"]) == ["one", "one"]
    assert together(own[1:], RingLink.collect, ["one", "two"]) == [{1: "one", 2: "two"}, {}]


def test_the_last_one_goes_on_alone(ring):
    own = ring([1, 1], on_lost_peer="skip")
    own[1].end("ValueError: no")
    with pytest.raises(ChangedError):
        own[0].barrier()
    assert own[0].gather_small("x") == {0: "x"}
    assert next_epoch(1)(own[0]) == (0,)


def test_nobody_is_there_to_rejoin(ring):
    own = ring([1, 1], on_lost_peer="skip")
    own[0].end()
    with pytest.raises(LostPeerError, match="have ended the training without this rank"):
        own[1].rejoin()


def test_who_hung_while_the_others_cleared_away_is_left_out(ring):
    """It finds that all were there, and nothing of what they said."""
    own = ring([1, 1, 1], on_lost_peer="skip")
    key = f"{own[0].start}/{own[0]._at}/{own[0]._number}"
    own[1]._say(key, "then it hangs")
    together([own[0], own[2]], barrier)
    fall_silent(own[1])
    tried([own[0], own[2]], barrier)
    together([own[0], own[2]], next_epoch(1))
    with pytest.raises(LeftOutError):
        own[1].gather_small("then it hangs")


def test_a_rank_that_was_started_again_is_let_in(ring):
    store = MemoryStore()
    own = ring([1, 1, 1], store, on_lost_peer="skip")
    fall_silent(own[1])
    other = again(own[1], store)
    other.join(1)
    assert other.returning
    assert other.restarted
    back = Ranks([other.rejoin])
    began = time.monotonic()
    for error in tried([own[0], own[2]], barrier):  # it beats: the limit alone tells nothing
        assert isinstance(error, ChangedError)
    assert time.monotonic() - began < 2
    assert together([own[0], own[2]], next_epoch(1)) == [(0, 1, 2)] * 2
    assert back.ended() == [1]
    assert together([own[0], other, own[2]], barrier) == [(0, 1, 2)] * 3
    other.end()


def test_a_rank_that_is_started_again_before_all_have_met_is_a_rank_as_others():
    store = MemoryStore()
    own = links(3, store, timeout=TIMEOUT, on_lost_peer="skip")
    early = Ranks([lambda: own[0].join(1)])
    first = Ranks([lambda: own[1].join(1)])
    time.sleep(0.1)
    fall_silent(own[1])
    own[1].check = interrupt
    assert isinstance(first.ended()[0], InterruptedError)
    other = again(own[1], store)
    second = Ranks([lambda: other.join(1)])
    time.sleep(0.1)
    own[2].join(1)
    assert (early.ended(), second.ended()) == ([None], [None])
    assert not other.returning
    assert together([own[0], other, own[2]], barrier) == [(0, 1, 2)] * 3
    ended([own[0], other, own[2]])


def test_what_was_sent_ahead_into_a_gap_is_of_nobody(ring):
    """Only some of the ranks have neighbours yet; all go on in step."""
    own = ring([1, 1, 1, 1], on_lost_peer="skip")
    fall_silent(own[2])
    left = [own[0], own[1], own[3]]
    tried(left, barrier)

    def work(link):
        if link.rank == 0:  # both its neighbours are there
            link.send_ahead({1: np.zeros(2)}, {3: np.zeros(2)})
        wanted = {3: np.zeros(2)} if link.rank == 0 else {}
        link.exchange({0: np.ones(2)} if link.rank == 3 else {}, wanted)
        link.confirm()
        return [row.tolist() for row in wanted.values()]

    assert together(left, work) == [[[1.0, 1.0]], [], []]


@pytest.mark.parametrize("silent", [1, None])
def test_what_was_ahead_when_a_rank_was_lost_is_forgotten(ring, silent):
    """By one that has come back too, whether it had sent anything ahead or not."""
    own = ring([1, 1, 1], on_lost_peer="skip")

    def ahead(link):
        after, before = (link.rank + 1) % 3, (link.rank - 1) % 3
        link.send_ahead({after: np.zeros(2)}, {before: np.zeros(2)})

    together([link for link in own if link.rank != silent], ahead)
    fall_silent(own[1])
    tried([own[0], own[2]], barrier)
    back = Ranks([own[1].rejoin])
    time.sleep(0.1)
    together([own[0], own[2]], next_epoch(1))
    assert back.ended() == [1]

    def work(link):
        after, before = (link.rank + 1) % 3, (link.rank - 1) % 3
        wanted = {before: np.zeros(2)}
        link.exchange({after: np.full(2, float(link.rank))}, wanted)
        link.confirm()
        return wanted[before].tolist()

    assert together(own, work) == [[2.0, 2.0], [0.0, 0.0], [1.0, 1.0]]


def test_a_torn_exchange_does_not_outlive_the_mixing(ring):
    """A rank is lost within an exchange and found missing before its confirmation."""
    own = ring([1, 1, 1], on_lost_peer="skip")
    fall_silent(own[2])
    left = own[:2]

    def torn(link):
        link.exchange({2: np.zeros(2)}, {2: np.zeros(2)})
        assert link.rows.torn
        link.barrier()

    assert [type(error) for error in tried(left, torn)] == [ChangedError] * 2

    def work(link):
        wanted = np.zeros(1)
        link.exchange({1 - link.rank: np.ones(1)}, {1 - link.rank: wanted})
        link.confirm()
        return wanted.tolist()

    assert together(left, work) == [[1.0]] * 2


def test_ranks_that_wait_meet_the_one_that_is_started_again(ring):
    store = MemoryStore()
    own = ring([1, 2, 1], store, on_lost_peer="wait")
    assert all(link.waits for link in own)
    fall_silent(own[1])
    for error in tried([own[0], own[2]], barrier):
        assert isinstance(error, LostPeerError)
    met = Ranks([own[0].regroup, own[2].regroup])
    other = again(own[1], store)
    other.join(2)
    assert met.ended() == [None, None]
    now = [own[0], other, own[2]]
    assert [link.restarted for link in now] == [False, True, False]
    assert not any(link.returning for link in now)
    assert together(now, next_epoch(0)) == [(0, 1, 2)] * 3
    assert other.holds == own[0].holds == {0: range(1), 1: range(1, 3), 2: range(3, 4)}
    other.end()


def test_a_rank_is_started_again_before_anybody_has_missed_it(ring):
    store = MemoryStore()
    own = ring([1, 1, 1], store, on_lost_peer="wait")
    waiting = Ranks([lambda link=link: barrier(link) for link in own[:2]])
    fall_silent(own[2])
    other = again(own[2], store)
    came = Ranks([lambda: other.join(1)])
    for error in waiting.ended():
        assert isinstance(error, LostPeerError)
        assert "all meet anew" in str(error)
    assert together(own[:2], RingLink.regroup) == [None, None]
    assert came.ended() == [None]
    assert other.restarted
    assert together([*own[:2], other], barrier) == [(0, 1, 2)] * 3
    other.end()


def test_a_rank_that_dies_twice_is_met_all_the_same(ring):
    store = MemoryStore()
    own = ring([1, 1], store, on_lost_peer="wait")
    fall_silent(own[1])
    tried(own[:1], barrier)
    met = Ranks([own[0].regroup])
    time.sleep(0.1)
    dead = again(own[1], store)
    dead._meet = lambda told: dead._roll.write(told) or interrupt()
    with pytest.raises(InterruptedError):
        dead.join(1)
    other = again(own[1], store)
    other.join(1)
    met.ended()
    assert together([own[0], other], barrier) == [(0, 1)] * 2
    other.end()


def test_who_is_waited_for_in_vain_is_named(ring, monkeypatch):
    own = ring([1, 1], on_lost_peer="wait")
    fall_silent(own[1])
    tried(own[:1], barrier)
    monkeypatch.setattr("kgraft.links.ring_link.PATIENCE", 0.5)
    with pytest.raises(LostPeerError, match=r"rank 1 of 2 did not come within 0\.25 s"):
        own[0].regroup()


def test_a_rank_started_again_that_nobody_has_missed_is_known_anew(ring):
    """The others were busy all the time, and had sent rows to the process that is gone."""
    store = MemoryStore()
    own = ring([1, 1], store, on_lost_peer="skip", timeout=10.0)
    fall_silent(own[1])
    again = RingLink(rank=1, ranks=2, store=store, timeout=10.0, on_lost_peer="skip")
    again.join(1)
    assert again.returning
    back = Ranks([again.rejoin])
    while not any(key.startswith("ring/0/e0.1/0/1") for key in store.values):
        time.sleep(0.01)
    own[0].send_ahead({1: np.zeros(3)}, {1: np.zeros(3)})
    own[0].begin_epoch(1)
    assert back.ended() == [1]
    assert own[0].members == again.members == (0, 1)
    assert own[0]._view == again._view

    def swapped(link):
        wanted, other = np.empty(3), 1 - link.rank
        link.exchange({other: np.full(3, float(link.rank))}, {other: wanted})
        link.confirm()
        return wanted.tolist()

    assert together([own[0], again], swapped) == [[1.0] * 3, [0.0] * 3]
    assert own[0]._roll._known[1]["pid"] == again._roll._known[1]["pid"]
    again.end()


def test_what_a_lost_rank_had_to_share_the_next_one_shares(ring):
    own = ring([1, 1, 1], on_lost_peer="skip")
    own[0].end("it is switched off")
    assert tried(own[1:], lambda link: link.share(f"of {link.rank}")) == ["of 1"] * 2
