"""Links: how the peers of one ring reach each other, in one process or in several."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from kgraft.errors import UserError, kind_and_line_of
from kgraft.nests import packed, unpacked


class ChangedError(Exception):
    """The ring is another one since the mixing began: it is begun anew, nothing was assigned."""


class LeftOutError(Exception):
    """The others went on without this rank, which may come back with the next epoch."""


class Link(ABC):
    """R ranks that hold the K peers of a ring among them, in ring order.

    All ranks of a link call the same methods in the same order. Mixers know none of it: they see
    `Peers` and a `Population`.

    Attributes:
        rank: which one this is, counted from 0.
        holds: the ring's places that each rank holds, by rank; known from `join` on.
        members: the ranks that are in the ring now, ascending.
        returning: whether this rank was started again while the others went on.
        restarted: whether it was started again while others went on, or waited.
        waits: whether a lost rank is waited for, to go on from what all have saved.
        lane: which of its peers' replicas this is, counted from 0, of `lanes`; each lane is a ring.
        block: joins the replicas of the peers here; None where there is one.
        on_lost_peer: what the ring does when a rank is lost.
        check: called while this rank waits; may raise to end the wait, which ends it for all.
    """

    rank = 0
    returning = restarted = waits = False
    lane, lanes = 0, 1
    on_lost_peer: str = "stop"
    block: "Link | None" = None

    def __init__(self) -> None:
        self.check: Callable[[], None] = lambda: None
        self.holds: dict[int, range] = {}
        self.members: tuple[int, ...] = (0,)

    def __enter__(self) -> Self:
        """A block at whose end this rank leaves the ring; an error tells the others why."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end("" if error is None else kind_and_line_of(error))

    @property
    def here(self) -> range:
        """The ring's places that this rank holds.

        Raises:
            UserError: it has not joined.
        """
        self.check_joined()
        return self.holds[self.rank]

    def check_joined(self) -> None:
        """Refuse to speak for a ring that this rank has not joined.

        Raises:
            UserError: so it is.
        """
        if not self.holds:
            raise UserError(
                "the link has not joined a ring: that is done by GraftingFit(link=), by the first "
                "fit of a GraftCallback, or by link.join(number of peers)."
            )

    @property
    def count(self) -> int:
        """K, peers that are lost included."""
        return sum(map(len, self.holds.values()))

    @property
    def is_first(self) -> bool:
        """Whether this rank speaks for all: the first of those that are there."""
        return self.rank == self.members[0]

    @property
    def writes(self) -> bool:
        """Whether this is the process that writes a run's files, of all in all lanes."""
        return self.rank == 0 and self.lane == 0

    @property
    def lost(self) -> frozenset[int]:
        """Places whose rank is not there."""
        away = self.holds.keys() - set(self.members)
        return frozenset(k for rank in away for k in self.holds[rank])

    def owner(self, k: int) -> int:
        """The rank that holds a place."""
        self.check_joined()
        return next(rank for rank, places in self.holds.items() if k in places)

    @abstractmethod
    def join(self, peers: int) -> None:
        """Be in the ring, with some peers; called once, before anything else."""

    @abstractmethod
    def begin_epoch(self, epoch: int) -> None:
        """All begin an epoch together; ranks that have come back are let in."""

    @abstractmethod
    def gather_small(self, value: Any, *, opens: bool = False) -> dict[int, Any]:
        """What every rank of the ring has to say, some kilobytes.

        Args:
            value: this rank's: JSON-able values and NumPy arrays.
            opens: whether this begins something, so that a rank that is lost by now is just left
                out; within something, `ChangedError` is raised where one is lost.

        Returns:
            Each member's value, by rank, ascending.

        Raises:
            LostPeerError: a rank is lost and the link's policy is not to go on without it.
            ChangedError: see `opens`.
            LeftOutError: the others have left this one out.
        """

    @abstractmethod
    def exchange(
        self, sent: Mapping[int, NDArray[Any]], wanted: Mapping[int, NDArray[Any]]
    ) -> None:
        """Send arrays and receive others; whether all went well `confirm` says.

        Args:
            sent: by the member that gets it, one-dimensional and contiguous.
            wanted: by the member that it comes from, to be filled; of the size and dtype sent.
        """

    def send_ahead(  # noqa: B027  (a link may leave it at that)
        self, sent: Mapping[int, NDArray[Any]], wanted: Mapping[int, NDArray[Any]]
    ) -> None:
        """Begin an exchange that will most likely be asked for, and go on meanwhile.

        The next `exchange` takes what it has brought, if all ranks ask for just that.

        Args:
            sent: see `exchange`.
            wanted: see `exchange`.
        """

    @abstractmethod
    def confirm(self) -> None:
        """Go on only if every exchange since the last one went well on all ranks.

        Raises:
            ChangedError: it did not; all ranks raise it.
        """

    def again(self) -> None:
        """Meet anew, where this rank has left the ring since the last fit."""
        return None

    def regroup(self) -> None:
        """Meet all ranks anew, where one was lost and is started again.

        Raises:
            LostPeerError: not all come within ten times the limit.
        """
        return None

    @abstractmethod
    def end(self, words: str = "") -> None:
        """Leave the ring.

        Args:
            words: why, for the others; empty where the training is over.
        """

    def anywhere(self, value: bool) -> bool:
        """Whether it is so on any rank, in any lane."""
        found = any(self.gather_small(value, opens=True).values())
        return found if self.block is None else self.block.anywhere(found)

    def kept(self, name: str, value: Any) -> Any:
        """Keep what all ranks hold the same, for one that comes back later, which gets it here.

        Args:
            name: of what is kept.
            value: JSON-able.
        """
        return value

    def add(self, flat: Any) -> None:
        """Replace a flat tensor by its sum over the lanes, of which there may be one."""
        return None

    def barrier(self) -> None:
        """Go on when all are here."""
        self.gather_small(None)

    def collect(self, value: Any) -> dict[int, Any]:
        """What every rank has to give to the first one, of any size.

        Args:
            value: see `gather_small`.

        Returns:
            By rank, on the first member; nothing on the others.
        """
        content = np.frombuffer(bytearray(packed(value)), np.uint8)
        while True:
            sizes = self.gather_small(content.size, opens=True)
            first, *others = sizes
            with contextlib.suppress(ChangedError):
                if self.rank != first:
                    self.exchange({first: content}, {})
                    self.confirm()
                    return {}
                wanted = {rank: np.empty(sizes[rank], np.uint8) for rank in others}
                self.exchange({}, wanted)
                self.confirm()
                return {first: value, **{r: unpacked(own.tobytes()) for r, own in wanted.items()}}

    def share(self, value: Any) -> Any:
        """What the first rank has to give to all, of any size.

        Args:
            value: see `gather_small`; nobody looks at the others'.
        """
        while True:
            speaks = self.members[0]
            given = packed(value if self.rank == speaks else None)
            content = np.frombuffer(bytearray(given), np.uint8)
            sizes = self.gather_small(content.size, opens=True)
            first, *others = sizes
            if first != speaks:  # who is lost: the next one has not given anything yet
                continue
            with contextlib.suppress(ChangedError):
                if self.rank == first:
                    self.exchange(dict.fromkeys(others, content), {})
                    self.confirm()
                    return value
                wanted = np.empty(sizes[first], np.uint8)
                self.exchange({}, {first: wanted})
                self.confirm()
                return unpacked(wanted.tobytes())

    def mean(self, rows: Sequence[NDArray[Any]], size: int, dtype: Any) -> NDArray[Any] | None:
        """Mean of rows of all ranks, added up in the ring's order: the same as in one process.

        Each rank takes the mean of a part of the columns, so that a rank sends and receives no
        more than a ring all-reduce would.

        Args:
            rows: this rank's, each of shape `(size,)`.
            size: of a row.
            dtype: of a row.

        Returns:
            Shape `(size,)`; None where nobody has a row.
        """
        counts = self.gather_small(len(rows))
        if not any(counts.values()):
            return None
        ends = np.linspace(0, size, len(counts) + 1).astype(int)
        parts = {
            rank: slice(*ends[place : place + 2].tolist()) for place, rank in enumerate(counts)
        }
        own = parts[self.rank]
        width = own.stop - own.start
        others = [rank for rank in counts if rank != self.rank]
        sent = {r: np.concatenate([row[parts[r]] for row in rows]) for r in others if rows}
        wanted = {r: np.empty(counts[r] * width, dtype) for r in others if counts[r]}
        self.exchange(_filled(sent), _filled(wanted))
        laid = {r: wanted[r].reshape(counts[r], width) for r in wanted}
        laid[self.rank] = np.array([row[own] for row in rows]).reshape(len(rows), width)
        found = running_mean([row for rank in counts if counts[rank] for row in laid[rank]])
        theirs = {r: np.empty(parts[r].stop - parts[r].start, dtype) for r in others}
        self.exchange(_filled(dict.fromkeys(others, found)), _filled(theirs))
        return np.concatenate([{**theirs, self.rank: found}[rank] for rank in counts])


class Here(Link):
    """All K peers in this process."""

    def join(self, peers: int) -> None:
        """See `Link`."""
        self.holds = {0: range(peers)}

    def begin_epoch(self, epoch: int) -> None:
        """See `Link`."""

    def gather_small(self, value: Any, *, opens: bool = False) -> dict[int, Any]:
        """See `Link`."""
        return {0: value}

    def exchange(
        self, sent: Mapping[int, NDArray[Any]], wanted: Mapping[int, NDArray[Any]]
    ) -> None:
        """See `Link`: there is nobody."""

    def confirm(self) -> None:
        """See `Link`."""

    def collect(self, value: Any) -> dict[int, Any]:
        """See `Link`."""
        return {0: value}

    def share(self, value: Any) -> Any:
        """See `Link`."""
        return value

    def end(self, words: str = "") -> None:
        """See `Link`."""


def running_mean(values: Sequence[Any]) -> Any:
    """Mean of arrays, one after the other; equal values stay equal to the last bit.

    Args:
        values: one or more arrays or tensors of equal shapes.
    """
    mean = values[0]
    for count, value in enumerate(values[1:], start=2):
        mean = mean + (value - mean) * (1 / count)
    return mean


def _filled(arrays: Mapping[int, NDArray[Any]]) -> dict[int, NDArray[Any]]:
    """Those that hold anything, contiguous."""
    return {rank: np.ascontiguousarray(own) for rank, own in arrays.items() if own.size}
