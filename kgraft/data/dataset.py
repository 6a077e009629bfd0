"""What every source of images yields: arrays in memory, with what is known about them."""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Split:
    """Images and their labels, in one fixed order.

    Attributes:
        images: Pixels 0..255, uint8 `(n, height, width, channels)`; or `Photos`, which stay on the
            disk and are seen in such a shape.
        labels: Class numbers 0..classes-1, int64 `(n,)`.
    """

    images: Any
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def first(self, count: int | None) -> "Split":
        """The first `count` images, or all of them for None and where there are fewer."""
        return Split(self.images[:count], self.labels[:count])


@dataclass(frozen=True, eq=False)
class OpenSet:
    """Who is on the test images, where those are of other identities than one learns from.

    Attributes:
        identities: Of every test image, int64 `(n,)`; -1 for one that is neither hit nor miss.
        cameras: What took each, int64 `(n,)`; None where nobody says.
        queries: How many of them, the first ones, are looked for; among the others.
    """

    identities: np.ndarray
    cameras: np.ndarray | None
    queries: int


@dataclass(frozen=True, eq=False)
class Dataset:
    """A classification set that is ready for training.

    Attributes:
        name: What it was loaded by.
        train: Images to learn from.
        validation: Images for choosing epochs and settings, taken from train or the set's own; None
            without any.
        test: Images that are used once, at the end.
        classes: Number of classes.
        class_names: One name a class, in label order.
        mean: Mean of every channel over train, pixels scaled to 0..1.
        std: Standard deviation of every channel over train, pixels scaled to 0..1.
        source: Who made it, and where it is published.
        licence: Terms of use, as its makers state them.
        own_validation: Whether `load` found the validation part in the set, and took none.
        open_set: Who is on the test images where these are searched, and not classified: their
            labels are then no classes. None for all other sets.
    """

    name: str
    train: Split
    validation: Split | None
    test: Split
    classes: int
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str
    licence: str
    own_validation: bool = False
    open_set: OpenSet | None = None


def channel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of every channel, pixels scaled to 0..1.

    Counted from histograms, so exact in float64 however many images there are. A channel that is
    constant gets a deviation of 1, so that normalising by it is defined.

    Args:
        images: uint8 `(n, height, width, channels)`.

    Returns:
        `(mean, std)`, one number a channel each.

    Example:
        >>> channel_statistics(np.array([0, 255], np.uint8).reshape(2, 1, 1, 1))
        ((0.5,), (0.5,))
    """
    values = np.arange(256) / 255
    means, deviations = [], []
    for channel in range(images.shape[-1]):
        counts = np.zeros(256, np.int64)
        for start in range(0, len(images), 4096):
            pixels = images[start : start + 4096, ..., channel]
            counts += np.bincount(pixels.ravel(), minlength=256)
        share = counts / counts.sum()
        mean = float(share @ values)
        means.append(mean)
        deviations.append(float(np.sqrt(share @ (values - mean) ** 2)) or 1.0)
    return tuple(means), tuple(deviations)
