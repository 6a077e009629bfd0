"""Rows of weights on their way between ranks that are together."""

import contextlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from kgraft.errors import LostPeerError
from kgraft.links.carrier import Carrier, Exchange, TornError


class Rows:
    """The exchanges of one rank: what goes wrong, what goes ahead, how much it is.

    Args:
        carrier: moves the rows.

    Attributes:
        torn: why an exchange since the last confirmation did not come to its end.
        sent: bytes sent so far, and `received`.
    """

    def __init__(self, carrier: Carrier) -> None:
        self._carrier = carrier
        self.torn = ""
        self.sent = self.received = 0
        self._ahead: _Ahead | None = None

    def exchange(self, own: Exchange, agreed: Callable[[bool], bool]) -> str:
        """Send and receive, or take what was sent ahead; what goes wrong is kept in `torn`.

        Args:
            own: this rank's part.
            agreed: whether all ranks say the same.

        Returns:
            Since when the ranks are together, from now on.
        """
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            if agreed(ahead.serves(own)):
                ahead.fill(own.wanted)
                self._count(own)
                return own.together.since
            # what is on its way still must meet nobody
            own = replace(own, together=replace(own.together, since=own.name))
        if not self.torn and (own.sent or own.wanted):
            try:
                self._carrier.exchange(own)
                self._count(own)
            except TornError as error:
                self.torn = str(error)
        if self.torn:
            for row in own.wanted.values():
                row[...] = 0  # nobody is given it: the confirmation ends the mixing
        return own.together.since

    def send_ahead(self, own: Exchange) -> None:
        """Begin an exchange that the next one will most likely be.

        Args:
            own: this rank's part; what is sent is copied.
        """
        if self._ahead is not None:
            self._ahead.end()
        self._ahead = _Ahead(self._carrier, own)

    def forget(self) -> None:
        """What was on its way among ranks that are together no more."""
        if self._ahead is not None:
            self._ahead.end()  # before another exchange uses the carrier
        self.torn, self._ahead = "", None

    def _count(self, own: Exchange) -> None:
        self.sent += sum(row.nbytes for row in own.sent.values())
        self.received += sum(row.nbytes for row in own.wanted.values())


class _Ahead:
    """An exchange that goes on while its rank does something else."""

    def __init__(self, carrier: Carrier, own: Exchange) -> None:
        sent = {rank: row.copy() for rank, row in own.sent.items()}
        self._own, self._is_there = replace(own, sent=sent), False

        def run() -> None:
            with contextlib.suppress(TornError, LostPeerError):  # it is asked for anew, and told
                carrier.exchange(self._own)
                self._is_there = True

        self._thread = threading.Thread(target=run, name="kgraft-ahead", daemon=True)
        self._thread.start()

    def serves(self, asked: Exchange) -> bool:
        """Whether it was the exchange that is asked for now; waits until it is over."""
        self.end()
        return self._is_there and self._own.asks_for_the_same(asked)

    def end(self) -> None:
        """Wait until it is over."""
        self._thread.join()

    def fill(self, wanted: Mapping[int, NDArray[Any]]) -> None:
        """Give what was received."""
        for rank, row in wanted.items():
            row[...] = self._own.wanted[rank]
