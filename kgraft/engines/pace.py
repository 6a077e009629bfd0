"""Whether K peers take their steps in turns or beside each other: measured, not guessed.

One operation after the other keeps all cores of a small machine busy. With more cores, or where
something else runs beside the training, one peer's operations are too short to be shared out, and
peers in threads of their own, with a share of the cores each, are faster.
"""

import logging
import statistics
import time
from collections.abc import Callable
from typing import Any

_log = logging.getLogger("kgraft")

_STEPS = 6  # each way; of the first nothing is learnt
_GAIN = 1.05  # less is noise

Take = Callable[[], Any]


class Pace:
    """Takes the first steps one way and the other, and from then on the faster way.

    Both ways are steps of the training: nothing is taken twice.

    Args:
        peers: how many take a step.
        threads: that each would have beside the others.
        clock: seconds.

    Attributes:
        chosen: whether it is threads; None as long as both ways are tried.
    """

    chosen: bool | None = None

    def __init__(
        self, peers: int, threads: int, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._what, self._clock = (peers, threads), clock
        self._turns: list[float] = []
        self._beside: list[float] = []

    def take(self, turns: Take, beside: Take) -> Any:
        """One step of all peers.

        Args:
            turns: takes it one peer after the other.
            beside: takes it in threads.

        Returns:
            What the one that was called gave.
        """
        if self.chosen is not None:
            return (beside if self.chosen else turns)()
        parallel = len(self._turns) > len(self._beside)
        began = self._clock()
        taken = (beside if parallel else turns)()
        (self._beside if parallel else self._turns).append(self._clock() - began)
        if len(self._beside) == _STEPS:
            self._choose()
        return taken

    def _choose(self) -> None:
        gain = statistics.median(self._turns[1:]) / statistics.median(self._beside[1:])
        self.chosen = gain > _GAIN
        peers, threads = self._what
        _log.info(
            "%d peers take their steps %s: in threads of %d core%s each they were %.2f times as "
            "fast as in turns",
            peers,
            "beside each other" if self.chosen else "in turns",
            threads,
            "" if threads == 1 else "s",
            gain,
        )
