"""Photographs that stay on the disk until somebody asks for one.

`Photos` stand where a set in memory has its array: in a `Split`, with the shape that they are seen
in.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from kgraft.data.decode import Photo, Unreadable, opened
from kgraft.errors import UserError


class Opened(Protocol):
    """A photograph of which the size is known, see `Photo`."""

    @property
    def height(self) -> int:
        """Rows."""
        ...

    @property
    def width(self) -> int:
        """Columns."""
        ...

    def pixels(self, rows: int = 0, columns: int = 0) -> np.ndarray:
        """See `Photo.pixels`."""
        ...


class Source(Protocol):
    """Photographs by number; any thread may ask for them."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def name(self, number: int) -> str:
        """What a photograph is called in a message."""
        ...

    def opened(self, number: int) -> Opened:
        """A photograph.

        Raises:
            OSError: it cannot be read.
            Unreadable: it is no image.
        """
        ...


@dataclass(frozen=True, eq=False)
class Files:
    """Photographs in files.

    Attributes:
        root: The folder.
        paths: Their paths below it, with forward slashes.
    """

    root: Path
    paths: Sequence[str]

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, number: int) -> str:
        """See `Source`."""
        return str(self.root / self.paths[number])

    def read(self, number: int) -> bytes:
        """The bytes of a file."""
        return (self.root / self.paths[number]).read_bytes()

    def opened(self, number: int) -> Photo:
        """See `Source`."""
        return opened(self.read(number))


@dataclass(frozen=True, eq=False)
class Photos:
    """Some of the photographs of a source, which are seen as images of one size.

    Attributes:
        source: The photographs.
        numbers: Which of them, int64 `(n,)`.
        size: Of the images that training and evaluation see, pixels: the side of a square, or rows
            and columns.
    """

    source: Source
    numbers: np.ndarray
    size: int | tuple[int, int]

    @classmethod
    def of(cls, source: Source, size: int | tuple[int, int]) -> "Photos":
        """All photographs of a source."""
        return cls(source, np.arange(len(source)), size)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, which: Any) -> "Photos":
        """Some of them, as an array is indexed by a slice, a mask or numbers."""
        return replace(self, numbers=self.numbers[which])

    @property
    def sides(self) -> tuple[int, int]:
        """Rows and columns of the images that are seen."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape of an array of all of them, as they are seen."""
        return (len(self), *self.sides, 3)

    @property
    def dtype(self) -> np.dtype[np.uint8]:
        """The type of such an array."""
        return np.dtype(np.uint8)

    @property
    def nbytes(self) -> int:
        """The size of such an array."""
        return math.prod(self.shape)

    def opened(self, number: int) -> Opened:
        """One of these, not decoded yet.

        Args:
            number: Which of these.

        Raises:
            UserError: names the photograph, and says why it cannot be had.
        """
        own = int(self.numbers[number])
        try:
            return self.source.opened(own)
        except (OSError, Unreadable) as error:
            raise self._unreadable(own, error) from error

    def pixels(self, number: int, photo: Opened, rows: int = 0, columns: int = 0) -> np.ndarray:
        """The pixels of one, see `Photo.pixels`.

        Args:
            number: Which of these.
            photo: What `opened` gave.
            rows: See `Photo.pixels`.
            columns: See `Photo.pixels`.

        Raises:
            UserError: names the photograph, and says why it cannot be had.
        """
        try:
            return photo.pixels(rows, columns)
        except Unreadable as error:
            raise self._unreadable(int(self.numbers[number]), error) from error

    def _unreadable(self, own: int, error: Exception) -> UserError:
        why = (error.strerror if isinstance(error, OSError) else None) or error
        return UserError(f"{self.source.name(own)} cannot be read: {why}.")
