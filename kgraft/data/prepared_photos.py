"""Prepared TFDS sets of photographs, which are decoded while a training goes on.

Importing this module imports tensorflow_datasets.
"""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from kgraft.data.dataset import Dataset, Split
from kgraft.data.decode import Photo, opened
from kgraft.data.order import with_validation
from kgraft.data.photo_sets import IMAGENET_MEAN, IMAGENET_STD
from kgraft.data.photos import Photos
from kgraft.data.prepared import facts_of, find_prepared, image_and_label
from kgraft.errors import UserError

_CHUNK = 1024  # records whose labels are read at a time


class Records:
    """The photographs of one split, as they are stored.

    Args:
        builder: What `find_photographs` gave.
        split: Which split.
        image: Which feature the photographs are.
    """

    def __init__(self, builder: Any, split: str, image: str) -> None:
        skipped = {image: tfds.decode.SkipDecoding()}
        self._source = builder.as_data_source(split=split, decoders=skipped)
        self._image, self._where = image, f"{builder.info.name}, {split}"
        self._lock = threading.Lock()  # one file, one place in it

    def __len__(self) -> int:
        return len(self._source)

    def name(self, number: int) -> str:
        """See `Source`."""
        return f"{self._where} photograph {number}"

    def opened(self, number: int) -> Photo:
        """See `Source`."""
        with self._lock:
            (record,) = self._source.__getitems__([number])
        return opened(record[self._image])

    def labels(self, label: str) -> np.ndarray:
        """The class of every photograph, int64 `(n,)`.

        Args:
            label: Which feature it is.
        """
        found: list[int] = []
        for start in range(0, len(self), _CHUNK):
            chosen = list(range(start, min(start + _CHUNK, len(self))))
            found += [int(record[label]) for record in self._source.__getitems__(chosen)]
        return np.array(found, np.int64)


def find_photographs(name: str, data_dir: Path) -> Any | None:
    """The TFDS builder of a prepared set whose images are encoded and of differing sizes, or None.

    Args:
        name: As TFDS writes it.
        data_dir: TFDS data directory.

    Raises:
        UserError: see `find_prepared`.
    """
    builder = find_prepared(name, data_dir)
    if builder is None or builder.info.file_format.value != "array_record":
        return None
    try:
        image, _ = image_and_label(builder, name)
    except UserError:
        return None
    feature = builder.info.features[image]
    is_photograph = isinstance(feature, tfds.features.Image) and None in feature.shape[:2]
    return builder if is_photograph else None


def load_records(
    builder: Any,
    *,
    name: str,
    size: int,
    limit_train: int | None = None,
    limit_test: int | None = None,
    validation: float | None = None,
    seed: int = 0,
) -> Dataset:
    """A prepared TFDS set of photographs as a data set.

    Args:
        builder: What `find_photographs` gave.
        name: What to call it.
        size: Side of the squares that are seen, pixels.
        limit_train: Only the first N training images, in the order they are stored in.
        limit_test: Only the first N test images.
        validation: See `kgraft.data.load`.
        seed: Which images are taken for validation.

    Raises:
        UserError: the set has no train and test split.
    """
    image, label = image_and_label(builder, name)
    facts = facts_of(builder, name)

    def split(part: str, limit: int | None) -> Split:
        records = Records(builder, part, image)
        return Split(Photos.of(records, size), records.labels(label)).first(limit)

    whole = Dataset(
        name=name,
        train=split("train", limit_train),
        validation=None,
        test=split(facts.held_out, limit_test),
        classes=builder.info.features[label].num_classes,
        class_names=tuple(builder.info.features[label].names),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        source=facts.source,
        licence=facts.licence,
    )
    return with_validation(whole, validation, seed=seed)
