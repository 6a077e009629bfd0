"""What networks answer, beside each other: how they differ, and how sure they are.

Answers are arrays or lists, labels `(n,)` or `(n, 1)`. What a network has answered with nan, one
that diverged, is not known: neither is what follows from it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from kgraft.errors import UserError


def disagreement(answers: Sequence[Any]) -> np.ndarray:
    """Share of images on which two networks choose different classes.

    Args:
        answers: of each network logits or probabilities, `(n, classes)`.

    Returns:
        0..1, float64 `(networks, networks)`, its diagonal 0; nan beside a network that answers nan.

    Raises:
        UserError: there is no network or image, or the networks answer other numbers of images.

    Example:
        >>> first, second = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[1.0, 0.0], [1.0, 0.0]])
        >>> disagreement([first, second])
        array([[0. , 0.5],
               [0.5, 0. ]])
    """
    given = [_answers(own, f"answers of network {k}") for k, own in enumerate(answers, start=1)]
    if not given:
        raise UserError("answers: of no network.")
    for k, own in enumerate(given, start=1):
        if own.shape != given[0].shape:
            raise UserError(
                f"answers of network {k} are of shape {own.shape}, those of network 1 of "
                f"{given[0].shape}: expected the same images and classes."
            )
    chosen = np.stack([own.argmax(axis=1) for own in given])
    found = np.array([[float((own != other).mean()) for other in chosen] for own in chosen])
    unknown = [bool(np.isnan(own).any()) for own in given]
    found[unknown], found[:, unknown] = np.nan, np.nan
    return found


def calibration_error(probabilities: Any, labels: Any, bins: int = 15) -> float:
    """How far a network's confidence is from its accuracy (expected calibration error).

    sum over bins of confidence of (images in it / n) |accuracy in it - mean confidence in it|; bins
    are of equal width, open below and closed above.

    Args:
        probabilities: `(n, classes)`.
        labels: class numbers, `(n,)`.
        bins: how many.

    Returns:
        0..1; nan where a probability is nan.

    Raises:
        UserError: the rows are no probabilities, there is none, a label is none of the classes, or
            there is no bin.

    Source: Guo et al., "On calibration of modern neural networks", ICML 2017, eq. 3.

    Example:
        >>> round(calibration_error(np.array([[0.9, 0.1], [0.6, 0.4]]), np.array([0, 1])), 3)
        0.35
    """
    probabilities = _answers(probabilities, "probabilities")
    labels = _labels(labels, *probabilities.shape)
    if bins < 1:
        raise UserError(f"bins {bins}: expected 1 or more.")
    if np.isnan(probabilities).any():
        return float("nan")
    if not np.allclose(probabilities.sum(axis=1), 1.0, atol=1e-3) or (probabilities < 0).any():
        raise UserError("probabilities: rows that do not sum to 1; expected softmax of the logits.")
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(of, right - confidence, minlength=bins)  # n times the gap of each bin
    return float(np.abs(gaps).sum() / len(labels))


def class_accuracies(answers: Any, labels: Any) -> np.ndarray:
    """Share of each class's images that are right.

    Args:
        answers: logits or probabilities, `(n, classes)`.
        labels: class numbers, `(n,)`.

    Returns:
        0..1, float64 `(classes,)`; nan for a class without images, or one of whose is answered nan.

    Raises:
        UserError: there is no image, or a label is none of the classes.
    """
    answers = _answers(answers, "answers")
    labels = _labels(labels, *answers.shape)
    count = answers.shape[1]
    right = (answers.argmax(axis=1) == labels).astype(np.float64)
    right[np.isnan(answers).any(axis=1)] = np.nan
    images = np.bincount(labels, minlength=count).astype(np.float64)
    found = np.full(count, np.nan)
    np.divide(np.bincount(labels, right, minlength=count), images, out=found, where=images > 0)
    return found


def _answers(given: Any, name: str) -> np.ndarray:
    """A row an image, a column a class."""
    try:
        found = np.asarray(given, np.float64)
    except (TypeError, ValueError):
        raise UserError(f"{name}: expected numbers, a row an image, a column a class.") from None
    if found.ndim != 2 or not found.size:
        raise UserError(f"{name} of shape {found.shape}: expected (images, classes), one or more.")
    return found


def _labels(given: Any, images: int, classes: int) -> np.ndarray:
    try:
        found = np.asarray(given, np.float64)
    except (TypeError, ValueError):
        raise UserError(f"labels: expected class numbers, 0..{classes - 1}.") from None
    if found.ndim == 2 and found.shape[1] == classes > 1:
        raise UserError(
            f"labels of shape {found.shape}: expected class numbers; argmax gives them."
        )
    if found.shape not in ((images,), (images, 1)):
        raise UserError(f"labels of shape {found.shape}: expected ({images},), one an image.")
    if wrong := found[~np.isin(found, np.arange(classes))].tolist():
        raise UserError(f"label {wrong[0]:g}: expected a class number, 0..{classes - 1}.")
    return found.ravel().astype(np.int64)
