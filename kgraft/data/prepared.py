"""Prepared TFDS classification sets, read into memory without TensorFlow.

Importing this module imports tensorflow_datasets.
"""

import importlib.util
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf.json_format import ParseError

from kgraft.data.dataset import Dataset, Split
from kgraft.errors import UserError

if not hasattr(tfds, "core"):  # it logs what its import has raised, and goes on
    raise UserError(
        "tensorflow-datasets cannot be imported here: its log above says what it misses, "
        "`pip check` which package that is in."
    )

_CHUNK = 4096  # records decoded at a time
_WITHOUT_TENSORFLOW = "array_record"  # the file format that needs no TensorFlow


def find_prepared(name: str, data_dir: Path) -> Any | None:
    """The TFDS builder of a set that is prepared in `data_dir`, or None.

    Args:
        name: As TFDS writes it: `mnist`, `mnist:3.0.1`, `imagenet_resized/32x32`.
        data_dir: TFDS data directory.

    Raises:
        UserError: the set is there, but the files that describe it are damaged.
    """
    try:
        return tfds.core.read_only_builder.builder_from_files(name, data_dir=str(data_dir))
    except tfds.core.DatasetNotFoundError:
        return None
    except (ValueError, OSError, ParseError) as problem:
        # a ValueError is also what TFDS raises for a malformed name
        if name in list_prepared(data_dir):
            raise UserError(
                f"data set {name}: what describes it in {data_dir / name} is damaged; remove that "
                "folder and prepare it again."
            ) from problem
        return None


def list_prepared(data_dir: Path) -> tuple[str, ...]:
    """Names of the sets that are prepared in `data_dir`, as `name` or `name/config`."""
    # name/version/ or name/config/version/; never the whole tree, which may hold raw downloads
    found = [*data_dir.glob("*/*/features.json"), *data_dir.glob("*/*/*/features.json")]
    names = {path.relative_to(data_dir).parents[1].as_posix() for path in found}
    return tuple(sorted(name for name in names if not name.startswith(".")))


def describe_prepared(name: str, data_dir: Path) -> dict[str, Any] | None:
    """Facts for a list of sets; None for a set that is no image classification, or damaged.

    Args:
        name: As TFDS writes it.
        data_dir: TFDS data directory.
    """
    try:
        builder = find_prepared(name, data_dir)
        if builder is None:
            return None
        image, label = image_and_label(builder, name)
        held_out = _held_out(builder, name)
    except UserError:
        return None
    splits, features = builder.info.splits, builder.info.features
    return {
        "name": name,
        "train": splits["train"].num_examples,
        "test": splits[held_out].num_examples,
        "shape": features[image].shape,
        "classes": features[label].num_classes,
        "prepared": Path(builder.data_path),
        "source": _source(builder),
        "licence": _licence(builder),
    }


def read_prepared(
    builder: Any,
    *,
    name: str,
    label: str | None = None,
    limit_train: int | None = None,
    limit_test: int | None = None,
) -> Dataset:
    """Read a prepared classification set.

    Args:
        builder: What `find_prepared` gave.
        name: Name for messages and for the set.
        label: Which of the set's features are the classes; the one that there is, or that the set
            says, by default.
        limit_train: Read the first N training images only, in the order they are stored in.
        limit_test: Read the first N test images only.

    Returns:
        The set, without statistics and without a validation part. Its test part is the split
        `test` or, where there is none, `validation`.

    Raises:
        UserError: the set has no single uint8 image and class label, no train and test split,
            images of different sizes, or a format that cannot be read here.
    """
    _check_format(builder, name)
    image, only = image_and_label(builder, name)
    label = label or only
    held_out = _held_out(builder, name)
    classes = builder.info.features[label].num_classes
    train = _read(builder, name, "train", (image, label), classes, limit_train)
    test = _read(builder, name, held_out, (image, label), classes, limit_test)
    if train.images.shape[1:] != test.images.shape[1:]:
        raise UserError(_sizes(name, {train.images.shape[1:], test.images.shape[1:]}))
    return Dataset(
        name=name,
        train=train,
        validation=None,
        test=test,
        classes=classes,
        class_names=tuple(builder.info.features[label].names),
        mean=(),
        std=(),
        source=_source(builder),
        licence=_licence(builder),
    )


@dataclass(frozen=True)
class Facts:
    """What a prepared set says of itself.

    Attributes:
        held_out: The split that is tested on: `test` or, where there is none, `validation`.
        source: Who made it.
        licence: Terms of use.
    """

    held_out: str
    source: str
    licence: str


def facts_of(builder: Any, name: str) -> Facts:
    """What a prepared set says of itself.

    Args:
        builder: What `find_prepared` gave.
        name: Name for messages.

    Raises:
        UserError: it has no train and test split.
    """
    return Facts(_held_out(builder, name), _source(builder), _licence(builder))


def _source(builder: Any) -> str:
    return builder.info.homepage or "a prepared TFDS set"


def _licence(builder: Any) -> str:
    return builder.info.redistribution_info.license or "not stated"


def _held_out(builder: Any, name: str) -> str:
    splits = builder.info.splits
    held_out = "test" if "test" in splits else "validation"
    if "train" not in splits or held_out not in splits:
        raise UserError(
            f"data set {name}: has the splits {', '.join(splits)}; expected train and test."
        )
    return held_out


def image_and_label(builder: Any, name: str) -> tuple[str, str]:
    """Names of the image and the label; a set's `supervised_keys` decide where it has several.

    Args:
        builder: What `find_prepared` gave.
        name: Name for messages.

    Raises:
        UserError: it has no single uint8 image and class label.
    """
    features = builder.info.features
    images = [
        key
        for key, feature in features.items()
        if isinstance(feature, tfds.features.Tensor | tfds.features.Image)
        and np.dtype(feature.np_dtype) == np.uint8
        and len(feature.shape) == 3
    ]
    labels = [k for k, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
    match builder.info.supervised_keys:
        case (image, label) if image in images and label in labels:
            return image, label
    if len(images) != 1 or len(labels) != 1:
        raise UserError(
            f"data set {name}: has the features {', '.join(sorted(features))}; expected one uint8 "
            "image of rank 3 and one class label."
        )
    return images[0], labels[0]


def _read(
    builder: Any, name: str, split: str, keys: tuple[str, str], classes: int, limit: int | None
) -> Split:
    image, label = keys
    images: list[np.ndarray] = []
    labels: list[int] = []
    for chunk in _chunks(builder, name, split, limit):
        shapes = {record[image].shape for record in chunk} | {part.shape[1:] for part in images[:1]}
        if len(shapes) > 1:
            raise UserError(_sizes(name, shapes))
        images.append(np.stack([record[image] for record in chunk]))
        labels.extend(int(record[label]) for record in chunk)
    if not images:
        raise UserError(f"data set {name}: its split {split} is empty.")
    of_images = np.array(labels, np.int64)
    wrong = (of_images < 0) | (of_images >= classes)
    if wrong.any():
        at = int(wrong.argmax())
        raise UserError(
            f"data set {name}: label of {split} image {at} is {labels[at]}; expected "
            f"0..{classes - 1}."
        )
    return Split(np.concatenate(images), of_images)


def _chunks(
    builder: Any, name: str, split: str, limit: int | None
) -> Iterator[list[dict[str, Any]]]:
    """The first `limit` records of a split, in the order they are stored in."""
    available = builder.info.splits[split].num_examples
    count = available if limit is None else min(limit, available)
    try:
        if builder.info.file_format.value == _WITHOUT_TENSORFLOW:
            source = builder.as_data_source(split=split)
            for start in range(0, count, _CHUNK):
                yield source.__getitems__(list(range(start, min(start + _CHUNK, count))))
        else:
            in_order = tfds.ReadConfig(try_autocache=False, interleave_cycle_length=1)
            dataset = builder.as_dataset(split=split, shuffle_files=False, read_config=in_order)
            records = iter(tfds.as_numpy(dataset.take(count)))
            while chunk := list(itertools.islice(records, _CHUNK)):
                yield chunk
    except ImportError:
        raise UserError(
            f"data set {name}: its images are stored as PNG or JPEG; pip install pillow to read "
            "them."
        ) from None
    except (OSError, RuntimeError, IndexError) as problem:
        raise UserError(
            f"data set {name}: split {split} in {builder.data_path} is damaged; remove that folder "
            f"and prepare it again ({' '.join(str(problem).split())[:80]})."
        ) from problem


def _check_format(builder: Any, name: str) -> None:
    file_format = builder.info.file_format.value
    if file_format != _WITHOUT_TENSORFLOW and importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            f"data set {name}: is prepared as {file_format}, which only TensorFlow reads; prepare "
            f"it with file_format={_WITHOUT_TENSORFLOW!r}, or pip install 'kgraft[tensorflow]'."
        )


def _sizes(name: str, shapes: set[tuple[int, ...]]) -> str:
    first, second, *_ = sorted("x".join(map(str, shape)) for shape in shapes)
    return (
        f"data set {name}: has images of {first} and of {second}; expected one size, or an "
        "array_record set of encoded images, which kgraft fit reads as photographs."
    )
