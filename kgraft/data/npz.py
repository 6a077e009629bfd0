"""Classification sets in one `.npz` file: `x_train`, `y_train`, `x_test`, `y_test`."""

import lzma
import math
import zipfile
import zlib
from pathlib import Path
from tokenize import TokenError
from typing import IO

import numpy as np

from kgraft.data.arrays import KEYS, classification_set, expected
from kgraft.data.dataset import Dataset
from kgraft.errors import UserError, suggest
from kgraft.files import is_directory, is_file

MOST_SMALL = 1 << 28
"""Bytes that an array may have however well it is packed: a small set of black images is one."""
MOST_EXPANSION = 100
"""How many times larger than the whole file a larger array may be: photographs pack 2 to 1."""


def read_npz(path: Path, *, name: str, source: str, licence: str) -> Dataset:
    """Read a set from a `.npz` file; nothing in it is ever unpickled.

    Args:
        path: File with `x_train`, `x_test`, uint8 `(n, height, width, channels)`, and `y_train`,
            `y_test`, integers `(n,)`, counted from 0. The classes are 0 to the largest of
            `y_train`.
        name: Name of the set.
        source: Where it comes from.
        licence: Its terms of use.

    Returns:
        The whole set, with the statistics of its training images and without a validation part.

    Raises:
        UserError: the file is missing or no such `.npz`, or an array has the wrong rank, dtype,
            length or values, or unpacks to more than `MOST_EXPANSION` times the file.
    """
    arrays = _arrays(path)
    return classification_set(arrays, str(path), name=name, source=source, licence=licence)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    if is_directory(path):
        raise UserError(f"{path} is a directory; expected an .npz file with {', '.join(KEYS)}.")
    if not is_file(path):
        raise UserError(f"{path}: no such file; expected an .npz with {', '.join(KEYS)}.")
    with path.open("rb") as stream:
        if stream.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX:
            raise UserError(
                f"{path} holds a single array; expected an .npz archive with {', '.join(KEYS)}."
            )
        stream.seek(0)
        try:
            file = np.load(stream, allow_pickle=False)
        except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile) as problem:
            raise UserError(
                f"{path} is not an .npz archive, or is damaged; expected one with "
                f"{', '.join(KEYS)}."
            ) from problem
        with file:
            return {key: _array(path, file, key) for key in KEYS}


def _array(path: Path, file: np.lib.npyio.NpzFile, key: str) -> np.ndarray:
    if key not in file.files:
        nearest = suggest(key, file.files) if file.files else " It holds no arrays."
        raise UserError(f"{path}: no array {key!r}.{nearest}")
    try:
        _check_size(path, file, key)
        return file[key]
    except UserError:
        raise
    except (
        *(OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error, lzma.LZMAError),
        *(RuntimeError, OverflowError, TypeError),  # encrypted, an odd header
    ) as problem:
        raise UserError(
            f"{path}: {key} cannot be read: it is damaged or holds pickled Python objects; "
            f"expected {expected(key)}."
        ) from problem


def _check_size(path: Path, file: np.lib.npyio.NpzFile, key: str) -> None:
    """Refuse an array that says to be larger than what the file holds, before room is made for it.

    Deflate makes at most 1032 bytes of one, and of a large array no more than `MOST_EXPANSION`.
    """
    assert file.zip is not None  # it is open
    with file.zip.open(f"{key}.npy") as stream:
        shape, dtype = _header(stream)
    claimed = 0 if dtype.hasobject else math.prod(shape) * dtype.itemsize
    held, size = file.zip.getinfo(f"{key}.npy").file_size, path.stat().st_size
    if claimed > min(held, max(MOST_EXPANSION * size, min(1032 * size, MOST_SMALL))):
        raise UserError(
            f"{path}: {key} says to be {dtype} of shape {shape}, {claimed:,} bytes, "
            f"which a file of {size:,} bytes does not hold; expected {expected(key)}."
        )


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(stream)
    try:
        if version == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
        else:
            shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
    except (
        MemoryError,
        RecursionError,
        SyntaxError,
        TokenError,
    ):  # of Python's parser: a header of parentheses
        raise ValueError("a header that cannot be read") from None
    return shape, dtype
