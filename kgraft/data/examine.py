"""What is in a folder's files: each is read and decoded once, and what was found is kept.

Training begins with files that are known to be readable, and `kgraft data check` says what a set
is made of. A file that has kept its size and time of change is not looked at again.
"""

import hashlib
import logging
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kgraft.data.decode import Unreadable, opened
from kgraft.data.photos import Files
from kgraft.errors import StorageError
from kgraft.files import storing, whole

_DIGEST = 16  # bytes of SHA-256: two of a billion files agree by chance once in 10^20
_PIECE = 32  # files a task
_COLUMNS = ("stamps", "sizes", "sums", "digests")

_log = logging.getLogger("kgraft")

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Findings:
    """What was found in some files.

    Attributes:
        sizes: Height and width, pixels, int32 `(n, 2)`; zeros where it cannot be read.
        sums: Sum and sum of squares of each channel's pixels, 0..1, float64 `(n, 6)`.
        digests: Of each file's bytes, uint8 `(n, 16)`.
        errors: Why a file cannot be read, `""` for those that can.
    """

    sizes: np.ndarray
    sums: np.ndarray
    digests: np.ndarray
    errors: tuple[str, ...]

    @property
    def readable(self) -> np.ndarray:
        """Which files can be read, bool `(n,)`."""
        return np.array([not error for error in self.errors], bool)

    def statistics(self, chosen: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of every channel over some files' pixels, 0..1.

        Args:
            chosen: Which files, an index or a mask.

        Returns:
            Three numbers each.
        """
        pixels = self.sizes[chosen].astype(np.float64).prod(axis=1).sum()
        first, second = self.sums[chosen].sum(axis=0).reshape(2, 3) / max(pixels, 1.0)
        deviation = np.sqrt(np.maximum(second - first**2, 0.0))
        return tuple(first.tolist()), tuple(deviation.tolist())


class _Found(NamedTuple):
    """What was found in one file."""

    size: tuple[int, int]
    sums: np.ndarray
    digest: bytes
    error: str


def examined(
    files: Files, index: Path | None = None, *, workers: int, progress: Progress | None = None
) -> Findings:
    """Read and decode every file that is new or has changed.

    Args:
        files: The files.
        index: Where findings are kept; None for nowhere. One that is damaged is made anew.
        workers: Threads.
        progress: Called with how many files are done, and how many are to be looked at.
    """
    paths = list(files.paths)
    stamps = np.array([_stamp(files.root / path) for path in paths], np.int64).reshape(-1, 2)
    known = {} if index is None else _read_index(index)
    found: list[_Found | None] = []
    for path, stamp in zip(paths, stamps.tolist(), strict=True):
        before = known.get(path)
        found.append(before[1] if before and before[0] == tuple(stamp) else None)
    missing = [number for number, own in enumerate(found) if own is None]
    pieces = [missing[start : start + _PIECE] for start in range(0, len(missing), _PIECE)]
    with ThreadPoolExecutor(workers, "kgraft-examine") as pool:
        try:
            done = 0
            for piece, own in zip(
                pieces, pool.map(_look, [files] * len(pieces), pieces), strict=True
            ):
                for number, result in zip(piece, own, strict=True):
                    found[number] = result
                done += len(piece)
                if progress is not None:
                    progress(done, len(missing))
        finally:
            pool.shutdown(cancel_futures=True)
    results = [own for own in found if own is not None]
    findings = Findings(
        np.array([own.size for own in results], np.int32).reshape(-1, 2),
        np.array([own.sums for own in results], np.float64).reshape(-1, 6),
        np.frombuffer(b"".join(own.digest for own in results), np.uint8).reshape(-1, _DIGEST),
        tuple(own.error for own in results),
    )
    if index is not None and missing:
        try:
            _write_index(index, paths, stamps, findings)
        except StorageError as error:
            _log.info("what was found in %s is not kept: %s", files.root, error)
    return findings


def _look(files: Files, numbers: list[int]) -> list[_Found]:
    return [_look_at(files, number) for number in numbers]


def _look_at(files: Files, number: int) -> _Found:
    nothing = np.zeros(6)
    try:
        encoded = files.read(number)
    except OSError as error:
        return _Found((0, 0), nothing, bytes(_DIGEST), error.strerror or str(error))
    digest = hashlib.sha256(encoded).digest()[:_DIGEST]
    try:
        pixels = opened(encoded).pixels()
    except Unreadable as error:
        return _Found((0, 0), nothing, digest, str(error))
    values = np.arange(256) / 255
    counts = [np.bincount(pixels[..., c].ravel(), minlength=256) for c in range(3)]
    sums = [own @ values**power for power in (1, 2) for own in counts]
    height, width = pixels.shape[:2]
    return _Found((height, width), np.array(sums), digest, "")


def _stamp(path: Path) -> tuple[int, int]:
    """Size and time of change, by which a file is known again."""
    try:
        stat = path.stat()
    except OSError:
        return (-1, -1)
    return (stat.st_size, stat.st_mtime_ns)


def _write_index(index: Path, paths: list[str], stamps: np.ndarray, found: Findings) -> None:
    texts = {
        name: np.frombuffer("\0".join(own).encode("utf-8", "surrogateescape"), np.uint8)
        for name, own in (("paths", paths), ("errors", found.errors))
    }
    with storing(index):
        index.parent.mkdir(parents=True, exist_ok=True)
    with whole(index) as place, place.open("wb") as out:
        np.savez(
            out,
            paths=texts["paths"],
            errors=texts["errors"],
            stamps=stamps,
            sizes=found.sizes,
            sums=found.sums,
            digests=found.digests,
        )


def _read_index(index: Path) -> dict[str, tuple[tuple[int, int], _Found]]:
    """What is known of files, by path: their stamps, and what was found."""
    try:
        with index.open("rb") as file, np.load(file, allow_pickle=False) as read:
            paths, errors = (
                read[name].tobytes().decode("utf-8", "surrogateescape").split("\0")
                for name in ("paths", "errors")
            )
            stamps, sizes, sums, digests = (read[name] for name in _COLUMNS)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return {}
    if len({len(own) for own in (paths, errors, stamps, sizes, sums, digests)}) != 1:
        return {}
    rows = zip(paths, stamps.tolist(), sizes.tolist(), sums, digests, errors, strict=True)
    return {
        path: (tuple(stamp), _Found(tuple(size), own, digest.tobytes(), error))
        for path, stamp, size, own, digest, error in rows
    }
