"""A peer's batches, from images that are on the device once for all peers."""

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
from keras import ops, tree

from kgraft.data.augment import Augment, Draw
from kgraft.data.order import augmentation_rng, check_batch_size, epoch_order
from kgraft.data.prefetch import prefetched
from kgraft.engines.backends import BACKEND
from kgraft.engines.backends.lazy import LazyBatch, lazy_batches
from kgraft.errors import UserError


class BatchStream:
    """The batches of one peer, the same ones whenever an epoch is asked for again.

    Batches depend on `(seed, peer, epoch)` and on nothing else: a resumed run sees those of the
    interrupted one, and two streams of the same peer number agree.

    Args:
        images: Pixels 0..255, uint8 `(n, height, width, channels)`; moved to the device here.
        labels: Class numbers, integers `(n,)`.
        batch_size: Images a step; the last batch of an epoch may be smaller.
        seed: The run's seed.
        peer: Number of the peer whose order and crops these are.
        augment: Crops, flips and normalisation; None only scales the pixels to 0..1. One with
            `pad=0` and `flip=False` is for evaluation.
        shuffle: False for the order in which the images lie.
        resident: False leaves the images on the host, for sets that do not fit the device: batches
            are gathered there and copied over by a thread, ahead of their use.

    Raises:
        UserError: the images are not uint8 of rank 4, there are not as many labels, or
            `batch_size` is not in 1..n.

    Example:
        >>> images, labels = np.zeros((5, 8, 8, 1), np.uint8), np.arange(5)
        >>> stream = BatchStream(images, labels, batch_size=2, seed=0, peer=0)
        >>> [tuple(x.shape) for x, y in stream.epoch(0)]
        [(2, 8, 8, 1), (2, 8, 8, 1), (1, 8, 8, 1)]
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        *,
        batch_size: int,
        seed: int,
        peer: int,
        augment: Augment | None = None,
        shuffle: bool = True,
        resident: bool = True,
    ) -> None:
        if images.dtype != np.uint8 or images.ndim != 4:
            raise UserError(
                f"images: {images.dtype} of shape {images.shape}; expected uint8 of shape "
                "(n, height, width, channels)."
            )
        if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
            raise UserError(
                f"labels: {labels.dtype} of shape {labels.shape}; expected integers of shape "
                f"({len(images)},), one an image."
            )
        check_batch_size(batch_size, len(images))
        self.count = len(images)
        self.batch_size = batch_size
        self.seed = seed
        self.peer = peer
        self.crops_of = peer
        self.shuffle = shuffle
        self.augment = augment or Augment(pad=0, flip=False)
        self._images = ops.convert_to_tensor(images) if resident else images
        self._labels = ops.convert_to_tensor(labels.astype(np.int32))

    @property
    def steps(self) -> int:
        """Steps in an epoch."""
        return -(-self.count // self.batch_size)

    def __len__(self) -> int:
        return self.steps

    def for_peer(self, peer: int) -> "BatchStream":
        """The stream of another peer, over the same images on the device."""
        sibling = copy.copy(self)
        sibling.peer = sibling.crops_of = peer
        return sibling

    def view(self, peer: int) -> "BatchStream":
        """The stream with another peer's crops and flips of the same images in the same order."""
        other = copy.copy(self)
        other.crops_of = peer
        return other

    @property
    def images(self) -> Any:
        """Pixels of all images, uint8 `(n, height, width, channels)`, where they lie."""
        return self._images

    @property
    def labels(self) -> Any:
        """Labels of all images, on the device: int32 `(n,)`, or what `with_labels` was given."""
        return self._labels

    @property
    def is_fixed(self) -> bool:
        """Whether every epoch shows the same pixels, only in another order."""
        return not self.augment.pad and not self.augment.flip

    def with_labels(self, labels: Any) -> "BatchStream":
        """The same images with other labels.

        Args:
            labels: tensors, or a nest of them, whose first axis counts the images.
        """
        other = copy.copy(self)
        other._labels = labels
        return other

    def in_order(self) -> "BatchStream":
        """The same images in the order in which they lie."""
        other = copy.copy(self)
        other.shuffle = False
        return other

    def epoch(self, epoch: int) -> Iterator[tuple[Any, Any]]:
        """The batches of one epoch.

        Args:
            epoch: Number of the epoch, from 0.

        Yields:
            `(x, y)`: augmented images, float32 `(b, height, width, channels)`, and labels, int32
            `(b,)`, tensors on the device.
        """
        order, numbers = self._numbers(epoch)
        pieces = BACKEND.pieces(numbers, self.batch_size)
        for piece, images in zip(pieces, self._pixels(order), strict=True):
            yield self._gather(piece, images)

    def lazy_epoch(self, epoch: int) -> Iterator[LazyBatch] | None:
        """The same batches, each to be gathered when somebody asks.

        Args:
            epoch: Number of the epoch, from 0.

        Returns:
            None where the images are on the host.
        """
        if isinstance(self._images, np.ndarray):
            return None
        numbers = BACKEND.upload(self._numbers(epoch)[1])
        return lazy_batches(numbers, self.batch_size, self._gather)

    def _numbers(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """An epoch's order, and all numbers that it needs, int32 `(1 or 4, n)`."""
        order = epoch_order(
            self.count, seed=self.seed, peer=self.peer, epoch=epoch, shuffle=self.shuffle
        ).astype(np.int32)
        return order, np.concatenate([order[None], *self._drawn(epoch)])

    def _gather(self, numbers: Any, images: Any = None) -> tuple[Any, Any]:
        """One batch of its numbers, and of its images where they are not all on the device."""
        chosen, *drawn = numbers
        if images is None:
            images = ops.take(self._images, chosen, axis=0)
        draw = Draw(drawn[0], drawn[1], drawn[2] > 0) if drawn else None
        labels = tree.map_structure(lambda part: ops.take(part, chosen, axis=0), self._labels)
        return self.augment(images, draw), labels

    def _drawn(self, epoch: int) -> list[np.ndarray]:
        """Rows, columns and flips of an epoch's crops, int32 `(3, n)`; nothing without any."""
        rng = augmentation_rng(seed=self.seed, peer=self.crops_of, epoch=epoch)
        starts = range(0, self.count, self.batch_size)
        counts = [min(self.batch_size, self.count - start) for start in starts]
        draws = [draw for count in counts if (draw := self.augment.draw(rng, count)) is not None]
        rows = [
            np.stack([own.rows, own.columns, own.flips], dtype=np.int32, casting="unsafe")
            for own in draws
        ]
        return [np.concatenate(rows, axis=1)] if rows else []

    def _pixels(self, order: np.ndarray) -> Iterator[Any]:
        """Each batch's images, copied ahead of their use; None where all are on the device."""
        images = self._images
        starts = range(0, self.count, self.batch_size)
        if not isinstance(images, np.ndarray):
            return (None for _ in starts)
        batches = (order[start : start + self.batch_size] for start in starts)
        return prefetched(batches, lambda own: BACKEND.upload(images[own]))
