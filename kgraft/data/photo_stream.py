"""A peer's batches of photographs, which are decoded while the device is at work."""

import copy
import itertools
import threading
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
from keras import ops

from kgraft.data.augment import Augment
from kgraft.data.crops import CentreCrop, RandomResizedCrop
from kgraft.data.identity_batches import IdentityBatches
from kgraft.data.order import check_batch_size
from kgraft.data.photos import Photos
from kgraft.data.prefetch import prefetched
from kgraft.data.views import TrainingView, View, check_sides, side_of
from kgraft.data.windows import Seat, WindowedEpoch, Windows, window_of
from kgraft.engines.backends import BACKEND
from kgraft.engines.backends.cores import usable_cores
from kgraft.errors import UserError
from kgraft.settings import argument

_Squares = tuple[np.ndarray, np.ndarray]  # which photographs, and what is seen of them
Order = Literal["windowed", "independent"]
_MIB = 2**20
_READY = 2  # batches that wait on the device


class PhotoStream:
    """The batches of one peer, the same ones whenever an epoch is asked for again.

    They depend on `(seed, peer, epoch)`, on the window and on nothing else: neither on how many
    threads decode, nor on who else reads. Streams that `for_peer` makes of one another share the
    decodings of an epoch that they read beside each other.

    Args:
        photos: The photographs, and the size of what is seen of them.
        labels: Class numbers, integers `(n,)`.
        batch_size: Images a step; the last batch of an epoch may be smaller.
        seed: The run's seed.
        peer: Number of the peer whose order and crops these are.
        peers: How many share the memory.
        crop: What is seen of a photograph, of the photographs' size; a `RandomResizedCrop` by
            default.
        augment: How pixels are normalised, by its `mean` and `std`; None only scales them to 0..1.
            Its `pad` and `flip` are for images in memory: `crop` says what is seen here.
        order: `"windowed"` decodes once for all peers: every window of photographs is the same for
            all, in an order of each peer's own. `"independent"` gives each peer an order of the
            whole set, and decodes for each.
        memory: Bytes that the crops of all peers may take; the window follows from it.
        workers: Threads that decode; as many as there are cores by default.
        scaled: Whether a JPEG may be decoded to a half, a quarter or an eighth of its size where
            that is enough for its crops: faster, and other pixels.
        instances: I, for batches of `batch_size` / I labels with I images of each, which losses
            between images need; every image is seen in every epoch, some twice, that of a label
            with fewer than I more often. Batches that want more labels than there are have several
            times I of one. None: whatever comes.

    Raises:
        UserError: there are not as many labels, `batch_size` is not in 1..n or no multiple of
            `instances`, or a number is out of range.
    """

    def __init__(
        self,
        photos: Photos,
        labels: np.ndarray,
        *,
        batch_size: int,
        seed: int,
        peer: int,
        peers: int = 1,
        crop: TrainingView | None = None,
        augment: Augment | None = None,
        order: Order = "windowed",
        memory: int = 512 * _MIB,
        workers: int | None = None,
        scaled: bool = False,
        instances: int | None = None,
    ) -> None:
        check_labels(photos, labels)
        check_batch_size(batch_size, len(photos))
        identities = (
            None
            if instances is None
            else IdentityBatches(labels, batch_size=batch_size, instances=instances)
        )
        argument("seed", seed, int, low=0)
        argument("peer", peer, int, low=0)
        argument("peers", peers, int, low=1)
        argument("workers", workers, int | None, low=1)
        argument("order", order, Order)
        argument("memory", memory, int, low=1)
        crop = crop or RandomResizedCrop(side_of(photos))
        check_sides(crop, photos)
        self.count = len(photos) if identities is None else identities.count
        self.batch_size = batch_size
        self.seed, self.peer, self.crops_of = seed, peer, peer
        self.order: Order = order
        self.augment = Augment(0, False, *_statistics(augment))
        sharing = peers if order == "windowed" else 1
        window = window_of(memory, sharing, photos, batch_size, self.count)
        self.windows = Windows(photos, crop, seed, window, scaled, identities)
        self._labels = np.asarray(labels, np.int32)
        self._hall = _Hall(workers)

    @property
    def photos(self) -> Photos:
        """The photographs."""
        return self.windows.photos

    @property
    def labels(self) -> np.ndarray:
        """Their labels, int32 `(n,)`."""
        return self._labels

    @property
    def waited(self) -> float:
        """Seconds in which readers had to wait for batches, of this peer and of its siblings."""
        return self._hall.waited

    @property
    def steps(self) -> int:
        """Steps in an epoch."""
        return -(-self.count // self.batch_size)

    def __len__(self) -> int:
        return self.steps

    def for_peer(self, peer: int) -> "PhotoStream":
        """The stream of another peer, over the same photographs."""
        sibling = copy.copy(self)
        sibling.peer = sibling.crops_of = peer
        return sibling

    def view(self, peer: int) -> "PhotoStream":
        """The stream with another peer's crops and flips of the same images in the same order."""
        other = copy.copy(self)
        other.crops_of = peer
        return other

    def epoch(self, epoch: int) -> "Reading":
        """The batches of one epoch.

        Args:
            epoch: Number of the epoch, from 0.

        Returns:
            An iterator of `(x, y)`: normalised crops, float32 `(b, height, width, 3)`, and labels,
            int32 `(b,)`, tensors on the device. It is to be closed.

        Raises:
            UserError: while it is read; names a photograph that cannot be read, and says why.
        """
        return Reading(self, epoch)

    def enter(self, epoch: int) -> tuple[WindowedEpoch, int]:
        """A place among those who read an epoch, to be left again.

        Args:
            epoch: Number of the epoch.

        Returns:
            The epoch, and the reader's number in it.
        """
        group = 0 if self.order == "windowed" else 1 + self.peer
        return self._hall.enter(self.windows, epoch, group, Seat(self.peer, self.crops_of))

    def leave(self, shared: WindowedEpoch, reader: int) -> None:
        """The end of what `enter` began."""
        self._hall.leave(shared, reader)

    def wait(self, seconds: float) -> None:
        """Count time in which a reader has waited."""
        self._hall.wait(seconds)

    def batches(self, shared: WindowedEpoch, reader: int) -> Generator[tuple[Any, Any], None, None]:
        """A reader's batches, see `epoch`."""
        return on_device(shared.batches(reader, self.batch_size), self._labels, self.augment)


class Reading(Iterator[tuple[Any, Any]]):
    """A peer's batches of one epoch; it is among the readers from the beginning until it is closed.

    Args:
        stream: The peer's.
        epoch: Number of the epoch.
    """

    def __init__(self, stream: PhotoStream, epoch: int) -> None:
        self._is_closed = True  # until it has a place
        self._stream, self._place = stream, stream.enter(epoch)
        self._batches = stream.batches(*self._place)
        self._is_closed = False

    def __next__(self) -> tuple[Any, Any]:
        began = time.perf_counter()
        try:
            return next(self._batches)
        except BaseException:
            self.close()
            raise
        finally:
            self._stream.wait(time.perf_counter() - began)

    def close(self) -> None:
        """Read no more."""
        if not self._is_closed:
            self._is_closed = True
            self._batches.close()
            self._stream.leave(*self._place)

    def __del__(self) -> None:
        self.close()


class OrderedPhotos:
    """Batches of photographs for evaluation: their middles, in the order in which they lie.

    Args:
        photos: The photographs, and the size of what is seen of them.
        labels: Class numbers, integers `(n,)`.
        batch_size: Images a step.
        crop: What is seen of a photograph; by default the middle after a resize by 8/7.
        augment: How pixels are normalised; None only scales them to 0..1.
        memory: Bytes: where all squares take no more, they are decoded once and kept.
        workers: Threads that decode; as many as there are cores by default.
        scaled: See `PhotoStream`.

    Raises:
        UserError: there are not as many labels, or `batch_size` is not in 1..n.
    """

    def __init__(
        self,
        photos: Photos,
        labels: np.ndarray,
        *,
        batch_size: int,
        crop: View | None = None,
        augment: Augment | None = None,
        memory: int = 512 * _MIB,
        workers: int | None = None,
        scaled: bool = False,
    ) -> None:
        check_labels(photos, labels)
        check_batch_size(batch_size, len(photos), "images")
        self.photos, self.batch_size, self.count = photos, batch_size, len(photos)
        self.crop: View = crop or CentreCrop(side_of(photos))
        check_sides(self.crop, photos)
        self.augment = Augment(0, False, *_statistics(augment))
        self._labels = np.asarray(labels, np.int32)
        self._workers, self._scaled = workers or usable_cores(), scaled
        self._may_keep, self._kept = photos.nbytes <= memory, list[_Squares]()

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        return -(-self.count // self.batch_size)

    def __len__(self) -> int:
        return self.steps

    def for_peer(self, peer: int) -> "OrderedPhotos":
        """The same batches for everybody."""
        return self

    def epoch(self, epoch: int) -> Generator[tuple[Any, Any], None, None]:
        """All batches; see `PhotoStream.epoch`."""
        found = iter(self._kept) if self._kept else self._read()
        yield from on_device(found, self._labels, self.augment)

    def _read(self) -> Iterator[_Squares]:
        """All squares, decoded; they are kept once all have been read, where they may be."""
        kept = []
        for squares in self._decoded():
            if self._may_keep:
                kept.append(squares)
            yield squares
        self._kept = kept

    def _decoded(self) -> Iterator[_Squares]:
        with ThreadPoolExecutor(self._workers, "kgraft-photos") as pool:
            starts = iter(range(0, self.count, self.batch_size))
            ahead = [self._begun(pool, start) for start in itertools.islice(starts, 2)]
            try:
                while ahead:
                    numbers, out, tasks = ahead.pop(0)
                    for task in tasks:
                        task.result()
                    ahead += [self._begun(pool, start) for start in itertools.islice(starts, 1)]
                    yield numbers, out
            finally:
                pool.shutdown(cancel_futures=True)

    def _begun(self, pool: ThreadPoolExecutor, start: int) -> tuple[np.ndarray, np.ndarray, Any]:
        numbers = np.arange(start, min(start + self.batch_size, self.count))
        out = np.empty((len(numbers), *self.photos.shape[1:]), np.uint8)
        pieces = np.array_split(numbers, max(1, len(numbers) // 8))
        return numbers, out, [pool.submit(self._make, piece, start, out) for piece in pieces]

    def _make(self, piece: np.ndarray, start: int, out: np.ndarray) -> None:
        for number in piece.tolist():
            photo = self.photos.opened(number)
            least = self.crop.least(photo.height, photo.width) if self._scaled else (0, 0)
            out[number - start] = self.crop(self.photos.pixels(number, photo, *least))


class _Hall:
    """Where the readers of an epoch meet: one pool of threads, and what each epoch shares."""

    def __init__(self, workers: int | None) -> None:
        self._workers = workers or usable_cores()
        self._lock = threading.RLock()  # `Reading.__del__` may come at any instant
        self._epochs: dict[tuple[Windows, int, int], WindowedEpoch] = {}
        self._pool: ThreadPoolExecutor | None = None
        self.waited = 0.0

    def wait(self, seconds: float) -> None:
        """Count time in which a reader has waited."""
        with self._lock:
            self.waited += seconds

    def enter(
        self, windows: Windows, epoch: int, group: int, seat: Seat
    ) -> tuple[WindowedEpoch, int]:
        """A reader's place in an epoch."""
        BACKEND.keep_memory()  # a decoded photograph is a large block
        with self._lock:
            self._pool = self._pool or ThreadPoolExecutor(self._workers, "kgraft-photos")
            key = (windows, epoch, group)
            if key not in self._epochs:
                shared = WindowedEpoch(windows, epoch=epoch, group=group, pool=self._pool)
                self._epochs[key] = shared
            return self._epochs[key], self._epochs[key].enter(seat)

    def leave(self, shared: WindowedEpoch, reader: int) -> None:
        """A reader is done; the last one ends the threads."""
        with self._lock:
            if not shared.leave(reader):
                return
            self._epochs = {key: own for key, own in self._epochs.items() if own is not shared}
            if not self._epochs and self._pool is not None:
                self._pool.shutdown(wait=False, cancel_futures=True)
                self._pool = None


def on_device(
    found: Iterator[_Squares], labels: np.ndarray, augment: Augment
) -> Generator[tuple[Any, Any], None, None]:
    """Batches of pixels as a model takes them, copied over ahead of their use.

    Args:
        found: Which images, and their pixels, uint8 `(b, height, width, channels)`.
        labels: Those of all images, int32 `(n,)`.
        augment: How pixels are normalised.

    Yields:
        `(x, y)`, see `PhotoStream.epoch`.
    """

    def uploaded(own: _Squares) -> tuple[Any, Any]:
        numbers, pixels = own
        y = BACKEND.upload(labels[numbers])
        return pixels if BACKEND.is_on_host(y) else BACKEND.upload(pixels), y

    for pixels, y in prefetched(found, uploaded, _READY):
        if isinstance(pixels, np.ndarray):  # a backend's operations would take the decoders' cores
            x = BACKEND.upload(augment.normalised(pixels))
        else:
            x = augment(pixels)
        yield x, ops.convert_to_tensor(y)


def check_labels(photos: Photos, labels: np.ndarray) -> None:
    """Refuse labels that are not one an image.

    Args:
        photos: The photographs.
        labels: Class numbers.

    Raises:
        UserError: they are of another number or type.
    """
    if labels.shape != (len(photos),) or labels.dtype.kind not in "iu":
        raise UserError(
            f"labels: {labels.dtype} of shape {labels.shape}; expected integers of shape "
            f"({len(photos)},), one a photograph."
        )


def _statistics(augment: Augment | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return ((0.0,), (1.0,)) if augment is None else (augment.mean, augment.std)
