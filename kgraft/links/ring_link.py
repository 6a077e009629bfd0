"""RingLink: a ring whose peers are in several processes, on one machine or many."""

import json
import logging
import os
import time
from collections.abc import Mapping
from typing import Any, Literal, get_args

from numpy.typing import NDArray

from kgraft.errors import LostPeerError, UserError
from kgraft.links.agreement import Agreement
from kgraft.links.carrier import Carrier, LimitedWait, Together
from kgraft.links.launch import at_hand, carrier_of, store_of, torchrun_rank
from kgraft.links.link import ChangedError, LeftOutError, Link
from kgraft.links.presence import Pause
from kgraft.links.roll import PATIENCE, Roll
from kgraft.links.rows import Rows
from kgraft.links.store import Store, drop, put, taken
from kgraft.nests import packed, unpacked
from kgraft.settings import argument

_log = logging.getLogger("kgraft")

OnLost = Literal["stop", "skip", "wait"]
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
        timeout: seconds after which a rank that is not heard of is lost.
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
        found = at_hand() if rank is None or ranks is None else (rank, ranks)
        self.rank = found[0] if rank is None else argument("rank", rank, int, low=0)
        self.ranks = found[1] if ranks is None else argument("ranks", ranks, int, low=1)
        if self.rank >= self.ranks:
            raise UserError(f"rank is {self.rank} of {self.ranks} ranks: they are counted from 0.")
        self.store = store or store_of(directory, self.timeout)
        self._rows = Rows(carrier or carrier_of(self.store))
        self._name, self._generation = name, 0
        self._group: Any = None
        self.lanes = argument("ranks_per_peer", ranks_per_peer, int, low=1)
        if self.lanes > 1:
            self._part()
        self._at, self._number, self._view = "start", 0, ""
        self._said: list[str] = []
        self._roll = self._new_roll()
        self._tries = 0
        self.waits = on_lost_peer == "wait"
        self.waited = self.exchanged = 0.0

    def _part(self) -> None:
        """Become one of a lane, with a link to the others of the block."""
        if self.ranks % self.lanes:
            raise UserError(
                f"{self.ranks} ranks are no multiple of ranks_per_peer = {self.lanes}: every peer "
                "needs as many."
            )
        (self.rank, self.lane), self.ranks = divmod(self.rank, self.lanes), self.ranks // self.lanes
        self.block = RingLink(
            rank=self.lane,
            ranks=self.lanes,
            timeout=self.timeout,
            store=self.store,
            name=f"{self._name}-block-{self.rank}",
        )
        self._name = f"{self._name}-lane-{self.lane}"

    @property
    def called(self) -> str:
        """This rank with its host and peers, in words."""
        return self._roll.called(self.rank)

    def places(self, count: int) -> range:
        """This rank's share of K peers: neighbours in the ring, as many as others have or one more.

        Args:
            count: K.

        Returns:
            Their numbers, counted from 0.

        Raises:
            UserError: there are fewer peers than ranks.

        Example:
            >>> RingLink("/tmp/kgraft-ring", rank=1, ranks=2).places(5)
            range(3, 5)
        """
        if argument("count", count, int, low=1) < self.ranks:
            raise UserError(f"{count} peers for {self.ranks} ranks: every rank needs one.")
        each, more = divmod(count, self.ranks)
        start = self.rank * each + min(self.rank, more)
        return range(start, start + each + (self.rank < more))

    def join(self, peers: int) -> None:
        """See `Link`; goes on when all ranks are there, or at once where the others went on."""
        self._roll.end("it joins anew")
        regroups = bool(self.holds)
        self._generation = self._newest_generation()
        self._roll = self._new_roll()
        self.returning = False
        if self._roll.is_written:  # this rank has been here before
            self.returning = self.on_lost_peer == "skip" and self._roll.anybody_beats(self.ranks)
            if not self.returning:
                self._announce(self._generation + 1)
        self._meet({"rank": torchrun_rank(self.rank), "peers": peers, "regroups": regroups})
        self._roll.read(self.ranks)
        self.holds = self._roll.holds
        self.members = tuple(range(self.ranks))
        self.restarted = self.returning or (self._roll.anybody_regroups and not regroups)
        if self.block is not None:
            self._join_block(peers)

    def _meet(self, told: dict[str, Any]) -> None:
        """Wait for all ranks of the newest start."""
        until, pause = time.monotonic() + self.timeout * PATIENCE, Pause()
        written = -1
        while True:
            newest = self._newest_generation()
            if written < newest:
                self._roll.end("it joins anew")
                self._generation = written = newest
                self._at, self._number, self._said = "start", 0, []
                self._rows.forget()
                self._view = f"{self._name}/{newest}"
                self._roll = self._new_roll()
                self._roll.write(told)
            away = self._roll.away(self.ranks)
            if not away:
                return
            self.check()
            if time.monotonic() > until:
                raise LostPeerError(
                    f"rank {', '.join(map(str, away))} of {self.ranks} did not come within "
                    f"{self.timeout * PATIENCE:g} s (link: {self.store.where}): was it started?"
                )
            pause()

    def _join_block(self, peers: int) -> None:
        from kgraft.links.torch_store import ReplicaGroup

        block = self.block
        assert isinstance(block, RingLink)
        block.check = self.check
        block.join(peers)
        block.holds.update(dict.fromkeys(block.holds, self.here))  # all have the same
        name = f"{block._name}/{block._generation}/group"
        self._group = ReplicaGroup.over(self.store, name, self.lane, self.lanes, self.timeout)  # type: ignore[arg-type]

    def add(self, flat: Any) -> None:
        """See `Link`.

        Raises:
            LostPeerError: a replica does not answer.
        """
        try:
            self._group.add(flat)
        except RuntimeError as error:
            self.check()
            assert isinstance(self.block, RingLink)
            others = [lane for lane in range(self.lanes) if lane != self.lane]
            reason = str(error).splitlines()[0]
            raise LostPeerError(self.block._roll.blamed(others, reason)) from None

    def share(self, value: Any) -> Any:
        """See `Link`: in the first lane, then from it to the others."""
        if self.block is None:
            return super().share(value)
        return self.block.share(super().share(value) if self.lane == 0 else None)

    def regroup(self) -> None:
        """See `Link`."""
        if self._newest_generation() == self._generation:
            self._announce(self._generation + 1)
        limit = self.timeout * PATIENCE
        _log.warning("waiting for all %d ranks to come back, %g s at most", self.ranks, limit)
        self.join(len(self.here))

    def begin_epoch(self, epoch: int) -> None:
        """See `Link`."""
        said, self._said = self._said, []
        self._at, self._number, self._roll.epoch = f"e{epoch}", 0, None
        self.gather_small(None, opens=True)
        self._begun(epoch)
        for key in said:  # of the epoch before, in which nobody is any more
            drop(self.store, key)

    def rejoin(self) -> int:
        """Be let in again where the others went on without this rank.

        Returns:
            The epoch that begins, with this rank in it.

        Raises:
            LostPeerError: nobody is there any more.
        """
        self.returning, others = False, [r for r in range(self.ranks) if r != self.rank]
        while True:
            epoch = int(self.store.get(self._now) or -1) + 1
            self._at, self._number, self._roll.epoch = f"e{epoch}", 0, None
            key, pause = self._next(), Pause()
            self._say(key, None)
            while (found := self.store.get(f"{key}/decided")) is None:
                self.check()
                if all(self._roll.why_lost(rank, 0.0) for rank in others):
                    raise LostPeerError("the others have ended the training without this rank.")
                pause()
            members = tuple(json.loads(found).get("members", ()))
            if self.rank in members:
                self.members, self._view = members, key
                self._begun(epoch)
                _log.warning("%s is in the ring again from epoch %d on", self.called, epoch + 1)
                return epoch
            time.sleep(0.05)

    def gather_small(self, value: Any, *, opens: bool = False) -> dict[int, Any]:
        """See `Link`."""
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
            self._tell_change(before)
            if not opens:
                raise ChangedError
        contents = taken(self.store, [f"{key}/{rank}" for rank in members])
        return dict(zip(members, map(unpacked, contents), strict=True))

    def exchange(
        self, sent: Mapping[int, NDArray[Any]], wanted: Mapping[int, NDArray[Any]]
    ) -> None:
        """See `Link`."""
        began, wait = time.monotonic(), LimitedWait(self._look, self.timeout)
        self._view = self._rows.exchange(
            self._next(), self._together, sent, wanted, wait, self._all_say
        )
        took = time.monotonic() - began
        self.waited, self.exchanged = self.waited + took, self.exchanged + took

    def send_ahead(
        self, sent: Mapping[int, NDArray[Any]], wanted: Mapping[int, NDArray[Any]]
    ) -> None:
        """See `Link`."""
        wait = LimitedWait(self._roll.look, self.timeout)
        self._rows.send_ahead(self._next(), self._together, sent, wanted, wait)

    @property
    def sent(self) -> int:
        """Bytes of weights that this rank has sent."""
        return self._rows.sent

    @property
    def received(self) -> int:
        """Bytes of weights that it has received."""
        return self._rows.received

    def confirm(self) -> None:
        """See `Link`."""
        torn, self._rows.torn = self._rows.torn, ""
        told = {rank: why for rank, why in self.gather_small(torn).items() if why}
        self._tries = self._tries + 1 if told else 0
        if not told:
            return
        self._view = f"{self._name}/{self._generation}/{self._at}/{self._number}"
        if self._tries == _TRIES:
            rank, why = next(iter(told.items()))
            raise LostPeerError(
                f"weights do not reach {self._roll.called(rank)}, {_TRIES} times over: {why} "
                f"(link: {self.store.where})."
            )
        raise ChangedError

    def end(self, words: str = "") -> None:
        """See `Link`."""
        self._roll.end(words or "it is over")
        if self.block is not None:
            self.block.end(words)
            self._group.close()

    @property
    def _together(self) -> Together:
        return Together(self._view, self.members, self.rank)

    def _all_say(self, value: bool) -> bool:
        return all(self.gather_small(value).values())

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
        )

    def _tell_change(self, before: tuple[int, ...]) -> None:
        for rank in sorted({*before} - {*self.members}):
            why = self._roll.why_lost(rank, 0.0) or "it did not come in time"
            _log.warning("%s The ring closes over the gap.", self._roll.lost(rank, why))
        for rank in sorted({*self.members} - {*before}):
            self._roll.renew(rank)
            _log.warning("%s is in the ring again.", self._roll.called(rank))

    def _say(self, key: str, value: Any) -> None:
        own = f"{key}/{self.rank}"
        put(self.store, own, packed(value))
        self._said.append(own)

    def _begun(self, epoch: int) -> None:
        self._roll.begin(epoch)
        self.store.set(self._now, b"%d" % epoch)

    @property
    def _now(self) -> str:
        return f"{self._name}/{self._generation}/now"

    def _next(self) -> str:
        key = f"{self._name}/{self._generation}/{self._at}/{self._number}"
        self._number += 1
        return key

    def _new_roll(self) -> Roll:
        return Roll(self.store, f"{self._name}/{self._generation}", self.rank, self.timeout)

    def _newest_generation(self) -> int:
        return int(self.store.get(f"{self._name}/generation") or 0)

    def _announce(self, generation: int) -> None:
        self.store.set(f"{self._name}/generation", b"%d" % generation)
