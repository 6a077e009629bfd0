"""K orders without K decodings: each photograph is decoded once, and cropped for every peer.

An epoch is cut into windows of W photographs, the same ones for all peers; within a window each
peer has an order and crops of its own. The next window is made while one is read, so that two are
held: 2 K W height width 3 bytes.
"""

import math
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from kgraft.data.crops import enough_for
from kgraft.data.identity_batches import IdentityBatches
from kgraft.data.order import (
    crops_rng,
    order_of_windows,
    order_within_window,
    within_window_rng,
)
from kgraft.data.photos import Photos
from kgraft.data.views import TrainingView

_PIECE = 8  # photographs a task


@dataclass(frozen=True)
class Windows:
    """How an epoch is cut into windows, and what is seen of its photographs.

    Attributes:
        photos: All training images.
        crop: What of each is seen.
        seed: The run's seed.
        size: W, photographs a window.
        scaled: Whether a JPEG may be decoded to a part of its size, where its crops are large.
        identities: How images of an identity are kept together, None where they are not.
    """

    photos: Photos
    crop: TrainingView
    seed: int
    size: int
    scaled: bool = False
    identities: IdentityBatches | None = None

    def members(self, epoch: int, group: int) -> list[np.ndarray]:
        """Which photographs each window holds, in the order in which they are decoded.

        Args:
            epoch: Number of the epoch.
            group: Number of the peers that share it.
        """
        own = {"seed": self.seed, "group": group, "epoch": epoch}
        order = (
            order_of_windows(len(self.photos), **own)
            if self.identities is None
            else self.identities.dealt(**own)
        )
        return [order[start : start + self.size] for start in range(0, len(order), self.size)]

    def order(self, members: np.ndarray, *, peer: int, epoch: int, window: int) -> np.ndarray:
        """Order in which a peer sees the members of a window, a permutation of their places.

        Args:
            members: Which photographs they are.
            peer: Number of the peer.
            epoch: Number of the epoch.
            window: Number of the window.
        """
        own = {"seed": self.seed, "peer": peer, "epoch": epoch, "window": window}
        if self.identities is None:
            return order_within_window(len(members), **own)
        return self.identities.order(members, within_window_rng(**own))


@dataclass(frozen=True)
class Seat:
    """Whose order and crops a reader sees.

    Attributes:
        order_of: Number of the peer whose order it is.
        crops_of: Number of the peer whose crops these are.
    """

    order_of: int
    crops_of: int


@dataclass(frozen=True, eq=False)
class _Share:
    """What one reader gets of a window.

    Attributes:
        order: Which members of the window it sees, one after the other.
        pixels: Its crops in that order, uint8 `(W, height, width, 3)`.
        tasks: By member, what brings its crop.
    """

    order: np.ndarray
    pixels: np.ndarray
    tasks: dict[int, "Future[None]"] = field(default_factory=dict)


class _Work(NamedTuple):
    """What is made of a window for one reader.

    Attributes:
        numbers: Random numbers, a row a member.
        places: By member, where its crop comes to lie.
        out: Where that is, uint8 `(W, height, width, 3)`.
    """

    numbers: np.ndarray
    places: np.ndarray
    out: np.ndarray


def window_of(
    memory: int, peers: int, photos: Photos, batch_size: int, count: int | None = None
) -> int:
    """How many photographs a window holds: two windows of all peers' crops fit in the memory.

    Args:
        memory: Bytes.
        peers: How many have crops of their own.
        photos: The photographs.
        batch_size: At least two batches make a window, and as far as they go it holds whole ones.
        count: How many an epoch has; as many as there are by default.

    Returns:
        W, at most all of an epoch.
    """
    fitting = memory // (2 * peers * math.prod(photos.shape[1:]))
    whole = max(fitting // batch_size, 2) * batch_size
    return min(whole, len(photos) if count is None else count)


class WindowedEpoch:
    """One epoch of photographs for several readers; any thread may read.

    Args:
        windows: How it is cut.
        epoch: Number of the epoch.
        group: Number of the peers that share it.
        pool: Threads that decode.
    """

    def __init__(
        self, windows: Windows, *, epoch: int, group: int, pool: ThreadPoolExecutor
    ) -> None:
        self._windows, self._epoch, self._pool = windows, epoch, pool
        self._members = windows.members(epoch, group)
        self._lock = threading.RLock()  # a reader may leave at any instant
        self._seats: dict[int, Seat] = {}
        self._at: dict[int, int] = {}  # which window a reader is at
        self._open: dict[int, dict[int, _Share]] = {}  # window -> reader -> its share
        self._count = 0

    def enter(self, seat: Seat) -> int:
        """A reader joins; all that join before the first batch share the decodings.

        Args:
            seat: What it sees.

        Returns:
            Its number.
        """
        with self._lock:
            self._count += 1
            self._seats[self._count], self._at[self._count] = seat, 0
            return self._count

    def leave(self, reader: int) -> bool:
        """A reader reads no more.

        Args:
            reader: Its number.

        Returns:
            Whether nobody is left.
        """
        with self._lock:
            self._seats.pop(reader, None)
            self._at.pop(reader, None)
            if not self._seats:
                for share in [own for shares in self._open.values() for own in shares.values()]:
                    for task in share.tasks.values():
                        task.cancel()
                self._open.clear()
            return not self._seats

    def batches(self, reader: int, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """A reader's batches; one may reach over a window's end.

        Args:
            reader: Its number.
            batch_size: Photographs a batch; the last one may be smaller.

        Yields:
            Which photographs, int64 `(b,)`, and their crops, uint8 `(b, height, width, 3)`.
        """
        parts: list[tuple[np.ndarray, np.ndarray]] = []
        missing = batch_size
        for window, members in enumerate(self._members):
            share, start = self._share(reader, window), 0
            while start < len(members):
                part = slice(start, min(start + missing, len(members)))
                for task in dict.fromkeys(share.tasks[k] for k in share.order[part].tolist()):
                    task.result()
                parts.append((members[share.order[part]], share.pixels[part].copy()))
                missing, start = missing - (part.stop - start), part.stop
                if not missing:
                    yield _joined(parts)
                    parts, missing = [], batch_size
            del share  # a third window is begun next
        if parts:
            yield _joined(parts)

    def _share(self, reader: int, window: int) -> _Share:
        """What a reader gets of a window; the next one is begun once nobody is at the last one."""
        with self._lock:
            self._at[reader] = window
            self._forget(window)
            ahead = 1 if window - 1 in self._at.values() else 2
            for own in range(window, min(window + ahead, len(self._members))):
                shares = self._open.setdefault(own, {})
                if reader not in shares:  # the first that is here, or one that came late
                    waiting = [r for r, at in self._at.items() if at <= own and r not in shares]
                    shares.update(self._begun(own, waiting))
            return self._open[window][reader]

    def _begun(self, window: int, readers: Sequence[int]) -> dict[int, _Share]:
        """Shares of a window for some readers, at which the threads are now at work."""
        windows, members = self._windows, self._members[window]
        place = {"seed": windows.seed, "epoch": self._epoch, "window": window}
        count, shape = len(members), (*windows.crop.sides, 3)
        shares, work = {}, []
        for reader in readers:
            seat = self._seats[reader]
            order = windows.order(members, peer=seat.order_of, epoch=self._epoch, window=window)
            shares[reader] = _Share(order, np.empty((count, *shape), np.uint8))
            numbers = windows.crop.draw(crops_rng(peer=seat.crops_of, **place), count)
            work.append(_Work(numbers, np.argsort(order), shares[reader].pixels))
        needed = np.min([own.places for own in work], axis=0)  # by member, where it comes first
        decoding_order = np.argsort(needed, kind="stable")  # so that first batches are there first
        tasks: dict[int, Future[None]] = {}
        for start in range(0, count, _PIECE):
            piece = decoding_order[start : start + _PIECE].tolist()
            tasks |= dict.fromkeys(piece, self._pool.submit(self._make, members, piece, work))
        for share in shares.values():
            share.tasks.update(tasks)
        return shares

    def _make(self, members: np.ndarray, piece: Sequence[int], work: Sequence[_Work]) -> None:
        """Decode some members of a window, and give each reader its crops."""
        windows, draw = self._windows, self._windows.crop
        for k in piece:
            number = int(members[k])
            photo = windows.photos.opened(number)
            whole = (photo.height, photo.width)
            crops = [draw.crop(own.numbers[k], *whole) for own in work]
            least = enough_for(crops, whole, draw.sides) if windows.scaled else (0, 0)
            pixels = windows.photos.pixels(number, photo, *least)
            for own, crop in zip(work, crops, strict=True):
                own.out[own.places[k]] = draw(pixels, crop.scaled(whole, pixels.shape))

    def _forget(self, window: int) -> None:
        """Let go of windows that all have read, and of those that somebody lags behind with."""
        oldest = max(min(self._at.values()), window - 1)
        for own in [own for own in self._open if own < oldest]:
            del self._open[own]


def _joined(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    if len(parts) == 1:
        return parts[0]
    numbers, pixels = zip(*parts, strict=True)
    return np.concatenate(numbers), np.concatenate(pixels)
