"""RingLink: a ring whose peers are in several processes, on one machine or many."""

import atexit
import json
import logging
import os
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

from numpy.typing import NDArray

from kgraft.errors import LostPeerError, UserError
from kgraft.links.agreement import Agreement
from kgraft.links.carrier import Carrier, Exchange, LimitedWait, Together
from kgraft.links.lanes import Lane
from kgraft.links.launch import carrier_of, leave, place_of, store_of, torchrun_rank
from kgraft.links.link import ChangedError, LeftOutError, Link
from kgraft.links.presence import Pause
from kgraft.links.roll import PATIENCE, Roll
from kgraft.links.rows import Rows
from kgraft.links.store import Store, drop, put, taken
from kgraft.nests import packed, unpacked
from kgraft.settings import argument

_log = logging.getLogger("kgraft")

OnLost = Literal["stop", "skip", "wait"]
_ANEW = "it joins anew"
_TRIES = 3  # of an exchange between ranks that are all there


class RingLink(Link):
    """Joins this process to a ring of several.

    Under torchrun nothing has to be given: the ranks find each other by its environment variables,
    small values go through its store and weights over gloo. Elsewhere `directory=` names a
    directory that all reach. Where `jax.distributed` is initialised (before anything is computed)
    its coordinator carries both; `"skip"` needs jax's `jax_enable_recoverability` there.

    Every rank beats. One that is not heard of for `timeout` seconds, whose process is gone, or that
    has said that it ends is lost; so is one that is alive and keeps the others waiting for ten
    times as long, and twenty times as long as their epoch took. Who takes ten times as long as
    another for an epoch is named in the log.

    No process group is registered: `torch.distributed.is_initialized()` stays false, so that Keras
    does not average the peers' gradients.

    Args:
        directory: where the ranks meet, of this training alone; None for torchrun's store, or that
            of `jax.distributed`.
        rank: which one this is, counted from 0; torchrun's (`RANK`) by default.
        ranks: how many there are; torchrun's (`WORLD_SIZE`) by default.
        timeout: seconds after which a rank that is not heard of is lost; ten times as long is
            waited for one that has not come yet.
        on_lost_peer: `"stop"` ends all ranks with an error that names the lost one; `"skip"` closes
            the ring over the gap, and lets a rank in again that comes back; `"wait"` waits for it
            to be started again, and goes on with all from the last epoch that all have saved.
        ranks_per_peer: R ranks train one peer, each on its part of every batch: rank r is replica
            r % R of block r // R, whose peers it has. Their gradients are averaged in every step;
            batch statistics are each replica's own and the first one's at an epoch's end.
        store: what the ranks agree by, instead of all that.
        carrier: what weights travel by; by default what suits the store.
        name: keeps several rings on one store apart.

    Attributes:
        waited: seconds that it has spent waiting for others and their weights, of which `exchanged`
            for weights.
        rows: weights on their way, and how many bytes were `sent` and `received`.

    Raises:
        UserError: an argument is out of range, or there is nothing to find the others by.

    Example:
        ```python
        link = kgraft.RingLink()  # under torchrun, whose ranks all run this
        peers = [build_my_cnn(k) for k in link.places(8)]  # compiled; this rank's share of 8
        kgraft.GraftingFit(peers, link=link).fit(x, y, epochs=200)

        model.fit(x, y, callbacks=[kgraft.GraftCallback(kgraft.RingLink())])  # or one a rank
        ```
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] | None = None,
        *,
        rank: int | None = None,
        ranks: int | None = None,
        timeout: float = 60.0,
        on_lost_peer: OnLost = "stop",
        ranks_per_peer: int = 1,
        store: Store | None = None,
        carrier: Carrier | None = None,
        name: str = "ring",
    ) -> None:
        super().__init__()
        self.timeout = argument("timeout", timeout, float, above=0)
        if on_lost_peer not in get_args(OnLost):
            raise UserError(
                f"on_lost_peer is {on_lost_peer!r}: expected one of {', '.join(get_args(OnLost))}."
            )
        self.on_lost_peer = on_lost_peer
        self.lanes = argument("ranks_per_peer", ranks_per_peer, int, low=1)
        self.rank, self.ranks = place_of(rank, ranks, self.lanes)
        self.store = store or store_of(directory, self.timeout)
        self.rows = Rows(carrier or carrier_of(self.store))
        self._name, self._generation, self._tries, self._has_left = name, 0, 0, False
        self._lane: Lane | None = None
        self._called = torchrun_rank(self.rank)
        if self.lanes > 1:
            self._part()
        self._at, self._number, self._view = "start", 0, ""
        self._epoch = 0, -1  # which series, for a training may begin anew, and which epoch of it
        self._said: list[str] = []
        self._roll = Roll(self.store, self.start, self.rank, self.timeout)
        self.waits = on_lost_peer == "wait"
        self.waited = self.exchanged = 0.0

    def _part(self) -> None:
        """Become one of a lane, with a link to the others of the block."""
        (self.rank, self.lane), self.ranks = divmod(self.rank, self.lanes), self.ranks // self.lanes
        block = self.block = RingLink(
            rank=self.lane,
            ranks=self.lanes,
            timeout=self.timeout,
            store=self.store,
            name=f"{self._name}-block-{self.rank}",
        )
        block._called, self._lane = self._called, Lane(block, self.lane, self.lanes)
        self._name = f"{self._name}-lane-{self.lane}"

    def __repr__(self) -> str:
        return f"RingLink(rank {self.rank} of {self.ranks}, {self.store.where})"

    def places(self, count: int) -> range:
        """This rank's share of K peers: neighbours in the ring, as many as others have or one more.

        Args:
            count: K.

        Returns:
            Their numbers, counted from 0.

        Raises:
            UserError: there are fewer peers than ranks.
        """
        if argument("count", count, int, low=1) < self.ranks:
            raise UserError(f"peers: {count}, ranks: {self.ranks}; every rank needs one.")
        each, more = divmod(count, self.ranks)
        start = self.rank * each + min(self.rank, more)
        return range(start, start + each + (self.rank < more))

    def join(self, peers: int) -> None:
        """See `Link`; goes on when all ranks are there, or at once where the others went on."""
        self._roll.end(_ANEW)
        regroups = bool(self.holds)
        self._generation = self._newest_generation()
        self._roll = Roll(self.store, self.start, self.rank, self.timeout)
        self.returning = False
        if self._roll.is_written:  # this rank has been here before
            self.returning = self.on_lost_peer == "skip" and self._roll.goes_on(self.ranks)
            if not self.returning:
                self.store.set(f"{self._name}/generation", b"%d" % (self._generation + 1))
        self._meet({"rank": self._called, "peers": peers, "regroups": regroups})
        if not self.holds:  # its thread beats on for as long as the process runs
            atexit.register(leave, weakref.ref(self))
        self.holds = self._roll.holds
        self.members, self._has_left = tuple(range(self.ranks)), False
        self.restarted = self.returning or (self._roll.anybody_regroups and not regroups)
        if self._lane is not None:
            self._lane.join(peers, self.here, self.check)

    def _meet(self, told: dict[str, Any]) -> None:
        """Wait for all ranks of the newest start."""
        until, pause = time.monotonic() + self.timeout * PATIENCE, Pause()
        written = -1
        while True:
            newest = self._newest_generation()
            if written < newest:
                self._roll.end(_ANEW)
                self._generation = written = newest
                self._at, self._number, self._said, self._epoch = "start", 0, [], (0, -1)
                self.rows.forget()
                self._view = f"{self._name}/{newest}"
                self._roll = Roll(self.store, self.start, self.rank, self.timeout)
                self._roll.write(told)
            away = self._roll.away(self.ranks)
            if not away:
                self._roll.read(self.ranks)
                others = (rank for rank in range(self.ranks) if rank != self.rank)
                if self.returning or not any(map(self._roll.has_ended, others)):
                    return
                # of an earlier start, on the same store
                self.store.set(f"{self._name}/generation", b"%d" % (newest + 1))
            self.check()
            if time.monotonic() > until:
                raise LostPeerError(
                    f"rank {', '.join(map(str, away))} of {self.ranks} did not come within "
                    f"{self.timeout * PATIENCE:g} s (link: {self.store.where}): was it started?"
                )
            pause()

    def add(self, flat: Any) -> None:
        """See `Link`.

        Raises:
            LostPeerError: a replica does not answer.
        """
        assert self._lane is not None
        self._lane.add(flat)

    @property
    def start(self) -> str:
        """Names this start of the ring, among others on one store."""
        return f"{self._name}/{self._generation}"

    def blamed(self, ranks: list[int], reason: str) -> str:
        """Who of some ranks is lost, see `Roll.blamed`."""
        return self._roll.blamed(ranks, reason)

    def share(self, value: Any) -> Any:
        """See `Link`: in the first lane, then from it to the others."""
        if self.block is None:
            return super().share(value)
        return self.block.share(super().share(value) if self.lane == 0 else None)

    def regroup(self) -> None:
        """See `Link`."""
        if self._newest_generation() == self._generation:
            self.store.set(f"{self._name}/generation", b"%d" % (self._generation + 1))
        self.join(len(self.here))

    def again(self) -> None:
        """See `Link`."""
        if self._has_left:
            self.regroup()

    def begin_epoch(self, epoch: int) -> None:
        """See `Link`."""
        said, self._said = self._said, []
        self._turn_to(self._epoch[0] + (epoch <= self._epoch[1]), epoch)
        found = self.gather_small(False, opens=True)
        if back := [rank for rank, is_back in found.items() if is_back]:
            self.rows.forget()  # also where nobody has missed them
            self._roll.renew(back)
            self._view = f"{self.start}/{self._at}/0"
        self._begun()
        for key in said:  # of the epoch before, in which nobody is any more
            drop(self.store, key)
            if self.is_first:
                self.store.delete(f"{key.rpartition('/')[0]}/decided")

    def rejoin(self) -> int:
        """Be let in again where the others went on without this rank.

        Returns:
            The epoch that begins, with this rank in it.

        Raises:
            LostPeerError: nobody is there any more.
        """
        self.returning, others = False, [r for r in range(self.ranks) if r != self.rank]
        while True:
            now = series, epoch = self._now()
            self._turn_to(series, epoch + 1)
            key, pause, began = self._next(), Pause(), time.monotonic()
            self._say(key, True)
            decided = f"{key}/decided"
            while not self.store.has([decided]) and self._now() == now:
                self.check()
                if self._roll.are_gone(others, time.monotonic() - began):
                    raise LostPeerError("the others have ended the training without this rank.")
                pause()
            members = tuple(json.loads(self.store.get(decided) or b"{}").get("members", ()))
            if self.rank in members:
                self.members, self._view = members, key
                self.rows.forget()
                self._begun()
                _log.warning("this rank is in the ring again from epoch %d on", epoch + 2)
                return epoch + 1
            time.sleep(0.05)

    def gather_small(self, value: Any, *, opens: bool = False) -> dict[int, Any]:
        """See `Link`."""
        self.check_joined()
        key, began = self._next(), time.monotonic()
        self._say(key, value)
        said = self._agreement().on(key, self.members, self.check)
        self.waited += time.monotonic() - began
        if "broken" in said:
            raise LostPeerError(said["broken"])
        members, before = tuple(sorted(said["members"])), self.members
        if self.rank not in members:
            raise LeftOutError
        self.members = members
        if members != before:
            self._view = key
            self.rows.forget()
            self._roll.tell_change(before, members)
            if not opens:
                raise ChangedError
        keys = [f"{key}/{rank}" for rank in members]
        if not self.store.has(keys):  # the others have gone on since, and cleared away
            raise LeftOutError
        return dict(zip(members, map(unpacked, taken(self.store, keys)), strict=True))

    def exchange(
        self, sent: Mapping[int, NDArray[Any]], wanted: Mapping[int, NDArray[Any]]
    ) -> None:
        """See `Link`."""
        began = time.monotonic()
        self._view = self.rows.exchange(
            self._asked(sent, wanted, self._look),
            lambda own: all(self.gather_small(own).values()),
        )
        took = time.monotonic() - began
        self.waited, self.exchanged = self.waited + took, self.exchanged + took

    def send_ahead(
        self, sent: Mapping[int, NDArray[Any]], wanted: Mapping[int, NDArray[Any]]
    ) -> None:
        """See `Link`."""
        if not self.lost:  # who lacks a neighbour has nothing to send: all do the same
            self.rows.send_ahead(self._asked(sent, wanted, self._roll.look))

    def kept(self, name: str, value: Any) -> Any:
        """See `Link`."""
        key = f"{self.start}/kept/{name}"
        if self.returning:
            return json.loads(self.store.get(key) or json.dumps(value))
        self.store.set(key, json.dumps(value).encode())
        return value

    def confirm(self) -> None:
        """See `Link`."""
        torn, self.rows.torn = self.rows.torn, ""
        told = {rank: why for rank, why in self.gather_small(torn).items() if why}
        self._tries = self._tries + 1 if told else 0
        if not told:
            return
        self._view = f"{self.start}/{self._at}/{self._number}"
        if self._tries == _TRIES:
            rank, why = next(iter(told.items()))
            raise LostPeerError(
                f"weights do not reach {self._roll.called(rank)}, {_TRIES} times over: {why} "
                f"(link: {self.store.where})."
            )
        raise ChangedError

    def end(self, words: str = "") -> None:
        """See `Link`."""
        self._has_left = words != _ANEW
        self._roll.end(words)
        if self._lane is not None:
            self._lane.end(words)
        if words != _ANEW:
            self.store.leave(lambda: all(map(self._roll.has_ended, self.members)))

    def _asked(
        self,
        sent: Mapping[int, NDArray[Any]],
        wanted: Mapping[int, NDArray[Any]],
        look: Callable[[int, float], None],
    ) -> Exchange:
        together = Together(self._view, self.members, self.rank)
        return Exchange(self._next(), together, sent, wanted, LimitedWait(look, self.timeout))

    def _look(self, rank: int, waited: float) -> None:
        self.check()
        self._roll.look(rank, waited)

    def _agreement(self) -> Agreement:
        return Agreement(
            self.store,
            self._roll,
            self.rank,
            self.ranks,
            self.on_lost_peer == "skip",
            lambda: self._newest_generation() > self._generation,
            lambda: self._now() > self._epoch,
        )

    def _say(self, key: str, value: Any) -> None:
        own = f"{key}/{self.rank}"
        put(self.store, own, packed(value))
        self._said.append(own)

    def _turn_to(self, series: int, epoch: int) -> None:
        self._epoch = series, epoch
        self._at, self._number = f"e{series}.{epoch}", 0

    def _begun(self) -> None:
        self._roll.begin(self._epoch[1])
        self.store.set(f"{self.start}/now", b"%d %d" % self._epoch)

    def _now(self) -> tuple[int, int]:
        """The series and the epoch that somebody was the last to begin."""
        series, epoch = map(int, (self.store.get(f"{self.start}/now") or b"0 -1").split())
        return series, epoch

    def _next(self) -> str:
        key = f"{self.start}/{self._at}/{self._number}"
        self._number += 1
        return key

    def _newest_generation(self) -> int:
        return int(self.store.get(f"{self._name}/generation") or 0)
