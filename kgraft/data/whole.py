"""Photographs that are seen whole, in one size: resized, in training also shifted and erased.

As torchvision's `v2.Resize`, `RandomCrop(padding=)`, `RandomHorizontalFlip` and `RandomErasing` one
after the other, on bytes; the first two as all person re-identification has them.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kgraft.data.crops import resized
from kgraft.errors import UserError
from kgraft.settings import check, setting

_ATTEMPTS = 10
_AREA, _RATIO = (0.02, 0.4), (0.3, 1 / 0.3)  # of what is erased: Zhong et al., AAAI 2020


class _Erased(NamedTuple):
    """A rectangle that is painted over."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Whole:
    """The whole photograph, resized to a size, whatever its shape was.

    Args:
        size: Rows and columns.

    Raises:
        UserError: these are not two numbers in 1..4096.
    """

    size: tuple[int, ...] = setting((256, 128), low=1, high=4096)

    def __post_init__(self) -> None:
        check(self)
        _check_size(self.size)

    @property
    def sides(self) -> tuple[int, int]:
        """Rows and columns of what is seen."""
        return self.size[0], self.size[1]

    def least(self, height: int, width: int) -> tuple[int, int]:
        """The size that a photograph is resized to.

        Args:
            height: Rows of the photograph.
            width: Its columns.
        """
        return self.sides

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """All of a photograph.

        Args:
            pixels: uint8 `(height, width, 3)`.

        Returns:
            uint8 `(*size, 3)`.
        """
        return resized(pixels, *self.sides)


@dataclass(frozen=True)
class ShiftedWhole:
    """The whole photograph, resized; then shifted, mirrored, and in part erased.

    Args:
        size: Rows and columns.
        pad: How many black pixels there are around it before `size` is cropped from that at random.
        flip: Whether half of the images are mirrored.
        erase: In which share of them a rectangle is painted over: of .02 to .4 of the area, its
            height .3 to 3.3 times its width.
        fill: With what, 0..1 a channel; by default ImageNet's mean, which is 0 once normalised.

    Raises:
        UserError: a number is out of range.

    Source: Zhong et al., "Random erasing data augmentation", AAAI 2020.
    """

    size: tuple[int, ...] = setting((256, 128), low=1, high=4096)
    pad: int = setting(10, low=0)
    flip: bool = True
    erase: float = setting(0.0, low=0, high=1)
    fill: tuple[float, ...] = setting((0.485, 0.456, 0.406), low=0, high=1)

    def __post_init__(self) -> None:
        check(self)
        _check_size(self.size)
        if self.pad >= min(self.size):
            raise UserError(
                f"pad {self.pad}: expected less than {min(self.size)}, the images' shorter side."
            )
        if len(self.fill) != 3:
            raise UserError(f"fill {self.fill}: expected three numbers, one a channel.")

    @property
    def sides(self) -> tuple[int, int]:
        """Rows and columns of what is seen."""
        return self.size[0], self.size[1]

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """See `TrainingView`.

        Args:
            rng: Where they come from.
            count: How many photographs.
        """
        return rng.random((count, 6 + 2 * _ATTEMPTS))

    def crop(self, numbers: np.ndarray, height: int, width: int) -> "WholeCrop":
        """See `TrainingView`: the whole of it, and what is done to that.

        Args:
            numbers: Its row of what `draw` gave.
            height: Rows of the photograph.
            width: Its columns.
        """
        down, across, mirror, erases, *rest = numbers.tolist()
        shift = 2 * self.pad + 1
        return WholeCrop(
            height,
            width,
            (int(down * shift), int(across * shift)),
            self.flip and mirror < 0.5,
            self._erased(rest) if erases < self.erase else None,
        )

    def _erased(self, numbers: list[float]) -> _Erased | None:
        """What is painted over: the first of ten rectangles that fits."""
        rows, columns = self.sides
        (least, most), (low, high) = _AREA, map(math.log, _RATIO)
        for k in range(_ATTEMPTS):
            area = rows * columns * (least + numbers[2 * k] * (most - least))
            ratio = math.exp(low + numbers[2 * k + 1] * (high - low))
            height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < height < rows and 0 < width < columns:
                down, across = numbers[-2:]
                top, left = int(down * (rows - height + 1)), int(across * (columns - width + 1))
                return _Erased(top, left, height, width)
        return None

    def __call__(self, pixels: np.ndarray, crop: "WholeCrop") -> np.ndarray:
        """What is seen of a photograph.

        Args:
            pixels: uint8 `(height, width, 3)`.
            crop: What `crop` gave.

        Returns:
            uint8 `(*size, 3)`.
        """
        rows, columns = self.sides
        padded = np.zeros((rows + 2 * self.pad, columns + 2 * self.pad, 3), np.uint8)
        padded[self.pad : self.pad + rows, self.pad : self.pad + columns] = resized(
            pixels, rows, columns
        )
        top, left = crop.shift
        seen = padded[top : top + rows, left : left + columns]
        if crop.flip:
            seen = seen[:, ::-1]
        if crop.erased is None:
            return seen
        seen, own = seen.copy(), crop.erased
        fill = np.round(255 * np.array(self.fill)).astype(np.uint8)
        seen[own.top : own.top + own.height, own.left : own.left + own.width] = fill
        return seen


class WholeCrop(NamedTuple):
    """What is done to one photograph that is seen whole.

    Attributes:
        height: Its rows.
        width: Its columns.
        shift: First row and column of what is cropped from the padded image.
        flip: Whether that is mirrored left to right.
        erased: What of that is painted over.
    """

    height: int
    width: int
    shift: tuple[int, int]
    flip: bool
    erased: _Erased | None

    def scaled(self, whole: tuple[int, int], to: tuple[int, ...]) -> "WholeCrop":
        """The same of the photograph in another size.

        Args:
            whole: Rows and columns of the photograph.
            to: Rows and columns that it has now.
        """
        return self


def _check_size(size: tuple[int, ...]) -> None:
    if len(size) != 2:
        raise UserError(f"size {size}: expected two numbers, rows and columns.")
