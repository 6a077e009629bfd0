"""Agreement: all ranks hold the same of who was there, whatever became of whom meanwhile."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kgraft.links.presence import Pause
from kgraft.links.roll import Roll
from kgraft.links.store import Store

_LOOK = 0.2  # seconds between two looks after those who are away


@dataclass(frozen=True)
class Agreement:
    """Settles who takes part in something: who has come, or why nobody goes on.

    The first word that is written down is everybody's: a rank that comes a moment too late finds
    itself left out, by all.

    Attributes:
        store: where it is written down.
        roll: who is lost.
        rank: which one this is.
        ranks: how many there are.
        skips: whether those who are there go on without one that is lost.
        is_over: whether all meet anew.
        is_past: whether the others are past this.
    """

    store: Store
    roll: Roll
    rank: int
    ranks: int
    skips: bool
    is_over: Callable[[], bool]
    is_past: Callable[[], bool]

    def on(self, key: str, members: Sequence[int], check: Callable[[], None]) -> dict[str, Any]:
        """Wait for the ranks that say something under a key, and settle it.

        Args:
            key: under which each has a key of its own.
            members: who is waited for; others may have come too.
            check: called while this rank waits; where it raises, all stop.

        Returns:
            `"members"`, none where they are past it; or `"broken"` and why.
        """
        began, pause = time.monotonic(), Pause()
        looked = began
        while True:
            found = self.store.get(f"{key}/decided")
            if found is not None:
                said: dict[str, Any] = json.loads(found)
                return said
            arrived = self._arrived(key, members)
            away = [rank for rank in members if rank not in arrived]
            if not away:
                return self._decide(key, {"members": arrived})
            try:
                check()
            except BaseException:
                said = self._decide(key, {"broken": f"{self.roll.called(self.rank)} was stopped."})
                if "broken" in said:
                    raise
                return said
            if time.monotonic() - looked > _LOOK:
                looked = time.monotonic()
                if self.is_over():
                    return {"broken": "another rank was lost: all meet anew."}
                if self.is_past():  # what they settled then is cleared away
                    return {"members": []}
                if (given_up := self._given_up(arrived, away, looked - began)) is not None:
                    return self._decide(key, given_up)
            pause()

    def _given_up(
        self, arrived: list[int], away: list[int], waited: float
    ) -> dict[str, Any] | None:
        """What to make of ranks that are lost, None where all may yet come."""
        lost = {rank: why for rank in away if (why := self.roll.why_lost(rank, waited))}
        if lost and not self.skips:
            return {"broken": self.roll.lost(*next(iter(lost.items())))}
        if len(lost) == len(away):
            return {"members": arrived}
        if arrived[0] == self.rank:
            self.roll.name_slow(away, waited)
        return None

    def _arrived(self, key: str, members: Sequence[int]) -> list[int]:
        keys = {rank: f"{key}/{rank}" for rank in range(self.ranks)}
        if len(members) == self.ranks and self.store.has([*keys.values()]):
            return [*keys]
        return [rank for rank, own in keys.items() if self.store.has([own])]

    def _decide(self, key: str, what: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.store.first(f"{key}/decided", json.dumps(what)))
        return found
