"""Rows of weights on their way between ranks that are together."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kgraft.links.carrier import Carrier, Together, TornError, Wait


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

    def exchange(
        self,
        name: str,
        together: Together,
        sent: Mapping[int, NDArray[Any]],
        wanted: Mapping[int, NDArray[Any]],
        wait: Wait,
        agreed: Callable[[bool], bool],
    ) -> str:
        """Send and receive, or take what was sent ahead; what goes wrong is kept in `torn`.

        Args:
            name: see `Carrier.exchange`.
            together: see `Carrier.exchange`.
            sent: see `Carrier.exchange`.
            wanted: see `Carrier.exchange`.
            wait: see `Carrier.exchange`.
            agreed: whether all ranks say the same.

        Returns:
            Since when the ranks are together, from now on.
        """
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            if agreed(ahead.serves(together, sent, wanted)):
                ahead.fill(wanted)
                self._count(sent, wanted)
                return together.since
            together = replace(together, since=name)  # what is on its way still must meet nobody
        if not self.torn and (sent or wanted):
            try:
                self._carrier.exchange(name, together, sent, wanted, wait)
                self._count(sent, wanted)
            except TornError as error:
                self.torn = str(error)
        if self.torn:
            for row in wanted.values():
                row[...] = 0  # nobody is given it: the confirmation ends the mixing
        return together.since

    def send_ahead(
        self,
        name: str,
        together: Together,
        sent: Mapping[int, NDArray[Any]],
        wanted: Mapping[int, NDArray[Any]],
        wait: Wait,
    ) -> None:
        """Begin an exchange that the next one will most likely be; see `Carrier.exchange`."""
        if self._ahead is not None:
            self._ahead.end()
        self._ahead = _Ahead(self._carrier, name, together, sent, wanted, wait)

    def forget(self) -> None:
        """What was on its way among ranks that are together no more."""
        if self._ahead is not None:
            self._ahead.end()  # before another exchange uses the carrier
        self.torn, self._ahead = "", None

    def _count(self, sent: Mapping[int, NDArray[Any]], wanted: Mapping[int, NDArray[Any]]) -> None:
        self.sent += sum(row.nbytes for row in sent.values())
        self.received += sum(row.nbytes for row in wanted.values())


class _Ahead:
    """An exchange that goes on while its rank does something else.

    Args:
        carrier: moves the rows.
        name: see `Carrier.exchange`, as the others; what is sent is copied.
        together: see `Carrier.exchange`.
        sent: see `Carrier.exchange`.
        wanted: see `Carrier.exchange`.
        wait: see `Carrier.exchange`.
    """

    def __init__(
        self,
        carrier: Carrier,
        name: str,
        together: Together,
        sent: Mapping[int, NDArray[Any]],
        wanted: Mapping[int, NDArray[Any]],
        wait: Wait,
    ) -> None:
        self._together, self._wanted = together, wanted
        self._sent = {rank: row.copy() for rank, row in sent.items()}
        self._is_torn = False

        def run() -> None:
            try:
                carrier.exchange(name, together, self._sent, wanted, wait)
            except TornError:
                self._is_torn = True

        self._thread = threading.Thread(target=run, name="kgraft-ahead", daemon=True)
        self._thread.start()

    def serves(
        self,
        together: Together,
        sent: Mapping[int, NDArray[Any]],
        wanted: Mapping[int, NDArray[Any]],
    ) -> bool:
        """Whether it was the exchange that is asked for now; waits until it is over."""
        self.end()
        return (
            not self._is_torn
            and together == self._together
            and self._sent.keys() == sent.keys()
            and all(np.array_equal(self._sent[rank], row) for rank, row in sent.items())
            and {rank: (row.shape, row.dtype) for rank, row in self._wanted.items()}
            == {rank: (row.shape, row.dtype) for rank, row in wanted.items()}
        )

    def end(self) -> None:
        """Wait until it is over."""
        self._thread.join()

    def fill(self, wanted: Mapping[int, NDArray[Any]]) -> None:
        """Give what was received."""
        for rank, row in wanted.items():
            row[...] = self._wanted[rank]
