"""Crops, flips and normalisation of whole batches, where the images are.

The random numbers are drawn on the host, by NumPy, so that every backend sees the same crops; the
pixels never leave the device.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops

from kgraft.errors import UserError


@dataclass(frozen=True, eq=False)
class Draw:
    """Random numbers for one batch of n images.

    Attributes:
        rows: First row of each crop in the padded image, 0..2 pad, int32 `(n,)`.
        columns: First column of each crop in the padded image, 0..2 pad, int32 `(n,)`.
        flips: Whether the crop is mirrored left to right, bool `(n,)`.
    """

    rows: np.ndarray
    columns: np.ndarray
    flips: np.ndarray


@dataclass(frozen=True)
class Augment:
    """Pad with black, crop back to size at a random place, mirror half of them, normalise.

    Source: Meng et al., CVPR 2020, section 4 (pad 4, random crop, horizontal flip); black is pixel
    value 0 before normalisation, as in the authors' code.

    Args:
        pad: Width of the border in pixels; 0 for no crops.
        flip: Whether half of the images are mirrored.
        mean: Subtracted from the pixels, which are scaled to 0..1 first: one number, or one a
            channel.
        std: What they are divided by then, likewise.

    Raises:
        UserError: `pad` is negative, a `std` is not positive, or `mean` and `std` differ in length.
    """

    pad: int = 4
    flip: bool = True
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if self.pad < 0:
            raise UserError(f"augmentation: pad {self.pad}; expected 0 or more pixels.")
        if len(self.mean) != len(self.std):
            raise UserError(
                f"augmentation: {len(self.mean)} means and {len(self.std)} deviations; expected as "
                "many."
            )
        if not all(deviation > 0 for deviation in self.std):
            raise UserError(f"augmentation: std {self.std}; expected numbers above 0.")

    def draw(self, rng: np.random.Generator, count: int) -> Draw | None:
        """Random numbers for a batch of `count` images; None where there is nothing to draw."""
        if not self.pad and not self.flip:
            return None
        rows, columns = rng.integers(0, 2 * self.pad + 1, (2, count), dtype=np.int32)
        flips = rng.random(count) < 0.5 if self.flip else np.zeros(count, bool)
        return Draw(rows, columns, flips)

    def __call__(self, images: Any, draw: Draw | None = None) -> Any:
        """Augment and normalise a batch.

        Args:
            images: uint8 tensor `(n, height, width, channels)`.
            draw: Random numbers for these n images; None only normalises.

        Returns:
            float32 tensor of the same shape.

        Raises:
            UserError: the images have another number of channels than `mean` and `std`.
        """
        self._check_channels(images)
        if draw is not None:
            images = self._crop(images, draw)
        # one division more than needed: the very numbers of torchvision's ToTensor and Normalize
        mean, std = map(_of_channels, (self.mean, self.std))
        return (ops.cast(images, "float32") / 255 - mean) / std

    def normalised(self, images: np.ndarray) -> np.ndarray:
        """A batch normalised on the host, on one core, in the very numbers of `__call__`.

        Args:
            images: uint8 `(n, height, width, channels)`.

        Returns:
            float32 array of the same shape.

        Raises:
            UserError: see `__call__`.
        """
        self._check_channels(images)
        found = images.astype(np.float32)
        found /= 255
        row = images.shape[2:]  # whole rows of pixels: three numbers at a time are no vectors
        found -= np.ascontiguousarray(np.broadcast_to(np.array(self.mean, np.float32), row))
        found /= np.ascontiguousarray(np.broadcast_to(np.array(self.std, np.float32), row))
        return found

    def _check_channels(self, images: Any) -> None:
        if len(self.mean) not in (1, images.shape[-1]):
            raise UserError(
                f"augmentation: {len(self.mean)} means for images of shape "
                f"{tuple(images.shape[1:])}; expected one a channel."
            )

    def _crop(self, images: Any, draw: Draw) -> Any:
        """All crops at once: one gather of pixels from the padded batch, laid out flat.

        Measured against a gather of rows and then of columns, a gather of single values and
        one-hot matrix products; this one is the fastest on torch.
        """
        count, height, width, channels = images.shape
        rows = ops.convert_to_tensor(draw.rows)[:, None] + ops.arange(height, dtype="int32")
        columns = ops.arange(width, dtype="int32")[None]
        if self.flip:
            flips = ops.convert_to_tensor(draw.flips)[:, None]
            columns = ops.where(flips, width - 1 - columns, columns)
        columns = columns + ops.convert_to_tensor(draw.columns)[:, None]
        if self.pad:
            border = (self.pad, self.pad)
            images = ops.pad(images, ((0, 0), border, border, (0, 0)))
            height, width = height + 2 * self.pad, width + 2 * self.pad
        rows = rows + height * ops.arange(count, dtype="int32")[:, None]
        pixels = rows[:, :, None] * width + columns[:, None, :]
        return ops.take(ops.reshape(images, (count * height * width, channels)), pixels, axis=0)


def _of_channels(numbers: tuple[float, ...]) -> Any:
    """A number a channel, made on the device: a copy from the host would be waited for."""
    if len(numbers) == 1:
        return numbers[0]
    return ops.concatenate([ops.ones((1,), "float32") * number for number in numbers])
