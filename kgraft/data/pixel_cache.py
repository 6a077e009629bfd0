"""Photographs decoded and resized once, in one file of pixels that is read where it lies."""

import hashlib
import logging
import math
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kgraft.data.crops import CentreCrop, resized
from kgraft.data.photos import Opened, Photos
from kgraft.errors import UserError
from kgraft.files import storing, whole

_log = logging.getLogger("kgraft")
_PIECE = 32
_FILTER = "torch"  # other pixels are another file


class _Pixels(NamedTuple):
    """A photograph that lies decoded on the disk."""

    height: int
    width: int
    array: np.ndarray

    def pixels(self, rows: int = 0, columns: int = 0) -> np.ndarray:
        """See `Photo.pixels`: there is one size only."""
        return self.array


class CachedPhotos:
    """Photographs as pixels in one file.

    Args:
        names: What each is called.
        sizes: Height and width of each, int64 `(n, 2)`.
        flat: All pixels one after the other, uint8, on the disk.
    """

    def __init__(self, names: Sequence[str], sizes: np.ndarray, flat: np.ndarray) -> None:
        self._names, self._sizes, self._flat = names, sizes, flat
        self._starts = _starts(sizes)

    def __len__(self) -> int:
        return len(self._sizes)

    def name(self, number: int) -> str:
        """See `Source`."""
        return self._names[number]

    def opened(self, number: int) -> Opened:
        """See `Source`."""
        height, width = self._sizes[number].tolist()
        own = self._flat[self._starts[number] : self._starts[number + 1]]
        return _Pixels(height, width, own.reshape(height, width, 3))


def cached(
    photos: Photos, sizes: np.ndarray, stamp: bytes, directory: Path, *, shorter: int, workers: int
) -> Photos:
    """Photographs whose pixels lie in a file, which is made where it is not there yet.

    Args:
        photos: The photographs.
        sizes: Height and width of each, int `(n, 2)`.
        stamp: What tells these photographs from others and from what they were before.
        directory: Where such files are.
        shorter: Length of the shorter side that they are resized to, as `CentreCrop` does.
        workers: Threads.

    Raises:
        UserError: there is no room for the file; says how large it is.
        StorageError: it cannot be written.
    """
    own = [photos.source.name(int(number)) for number in photos.numbers]
    crop = CentreCrop(1, resize=shorter)
    small = np.array([crop.least(*size) for size in sizes.tolist()], np.int64).reshape(-1, 2)
    facts = f"\0{shorter}\0{len(own)}\0{_FILTER}"
    key = hashlib.sha256(stamp + facts.encode()).hexdigest()[:16]
    path, total = directory / f"{key}.pixels", int(_starts(small)[-1])
    if not path.is_file() or path.stat().st_size != total:
        _make(photos, small, path, total, workers)
    flat = np.memmap(path, np.uint8, mode="r", shape=(total,))
    return Photos(CachedPhotos(own, small, flat), np.arange(len(own)), photos.size)


def _make(photos: Photos, small: np.ndarray, path: Path, total: int, workers: int) -> None:
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path.parent).free
    needed = f"{len(photos)} photographs take {math.ceil(total / 2**20):,} MiB as pixels"
    if total > free:
        raise UserError(f"{needed}, and {path.parent} has room for {free / 2**20:,.0f} MiB.")
    _log.info("%s: they are decoded once, into %s", needed, path)
    starts = _starts(small)
    with whole(path) as place:
        flat = np.memmap(place, np.uint8, mode="w+", shape=(total,))

        def make(first: int) -> None:
            for k in range(first, min(first + _PIECE, len(small))):
                pixels = photos.pixels(k, photos.opened(k))
                own = resized(pixels, *small[k].tolist())
                flat[starts[k] : starts[k + 1]] = own.ravel()

        with ThreadPoolExecutor(workers, "kgraft-cache") as pool:
            try:
                for _ in pool.map(make, range(0, len(small), _PIECE)):
                    pass
            finally:
                pool.shutdown(cancel_futures=True)
        flat.flush()


def _starts(sizes: np.ndarray) -> np.ndarray:
    """Where each photograph's pixels begin, and where the last one's end."""
    return np.concatenate([[0], np.cumsum(sizes.astype(np.int64).prod(axis=1) * 3)])
