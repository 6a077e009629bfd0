"""RingLink while nobody is lost: what its ranks say, give and receive; ranks are threads."""

import threading
from datetime import timedelta

import numpy as np
import pytest

from kgraft.errors import LostPeerError, UserError
from kgraft.links.carrier import StoreCarrier, TornError
from kgraft.links.link import ChangedError, running_mean
from kgraft.links.ring_link import RingLink
from kgraft.links.store import PART, DirectoryStore
from tests.links.memory_store import MemoryStore
from tests.links.rings import ended, joined, links, together, tried
from tests.processes import process


@pytest.fixture
def ring():
    """Makes rings, and ends them."""
    made = []

    def make(peers, store=None, **options):
        own = joined(peers, store, **options)
        made.extend(own)
        return own

    yield make
    ended(made)


def test_ranks_hold_places_in_ring_order(ring):
    own = ring([2, 1, 3])
    for rank, link in enumerate(own):
        assert link.holds == {0: range(2), 1: range(2, 3), 2: range(3, 6)}
        assert link.here == link.holds[rank]
        assert (link.count, link.members, link.lost) == (6, (0, 1, 2), frozenset())
        assert [link.owner(k) for k in range(6)] == [0, 0, 1, 2, 2, 2]
        assert (link.is_first, link.writes) == (rank == 0, rank == 0)
        assert not link.returning
        assert not link.restarted


def test_everybody_hears_what_everybody_says(ring):
    own = ring([1, 1, 1])

    def say(link):
        array = np.full((2, 1), link.rank, np.float32)
        return link.gather_small({"a": [link.rank, None], "b": array}), link.gather_small("x")

    for first, second in together(own, say):
        assert list(first) == [0, 1, 2]
        for rank, said in first.items():
            assert said["a"] == [rank, None]
            assert said["b"].dtype == np.float32
            np.testing.assert_array_equal(said["b"], [[rank], [rank]])
        assert second == {0: "x", 1: "x", 2: "x"}


def test_anywhere_is_on_any_rank(ring):
    own = ring([1, 1])
    assert together(own, RingLink.anywhere, [False, True]) == [True, True]
    assert together(own, RingLink.anywhere, [False, False]) == [False, False]


@pytest.mark.parametrize("size", [3, PART])
def test_the_first_rank_gives_to_all(ring, size):
    own = ring([1, 1, 1])
    values = [{"rank": rank, "rows": np.arange(size) + rank} for rank in range(3)]
    for found in together(own, RingLink.share, values):
        assert found["rank"] == 0
        np.testing.assert_array_equal(found["rows"], np.arange(size))


def test_the_first_rank_collects_of_all(ring):
    own = ring([1, 2, 1])
    values = ["first", {"rows": np.arange(PART)}, []]
    first, *others = together(own, RingLink.collect, values)
    assert list(first) == [0, 1, 2]
    assert first[0] == "first"
    assert first[2] == []
    np.testing.assert_array_equal(first[1]["rows"], np.arange(PART))
    assert others == [{}, {}]


def row(rank, of, size=4):
    return np.arange(size, dtype=np.float32) + 10 * of + rank


def sent_and_wanted(link):
    """Everybody to everybody."""
    others = [rank for rank in link.members if rank != link.rank]
    sent = {other: row(link.rank, other) for other in others}
    return sent, {other: np.full(4, np.nan, np.float32) for other in others}


def swap(link):
    sent, wanted = sent_and_wanted(link)
    link.exchange(sent, wanted)
    link.confirm()
    for other, found in wanted.items():
        np.testing.assert_array_equal(found, row(other, link.rank))
    return link.rows.sent, link.rows.received


def gloo_ring(ranks):
    distributed = pytest.importorskip("torch.distributed")
    from kgraft.links.torch_store import TorchStore

    limit = timedelta(seconds=10)
    host = distributed.TCPStore("127.0.0.1", 0, None, True, limit, wait_for_workers=False)

    def link(rank):
        own = distributed.TCPStore(
            "127.0.0.1", host.port, None, False, limit, wait_for_workers=False
        )
        return RingLink(rank=rank, ranks=ranks, store=TorchStore(own, "test"), timeout=10.0)

    return host, [link(rank) for rank in range(ranks)]


def test_rows_go_through_the_store_and_are_cleared_away(ring):
    store = MemoryStore()
    own = ring([1, 1, 1], store)
    for _ in range(2):
        told = together(own, swap)
    assert told == [(64, 64)] * 3
    assert not [key for key in store.values if ">" in key]


def test_rows_go_over_gloo():
    host, own = gloo_ring(3)
    together(own, RingLink.join, [1, 1, 1])
    assert type(own[0].rows._carrier).__name__ == "GlooCarrier"
    for _ in range(2):
        told = together(own, swap)
    assert told == [(64, 64)] * 3
    assert not [link for link in own if not link.waited >= link.exchanged > 0]
    ended(own)
    del host


def test_rows_go_through_a_directory(ring, tmp_path):
    own = ring([1, 1], DirectoryStore(tmp_path))
    assert together(own, swap) == [(16, 16)] * 2


class Counting(StoreCarrier):
    """Knows the names of what it carried."""

    def __init__(self, store):
        super().__init__(store)
        self.names = set()

    def exchange(self, own):
        self.names.add(own.name)
        super().exchange(own)


def ahead(link, changes=False):
    sent, wanted = sent_and_wanted(link)
    link.send_ahead(sent, {other: np.empty_like(own) for other, own in wanted.items()})
    if changes:
        sent = {other: own + 1 for other, own in sent.items()}
    link.exchange(sent, wanted)
    link.confirm()
    return {other: own.tolist() for other, own in wanted.items()}, link.rows.sent


@pytest.mark.parametrize("changed", [(), (1,), (0, 1, 2)])
def test_what_went_ahead_is_taken_if_it_is_still_so_on_all_ranks(ring, changed):
    store = MemoryStore()
    carrier = Counting(store)
    own = ring([1, 1, 1], store, carrier=carrier)
    told = together(own, ahead, [rank in changed for rank in range(3)])
    for rank, (found, sent) in enumerate(told):
        assert found == {
            other: (row(other, rank) + (other in changed)).tolist()
            for other in range(3)
            if other != rank
        }
        assert sent == 32
    assert len(carrier.names) == 1 + bool(changed)
    together(own, swap)


class LosesTheStore(StoreCarrier):
    """Its first exchange ends as when the store is gone."""

    def __init__(self, store):
        super().__init__(store)
        self.is_well = False

    def exchange(self, own):
        super().exchange(own)
        if not self.is_well:
            self.is_well = True
            for row in own.wanted.values():
                row[...] = np.nan
            raise LostPeerError("the store does not answer any more")


def test_what_never_came_ahead_is_asked_for_anew(ring):
    """Else what is filled in would be whatever the memory held."""
    own = ring([1, 1])
    own[1].rows._carrier = LosesTheStore(own[1].store)
    for rank, (found, _) in enumerate(together(own, ahead)):
        assert found == {1 - rank: row(1 - rank, rank).tolist()}


def test_an_epoch_that_is_over_leaves_nothing_in_the_store(ring):
    store = MemoryStore()
    own = ring([1, 1], store)

    def trained(link, epochs):
        for epoch in epochs:
            link.begin_epoch(epoch)
            for _ in range(3):
                link.gather_small(epoch)

    together(own, lambda link: trained(link, range(2)))
    before = len(store.values)
    together(own, lambda link: trained(link, range(2, 9)))
    assert len(store.values) == before


def test_what_went_ahead_is_of_that_moment(ring):
    """What is changed in place while it is on its way has been copied."""
    own = ring([1, 1])

    def work(link):
        sent, wanted = sent_and_wanted(link)
        link.send_ahead(sent, {other: np.empty_like(own) for other, own in wanted.items()})
        for mine in sent.values():
            mine += link.rank
        link.exchange(sent, wanted)
        link.confirm()
        return wanted[1 - link.rank].tolist()

    assert together(own, work) == [(row(1, 0) + 1).tolist(), row(0, 1).tolist()]


def test_a_series_of_exchanges_ahead_and_not(ring):
    own = ring([1, 1, 1])

    def work(link):
        for turn in range(12):
            if turn % 3:
                ahead(link, changes=turn % 4 == link.rank)
            swap(link)

    together(own, work)


@pytest.mark.parametrize(
    ("counts", "size"),
    [((2, 1, 3), 11), ((1, 0, 2), 7), ((0, 0, 1), 5), ((1, 1, 1), 2), ((3, 1, 0), 1)],
)
def test_the_mean_is_the_running_mean_in_ring_order_to_the_bit(ring, counts, size):
    rng = np.random.default_rng(0)
    rows = [[rng.normal(size=size).astype(np.float32) for _ in range(count)] for count in counts]
    own = ring([max(count, 1) for count in counts])
    expected = running_mean([own for of in rows for own in of])

    def work(link, mine):
        found = link.mean(mine, size, np.float32)
        link.confirm()
        return found

    for found in together(own, work, rows):
        assert found.dtype == np.float32
        assert found.tobytes() == expected.tobytes()


def test_there_is_no_mean_of_nothing(ring):
    own = ring([1, 1])
    assert together(own, lambda link: link.mean([], 4, np.float32)) == [None, None]
    together(own, RingLink.barrier)


def test_the_running_mean_of_equal_values_is_that_value():
    value = np.float32([0.1, 1 / 3, 1e-30])
    assert running_mean([value] * 7).tobytes() == value.tobytes()
    np.testing.assert_allclose(running_mean([1.0, 2.0, 6.0]), 3.0)


def test_epochs_clear_away_what_was_said(ring):
    store = MemoryStore()
    own = ring([1, 1], store)

    def work(link):
        for epoch in range(3):
            link.begin_epoch(epoch)
            link.gather_small(epoch)

    together(own, work)
    said = [key for key in store.values if key.rpartition("/")[2] in ("0", "1")]
    said = [key for key in said if "/e0." in key]
    assert {key.split("/")[2] for key in said} == {"e0.2"}
    assert store.get("ring/0/now") == b"0 2"


def test_epochs_that_come_again_are_others(ring):
    """A second fit, or one that begins anew: old words are nobody's."""
    own = ring([1, 1])

    def work(link):
        said = []
        for word, epoch in enumerate([0, 1, 0, 1, 1, 5, 2]):
            link.begin_epoch(epoch)
            said.append(link.gather_small([word, link.rank]))
        return said

    for said in together(own, work):
        assert said == [{0: [word, 0], 1: [word, 1]} for word in range(7)]


class Failing(StoreCarrier):
    """Breaks some exchanges when all is sent."""

    def __init__(self, store, times):
        super().__init__(store)
        self.times = times

    def exchange(self, own):
        super().exchange(own)
        if self.times:
            self.times -= 1
            raise TornError("the cable is out")


def failing_ring(times):
    store = MemoryStore()
    own = [
        RingLink(rank=rank, ranks=3, store=store, carrier=Failing(store, fails), timeout=5.0)
        for rank, fails in enumerate([0, times, 0])
    ]
    together(own, RingLink.join, [1, 1, 1])
    return own


def test_an_exchange_that_tears_on_one_rank_is_begun_anew_on_all():
    own = failing_ring(1)
    for _ in range(3):  # each has three tries of its own
        came = tried(own, swap)
        assert [type(error) for error in came] == [ChangedError] * 3
        together(own, swap)
        own[1].rows._carrier.times = 1
    ended(own)


def test_rows_that_are_torn_are_nobodys():
    own = failing_ring(1)

    def work(link):
        sent, wanted = sent_and_wanted(link)
        link.exchange(sent, wanted)
        found = [mine.tolist() for mine in wanted.values()]
        with pytest.raises(ChangedError):
            link.confirm()
        return found

    assert together(own, work)[1] == [[0.0] * 4] * 2
    ended(own)


def test_an_exchange_that_tears_three_times_ends_all():
    own = failing_ring(3)
    for _ in range(2):
        assert [type(error) for error in tried(own, swap)] == [ChangedError] * 3
    for error in tried(own, swap):
        assert isinstance(error, LostPeerError)
        assert str(error).startswith("weights do not reach rank 1 on ")
        assert "(peer 2), 3 times over: the cable is out (link: memory)." in str(error)
    ended(own)


def test_a_row_of_another_size_is_torn(ring):
    own = ring([1, 1], timeout=1.0)

    def work(link):
        mine, theirs = np.zeros(3 + link.rank), np.zeros(3)
        link.exchange({1 - link.rank: mine}, {1 - link.rank: theirs})
        link.confirm()

    assert [type(error) for error in tried(own, work)] == [ChangedError] * 2


def test_who_has_given_up_an_exchange_keeps_nobody_waiting(ring):
    """It sends nothing more, is alive, and the others would wait as long as for a slow one."""
    own = ring([1, 1, 1])

    def work(link):
        two, three = np.zeros(2), np.zeros(3)
        first = [({1: three}, {}), ({}, {0: two}), ({}, {})]  # tears on rank 1 alone
        second = [({}, {1: two}), ({0: two}, {}), ({}, {})]
        link.exchange(*first[link.rank])
        link.exchange(*second[link.rank])
        link.confirm()

    assert [type(error) for error in tried(own, work)] == [ChangedError] * 3


def test_two_rings_on_one_store_are_apart(ring):
    store = MemoryStore()
    both = [ring([1, 1], store, name=name) for name in ("a", "b")]
    for name, own in zip("ab", both, strict=True):
        assert (
            together(own, lambda link, name=name: link.gather_small(name))
            == [{0: name, 1: name}] * 2
        )


def test_a_directory_of_an_earlier_run_is_used_again(tmp_path):
    for run in range(3):
        own = joined([1, 2], DirectoryStore(tmp_path))
        assert together(own, lambda link, run=run: link.gather_small(run)) == [{0: run, 1: run}] * 2
        assert not any(link.restarted or link.returning for link in own)
        ended(own)


@pytest.mark.parametrize(
    ("count", "ranks", "expected"),
    [
        (5, 2, [range(3), range(3, 5)]),
        (4, 4, [range(k, k + 1) for k in range(4)]),
        (8, 3, [range(3), range(3, 6), range(6, 8)]),
    ],
)
def test_places_are_shared_out_evenly(count, ranks, expected):
    assert [link.places(count) for link in links(ranks)] == expected


def test_fewer_peers_than_ranks_are_refused():
    with pytest.raises(UserError, match="peers: 2, ranks: 3; every rank needs one"):
        links(3)[0].places(2)
    with pytest.raises(UserError, match="count"):
        links(3)[0].places(0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 2, "ranks": 2}, "rank is 2 of 2 ranks: they are counted from 0"),
        ({"rank": -1, "ranks": 2}, "rank"),
        ({"rank": 0, "ranks": 0}, "ranks"),
        ({"rank": 0, "ranks": 2, "timeout": 0.0}, "timeout"),
        ({"rank": 0, "ranks": 2, "on_lost_peer": "go on"}, "expected one of stop, skip, wait"),
        ({"rank": 0, "ranks": 2, "ranks_per_peer": 0}, "ranks_per_peer"),
        ({"rank": 0, "ranks": 3, "ranks_per_peer": 2}, "3 ranks are no multiple of ranks_per_peer"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(UserError, match=message) as told:
        RingLink(store=MemoryStore(), **options)
    assert "\n" not in str(told.value)


def test_without_a_launcher_it_says_what_to_do(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    said = "which rank of how many this is: start with torchrun .*give both"
    with pytest.raises(UserError, match=said):
        RingLink(store=MemoryStore())
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    link = RingLink(store=MemoryStore())
    assert (link.rank, link.ranks) == (1, 3)


class Summed:
    """In the place of `ReplicaGroup`: knows who is in it."""

    made: list["Summed"]

    @classmethod
    def over(cls, store, name, number, count, timeout):
        own = cls()
        own.told = name, number, count
        cls.made.append(own)
        return own

    def add(self, flat):
        flat += 1

    def close(self):
        self.told = None


@pytest.fixture
def summed(monkeypatch):
    Summed.made = []
    monkeypatch.setattr("kgraft.links.lanes.ReplicaGroup", Summed)
    return Summed


def test_ranks_of_a_lane_are_a_ring_and_those_of_a_block_replicas(summed):
    own = links(6, ranks_per_peer=2)
    together(own, RingLink.join, [1, 1, 2, 2, 1, 1])
    for number, link in enumerate(own):
        assert (link.rank, link.lane) == divmod(number, 2)
        assert (link.ranks, link.lanes) == (3, 2)
        assert link.holds == {0: range(1), 1: range(1, 3), 2: range(3, 4)}
        assert link.writes == (number == 0)
        assert link.block.holds == {0: link.here, 1: link.here}
        assert link.block.rank == link.lane
        assert [len(link.places(8)) for link in own[::2]] == [3, 3, 2]
    told = together(own, lambda link: link.gather_small([link.rank, link.lane]))
    assert told == [{rank: [rank, lane] for rank in range(3)} for lane in (0, 1)] * 3
    assert sorted(own.told for own in summed.made) == sorted(
        (f"ring-block-{block}/0/group", lane, 2) for block in range(3) for lane in (0, 1)
    )
    assert together(own, RingLink.share, list("abcdef")) == ["a"] * 6
    assert together(own, RingLink.anywhere, [False] * 5 + [True]) == [True] * 6
    flat = np.zeros(2)
    own[3].add(flat)
    np.testing.assert_array_equal(flat, [1, 1])
    ended(own)
    assert all(own.told is None for own in summed.made)


def test_a_replica_that_does_not_answer_is_named(summed, monkeypatch):
    own = links(2, ranks_per_peer=2, timeout=2.0)
    together(own, RingLink.join, [1, 1])

    def fails(self, flat):
        raise RuntimeError("Connection closed by peer\nand more")

    monkeypatch.setattr(summed, "add", fails)
    own[1].end("ValueError: no")
    with pytest.raises(LostPeerError, match=r"rank 1 on .*: it has ended \(ValueError: no\)"):
        own[0].add(np.zeros(1))
    own[0].end()


def test_a_replica_that_is_not_lost_is_named_all_the_same(summed, monkeypatch):
    own = links(2, ranks_per_peer=2, timeout=0.3)
    together(own, RingLink.join, [1, 1])

    def fails(self, flat):
        raise RuntimeError("Connection closed by peer\nand more")

    monkeypatch.setattr(summed, "add", fails)
    with pytest.raises(
        LostPeerError, match=r"rank 1 on .* does not answer, and is not lost: Connection closed"
    ):
        own[0].add(np.zeros(1))
    ended(own)


def test_threads_of_a_ring_end_with_it():
    before = threading.active_count()
    own = joined([1, 1])
    together(own, ahead)
    ended(own)
    assert threading.active_count() == before


def test_replicas_have_the_names_of_their_processes(summed):
    own = links(4, ranks_per_peer=2)
    together(own, RingLink.join, [1] * 4)
    for number, link in enumerate(own):
        called = link._roll.called(link.rank)
        assert called.startswith(f"rank {number} on ")
        assert link.block._roll.called(link.block.rank) == called
    ended(own)


def test_replicas_need_a_store_that_torch_knows():
    own = links(2, ranks_per_peer=2)
    for error in tried(own, RingLink.join, [1, 1]):
        assert isinstance(error, UserError)
        assert "ranks_per_peer = 2 over the memory: replicas meet in torchrun's" in str(error)
    for link in own:
        link._roll.end("")
        link.block.end()


def test_no_heart_beats_when_python_ends(tmp_path):
    """Not that of a link that is gone either: in a store of C++ it would abort the process."""
    script = (
        "import atexit, gc, threading, kgraft\n"
        "beating = lambda: [own.name for own in threading.enumerate() if 'heart' in own.name]\n"
        "atexit.register(lambda: print(beating()))\n"
        f"link = kgraft.RingLink({str(tmp_path)!r}, rank=0, ranks=1)\n"
        "link.join(1); print(beating()); del link; gc.collect()\n"
    )
    said = process(["-c", script]).communicate(timeout=60)[0]
    assert said.splitlines()[-2:] == ["['kgraft-heartbeat']", "[]"]
