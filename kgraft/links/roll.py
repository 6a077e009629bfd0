"""The roll of a ring: which ranks there are, who is lost and why, who is slow."""

import contextlib
import logging
import time
from collections.abc import Iterable
from typing import Any

from kgraft.errors import LostPeerError
from kgraft.links.carrier import TornError
from kgraft.links.presence import Heartbeat, Listener, Pause, own_presence, state_of
from kgraft.links.store import Store, put, taken
from kgraft.nests import packed, unpacked

_log = logging.getLogger("kgraft")

PATIENCE = 10.0
"""Times the limit: how long a rank may keep others waiting that is alive."""

_SLOW = 10.0  # times what this rank took: who takes longer is named
_AT_ONCE = 2.0  # seconds that nobody is called slow for
_A_DAY = 86_400.0  # the limit where one rank works and others have nothing to do


class Roll:
    """All ranks of one start of a ring.

    Args:
        store: where they are written down.
        prefix: of all keys.
        rank: which one this is.
        timeout: seconds after which one that is not heard of is lost.
    """

    def __init__(self, store: Store, prefix: str, rank: int, timeout: float) -> None:
        self._store, self._prefix, self._rank, self._timeout = store, prefix, rank, timeout
        self._listener = Listener(store)
        self._heartbeat: Heartbeat | None = None
        self._known: dict[int, dict[str, Any]] = {}
        self._holds: dict[int, range] = {}
        self._named: set[tuple[int | None, int]] = set()
        self._began = time.monotonic()
        self.epoch: int | None = None

    @property
    def is_written(self) -> bool:
        """Whether this rank has been here before, as another process it may be."""
        return self._store.has([self._key("presence", self._rank)])

    @property
    def holds(self) -> dict[int, range]:
        """The ring's places that each rank holds."""
        return self._holds

    @property
    def anybody_regroups(self) -> bool:
        """Whether a rank was there before this start: it waits for others to come back."""
        return any(known["regroups"] for known in self._known.values())

    def away(self, ranks: int) -> list[int]:
        """Who has not come yet.

        Args:
            ranks: how many there are to be.
        """
        keys = {rank: self._key("presence", rank) for rank in range(ranks)}
        if self._store.has([*keys.values()]):
            return []
        return [rank for rank, key in keys.items() if not self._store.has([key])]

    def write(self, told: dict[str, Any]) -> None:
        """Write this rank down, and beat from now on.

        Args:
            told: what is known of it beside its process: its launcher's `"rank"`, how many
                `"peers"` it has, and whether it `"regroups"`, that is, has been in the ring.
        """
        self._store.delete(self._key("ended", self._rank))
        put(self._store, self._key("presence", self._rank), packed({**own_presence(), **told}))
        every = min(1.0, self._timeout / 5)
        self._heartbeat = Heartbeat(self._store, self._key("beat", self._rank), every)

    def read(self, ranks: int) -> None:
        """Read all of it, when nobody is away.

        Args:
            ranks: how many there are.
        """
        start = 0
        self.renew(range(ranks))
        for rank in range(ranks):
            self._holds[rank] = range(start, start + self._known[rank]["peers"])
            start = self._holds[rank].stop

    def renew(self, ranks: Iterable[int]) -> None:
        """Read some anew, who have come back as other processes they may be."""
        for rank in ranks:
            self._known[rank] = self._written(rank)
            self._listener.begin(self._key("beat", rank))

    def begin(self, epoch: int) -> None:
        """An epoch begins."""
        self.epoch, self._began = epoch, time.monotonic()

    def end(self, words: str) -> None:
        """Beat no more, and say why."""
        if self._heartbeat is not None:
            self._heartbeat.stop()
            self._heartbeat = None
            with contextlib.suppress(OSError, LostPeerError):  # the store may be gone
                self._store.set(self._key("ended", self._rank), words.encode()[:500])

    def goes_on(self, ranks: int) -> bool:
        """Whether all have met and another rank is alive; takes the limit where none is."""
        if self.away(ranks):
            return False
        others = [self._key("beat", rank) for rank in range(ranks) if rank != self._rank]
        before = [self._store.get(key) for key in others]
        until, pause = time.monotonic() + self._timeout, Pause()
        while time.monotonic() < until:
            if [self._store.get(key) for key in others] != before:
                return True
            pause()
        return False

    def has_ended(self, rank: int) -> bool:
        """Whether a rank has said so, or its process is gone."""
        known = self._known.get(rank)
        gone = known is not None and state_of(known) == "gone"
        return gone or self._store.has([self._key("ended", rank)])

    def are_gone(self, ranks: list[int], waited: float) -> bool:
        """Whether some ranks have all ended, or were silent for as long as anybody is waited for.

        Args:
            ranks: which.
            waited: seconds that they have kept this one waiting.
        """
        if all(map(self.has_ended, ranks)):
            return True
        late = waited > PATIENCE * self._timeout
        return late and all(self.why_lost(rank, 0.0) for rank in ranks)

    def why_lost(self, rank: int, waited: float) -> str:
        """Why a rank is given up, empty for one that may yet come.

        Args:
            rank: which.
            waited: seconds that it has kept this one waiting.
        """
        said = self._store.get(self._key("ended", rank))
        if said is not None:
            words = said.decode(errors="replace")
            return f"it has ended ({words})" if words else "it has left the ring"
        state = state_of(self._known[rank])
        if state == "gone":
            return "its process is gone"
        if self._written(rank) != self._known[rank]:
            return "it was started again"
        silent = self._listener.silent(self._key("beat", rank))
        if silent > self._timeout:
            stopped = "its process is stopped (SIGSTOP)" if state == "stopped" else "it is silent"
            return f"{stopped}, not heard of for {silent:.0f} s"
        if waited > self._patience(waited):
            return f"it is alive, and has kept the others waiting for {waited:.0f} s"
        return ""

    def look(self, rank: int, waited: float) -> None:
        """Look after a rank that is waited for.

        Args:
            rank: which.
            waited: for how many seconds.

        Raises:
            TornError: it is lost.
        """
        if why := self.why_lost(rank, waited):
            raise TornError(why)

    def blamed(self, ranks: list[int], reason: str) -> str:
        """Who of some ranks is lost; one that failed itself says so in a moment.

        Args:
            ranks: the others.
            reason: why this one knows that somebody is.
        """
        until, pause = time.monotonic() + self._timeout, Pause()
        while time.monotonic() < until:
            for rank in ranks:
                if why := self.why_lost(rank, 0.0):
                    return self.lost(rank, why)
            pause()
        names = " or ".join(map(self.called, ranks))
        return f"{names} does not answer, and is not lost: {reason}"

    def _patience(self, waited: float) -> float:
        if self.epoch is None:
            return _A_DAY
        took = time.monotonic() - waited - self._began
        return max(PATIENCE * self._timeout, 2 * _SLOW * took)

    def lost(self, rank: int, why: str) -> str:
        """The sentence that names a lost rank."""
        when = "at the start" if self.epoch is None else f"in epoch {self.epoch + 1}"
        return (
            f"{self.called(rank)} is lost {when}: {why} (link: {self._store.where}, timeout "
            f"{self._timeout:g} s)."
        )

    def called(self, rank: int) -> str:
        """A rank with its host and its peers, in words."""
        known, places = self._known[rank], [k + 1 for k in self._holds[rank]]
        peers = f"peer{'s' if len(places) > 1 else ''} {', '.join(map(str, places))}"
        return f"rank {known['rank']} on {known['host']} ({peers})"

    def name_slow(self, ranks: list[int], waited: float) -> None:
        """Log who takes far longer for an epoch than this rank took, once an epoch.

        Args:
            ranks: who is away.
            waited: seconds that they have kept this one waiting.
        """
        took = time.monotonic() - waited - self._began
        if self.epoch is None or waited < max(_AT_ONCE, (_SLOW - 1) * took):
            return
        for rank in ranks:
            if (self.epoch, rank) not in self._named:
                self._named.add((self.epoch, rank))
                stopped = state_of(self._known[rank]) == "stopped"
                _log.warning(
                    "%s takes more than %g times as long as this one for epoch %d: %s.",
                    self.called(rank),
                    _SLOW,
                    self.epoch + 1,
                    "its process is stopped (SIGSTOP)" if stopped else "it is not lost yet",
                )

    def tell_change(self, before: tuple[int, ...], members: tuple[int, ...]) -> None:
        """Log who is not in the ring any more, and who is again.

        Args:
            before: the ranks that were in it.
            members: those that are.
        """
        for rank in sorted({*before} - {*members}):
            why = self.why_lost(rank, 0.0) or "it did not come in time"
            _log.warning("%s The ring closes over the gap.", self.lost(rank, why))
        for rank in sorted({*members} - {*before}):
            self.renew([rank])
            _log.warning("%s is in the ring again.", self.called(rank))

    def _written(self, rank: int) -> dict[str, Any]:
        (content,) = taken(self._store, [self._key("presence", rank)])
        found: dict[str, Any] = unpacked(content)
        return found

    def _key(self, what: str, rank: int) -> str:
        return f"{self._prefix}/{what}/{rank}"
