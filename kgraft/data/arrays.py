"""Four arrays, `x_train`, `y_train`, `x_test` and `y_test`, as a classification set."""

from collections.abc import Mapping

import numpy as np

from kgraft.data.dataset import Dataset, Split
from kgraft.errors import UserError

KEYS = ("x_train", "y_train", "x_test", "y_test")
MOST_CLASSES = 65536


def classification_set(
    arrays: Mapping[str, np.ndarray], where: str, *, name: str, source: str, licence: str
) -> Dataset:
    """A set of four arrays, see `KEYS`.

    Args:
        arrays: Images, uint8 `(n, height, width, channels)`, and labels, integers `(n,)`, counted
            from 0. The classes are 0 to the largest of `y_train`.
        where: Where the arrays come from, for errors.
        name: Name of the set.
        source: Where it comes from.
        licence: Its terms of use.

    Returns:
        The whole set, without statistics and without a validation part.

    Raises:
        UserError: an array has the wrong rank, dtype, length or values.
    """
    train, test = checked_split(arrays, where, "train"), checked_split(arrays, where, "test")
    check_size(test, "x_test", train, where)
    classes = int(train.labels.max()) + 1
    check_labels(test, "y_test", classes, where)
    names = tuple(map(str, range(classes)))
    return Dataset(name, train, None, test, classes, names, (), (), source, licence)


def checked_split(arrays: Mapping[str, np.ndarray], where: str, part: str) -> Split:
    """The images and labels of one part.

    Args:
        arrays: `x_PART` and `y_PART`.
        where: Where they come from, for errors.
        part: `"train"`, `"validation"` or `"test"`.

    Raises:
        UserError: an array has the wrong rank, dtype, length or values.
    """
    images, labels = arrays[f"x_{part}"], arrays[f"y_{part}"]
    if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape:
        raise UserError(_mismatch(where, f"x_{part}", images))
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise UserError(_mismatch(where, f"y_{part}", labels))
    if len(images) != len(labels):
        raise UserError(
            f"{where}: x_{part} has {len(images)} images, y_{part} {len(labels)} labels; "
            "expected as many."
        )
    wrong = (labels < 0) | (labels >= MOST_CLASSES)
    if wrong.any():
        at = int(wrong.argmax())
        raise UserError(
            f"{where}: y_{part}[{at}] is {labels[at]}; expected labels counted from 0, "
            f"at most {MOST_CLASSES - 1}."
        )
    return Split(images, labels.astype(np.int64))


def check_size(own: Split, key: str, train: Split, where: str) -> None:
    """Refuse images of another size than those of the training part."""
    if own.images.shape[1:] != train.images.shape[1:]:
        raise UserError(
            f"{where}: {key} holds images of {_size(own.images)}, x_train of "
            f"{_size(train.images)}; expected the same."
        )


def check_labels(own: Split, key: str, classes: int, where: str) -> None:
    """Refuse labels of classes that the set has not."""
    if own.labels.max() >= classes:
        raise UserError(
            f"{where}: {key}[{own.labels.argmax()}] is {own.labels.max()}; expected labels in "
            f"0..{classes - 1}, as in y_train."
        )


def expected(key: str) -> str:
    """What the array of a key has to be, in words."""
    if key.startswith("x"):
        return "uint8 of shape (n, height, width, channels)"
    return "integers of shape (n,)"


def _mismatch(where: str, key: str, array: np.ndarray) -> str:
    return (
        f"{where}: {key} is {array.dtype} of shape {array.shape}; expected {expected(key)}, "
        "not empty."
    )


def _size(images: np.ndarray) -> str:
    return "x".join(map(str, images.shape[1:]))
