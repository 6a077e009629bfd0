"""What is seen of photographs: what `PhotoStream` and `OrderedPhotos` ask of a crop."""

from typing import Any, Protocol

import numpy as np

from kgraft.data.photos import Photos
from kgraft.errors import UserError


class TrainingView(Protocol):
    """What is seen of photographs in training, by random numbers that are drawn beforehand."""

    @property
    def sides(self) -> tuple[int, int]:
        """Rows and columns of what is seen."""
        ...

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Random numbers for some photographs, of which the sizes need not be known yet.

        Args:
            rng: Where they come from.
            count: How many photographs.

        Returns:
            float64 in 0..1, `(count, numbers)`.
        """
        ...

    def crop(self, numbers: np.ndarray, height: int, width: int) -> Any:
        """What is done to a photograph, as a `Crop` says it: `height`, `width` and `scaled`.

        Args:
            numbers: Its row of what `draw` gave.
            height: Rows of the photograph.
            width: Its columns.
        """
        ...

    def __call__(self, pixels: np.ndarray, crop: Any) -> np.ndarray:
        """What is seen of a photograph.

        Args:
            pixels: uint8 `(height, width, 3)`.
            crop: What `crop` gave, scaled to them.

        Returns:
            uint8 `(*sides, 3)`.
        """
        ...


class View(Protocol):
    """What is seen of photographs in evaluation."""

    @property
    def sides(self) -> tuple[int, int]:
        """Rows and columns of what is seen."""
        ...

    def least(self, height: int, width: int) -> tuple[int, int]:
        """The size that a photograph is resized to.

        Args:
            height: Rows of the photograph.
            width: Its columns.
        """
        ...

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """What is seen of a photograph.

        Args:
            pixels: uint8 `(height, width, 3)`.

        Returns:
            uint8 `(*sides, 3)`.
        """
        ...


def check_sides(view: TrainingView | View, photos: Photos) -> None:
    """Refuse what shows images of another size than the photographs are seen in.

    Args:
        view: What is seen.
        photos: The photographs.

    Raises:
        UserError: it has another size.
    """
    if view.sides != photos.sides:
        own, expected = ("x".join(map(str, sides)) for sides in (view.sides, photos.sides))
        raise UserError(f"crop: it shows {own}; expected {expected}, the size of the images.")


def side_of(photos: Photos) -> int:
    """The side of the square that photographs are seen in.

    Args:
        photos: The photographs.

    Raises:
        UserError: it is no square.
    """
    rows, columns = photos.sides
    if rows != columns:
        raise UserError(
            f"crop: there is no usual one for {rows}x{columns}; expected one, e.g. "
            f"crop=kgraft.data.ShiftedWhole(({rows}, {columns}))."
        )
    return rows
