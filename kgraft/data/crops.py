"""What of a photograph is looked at: random resized crops in training, the centre in evaluation.

The numbers are torchvision's (`RandomResizedCrop`, `Resize`, `CenterCrop`, `ColorJitter` without
hue), the pixels those of its second version (`v2`) on tensors of bytes, whatever the backend: torch
resizes them, three times as fast as Pillow (`resized`). Colours are changed by Pillow.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance

from kgraft.errors import UserError
from kgraft.settings import check, setting

_ATTEMPTS = 10
_CHANGES = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


class Crop(NamedTuple):
    """What is done to one photograph.

    Attributes:
        top: First row of the crop.
        left: First column.
        height: Rows, before it is resized.
        width: Columns, likewise.
        flip: Whether it is mirrored left to right.
        factors: Of brightness, contrast and saturation, in the order in which they are changed:
            pairs of which (0, 1, 2) and how much.
    """

    top: int
    left: int
    height: int
    width: int
    flip: bool = False
    factors: tuple[tuple[int, float], ...] = ()

    def scaled(self, whole: tuple[int, int], to: Sequence[int]) -> "Crop":
        """The same part of the photograph in another size.

        Args:
            whole: Rows and columns of the photograph.
            to: Rows and columns that it has now.
        """
        if whole == tuple(to[:2]):
            return self
        down, across = to[0] / whole[0], to[1] / whole[1]
        top, left = round(self.top * down), round(self.left * across)
        rows = round((self.top + self.height) * down) - top
        columns = round((self.left + self.width) * across) - left
        return Crop(top, left, max(rows, 1), max(columns, 1), self.flip, self.factors)


def enough_for(
    crops: Sequence[Crop], whole: tuple[int, int], sides: tuple[int, int]
) -> tuple[int, int]:
    """How large a photograph must be decoded, so that none of its crops is enlarged by that.

    Args:
        crops: Parts of it.
        whole: Its rows and columns.
        sides: Rows and columns that each crop becomes.

    Returns:
        Rows and columns.
    """
    rows = max(-(-whole[0] * sides[0] // crop.height) for crop in crops)
    columns = max(-(-whole[1] * sides[1] // crop.width) for crop in crops)
    return min(rows, whole[0]), min(columns, whole[1])


@dataclass(frozen=True)
class RandomResizedCrop:
    """A part of the image of random area and shape, resized to a square; half are mirrored.

    Args:
        size: Side of the square, pixels.
        area: Share of the image's area that is seen, from and to.
        ratio: Width over height of the part, from and to; drawn evenly in its logarithm.
        flip: Whether half of the images are mirrored.
        jitter: How far brightness, contrast and saturation may be from 1, in random order; 0 for
            none.

    Raises:
        UserError: a number is out of range.

    Source: Szegedy et al., "Going deeper with convolutions", CVPR 2015; the numbers are drawn as
    torchvision.transforms draws them.
    """

    size: int = setting(224, low=1, high=4096)
    area: tuple[float, ...] = setting((0.08, 1.0), above=0, high=1)
    ratio: tuple[float, ...] = setting((3 / 4, 4 / 3), above=0)
    flip: bool = True
    jitter: float = setting(0.0, low=0, high=1)

    def __post_init__(self) -> None:
        check(self)
        for name, own in (("area", self.area), ("ratio", self.ratio)):
            if len(own) != 2 or own[0] > own[1]:
                raise UserError(f"{name} {own}: expected two numbers, from and to, in this order.")

    @property
    def sides(self) -> tuple[int, int]:
        """Rows and columns of what is seen."""
        return self.size, self.size

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Random numbers for some photographs, of which the sizes need not be known yet.

        Args:
            rng: Where they come from.
            count: How many photographs.

        Returns:
            float64 in 0..1, `(count, numbers)`.
        """
        return rng.random((count, 2 * _ATTEMPTS + 3 + 2 * len(_CHANGES)))

    def crop(self, numbers: np.ndarray, height: int, width: int) -> Crop:
        """What a photograph is seen through.

        Args:
            numbers: Its row of what `draw` gave.
            height: Rows of the photograph.
            width: Its columns.
        """
        row = numbers.tolist()
        shapes, (down, across, mirror), rest = row[:-9], row[-9:-6], row[-6:]
        rows, columns, is_free = self._shape(shapes, height, width)
        top, left = height - rows, width - columns
        top, left = (
            (int(down * (top + 1)), int(across * (left + 1))) if is_free else (top // 2, left // 2)
        )
        factors: tuple[tuple[int, float], ...] = ()
        if self.jitter:
            order = sorted(range(3), key=rest[:3].__getitem__)
            low, high = max(0.0, 1 - self.jitter), 1 + self.jitter
            factors = tuple((k, low + rest[3 + k] * (high - low)) for k in order)
        return Crop(top, left, rows, columns, self.flip and mirror < 0.5, factors)

    def _shape(self, numbers: Sequence[float], height: int, width: int) -> tuple[int, int, bool]:
        """Rows and columns of a crop, and whether it may lie anywhere."""
        least, most = self.area
        low, high = map(math.log, self.ratio)
        for k in range(_ATTEMPTS):
            area = height * width * (least + numbers[2 * k] * (most - least))
            ratio = math.exp(low + numbers[2 * k + 1] * (high - low))
            rows, columns = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < columns <= width and 0 < rows <= height:
                return rows, columns, True
        if width / height < self.ratio[0]:  # the whole of it, or its middle where it is too long
            return min(height, round(width / self.ratio[0])), width, False
        if width / height > self.ratio[1]:
            return height, min(width, round(height * self.ratio[1])), False
        return height, width, False

    def __call__(self, pixels: np.ndarray, crop: Crop) -> np.ndarray:
        """The part of a photograph.

        Args:
            pixels: uint8 `(height, width, 3)`.
            crop: What of it.

        Returns:
            uint8 `(size, size, 3)`.
        """
        part = pixels[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
        seen = resized(part, self.size, self.size)
        if crop.factors:
            image = Image.fromarray(seen)
            for which, factor in crop.factors:
                image = _CHANGES[which](image).enhance(factor)
            seen = np.asarray(image)
        return seen[:, ::-1] if crop.flip else seen


@dataclass(frozen=True)
class CentreCrop:
    """The middle of the image, after its shorter side is resized.

    Args:
        size: Side of the square that is seen, pixels.
        resize: Length of the shorter side before; 8/7 of `size` by default, 256 for 224.

    Raises:
        UserError: a number is out of range, or `resize` is below `size`.
    """

    size: int = setting(224, low=1, high=4096)
    resize: int | None = setting(None, low=1, high=8192)
    shorter: int = field(init=False)

    def __post_init__(self) -> None:
        check(self)
        shorter = round(self.size * 8 / 7) if self.resize is None else self.resize
        if shorter < self.size:
            raise UserError(
                f"resize {shorter}: expected {self.size} or more, the size that is seen."
            )
        object.__setattr__(self, "shorter", shorter)

    @property
    def sides(self) -> tuple[int, int]:
        """Rows and columns of what is seen."""
        return self.size, self.size

    def least(self, height: int, width: int) -> tuple[int, int]:
        """The size that a photograph is resized to.

        Args:
            height: Rows of the photograph.
            width: Its columns.
        """
        if height <= width:
            return self.shorter, int(self.shorter * width / height)
        return int(self.shorter * height / width), self.shorter

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """The middle of a photograph.

        Args:
            pixels: uint8 `(height, width, 3)`.

        Returns:
            uint8 `(size, size, 3)`.
        """
        height, width = self.least(*pixels.shape[:2])
        top, left = round((height - self.size) / 2), round((width - self.size) / 2)
        whole = resized(pixels, height, width)
        return whole[top : top + self.size, left : left + self.size]


def resized(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """An image in another size, bilinear and antialiased.

    Pillow's filter in torch's whole numbers: here and there a pixel is one or two off Pillow's.

    Args:
        pixels: uint8 `(rows, columns, 3)`.
        height: Rows that it will have.
        width: Columns.
    """
    if pixels.shape[:2] == (height, width):
        return pixels
    from kgraft.engines.backends.resize import antialiased  # imports torch, whatever the backend

    return antialiased(pixels, height, width)
