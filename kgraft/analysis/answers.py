"""What networks answer, beside each other: how they differ, and how sure they are."""

from collections.abc import Sequence

import numpy as np

from kgraft.errors import UserError


def disagreement(answers: Sequence[np.ndarray]) -> np.ndarray:
    """Share of images on which two networks choose different classes.

    Args:
        answers: of each network logits or probabilities, `(n, classes)`.

    Returns:
        0..1, float64 `(networks, networks)`, its diagonal 0.

    Example:
        >>> first, second = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[1.0, 0.0], [1.0, 0.0]])
        >>> disagreement([first, second])
        array([[0. , 0.5],
               [0.5, 0. ]])
    """
    chosen = np.stack([own.argmax(axis=1) for own in answers])
    return np.array([[float((own != other).mean()) for other in chosen] for own in chosen])


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """How far a network's confidence is from its accuracy (expected calibration error).

    sum over bins of confidence of (images in it / n) |accuracy in it - mean confidence in it|; bins
    are of equal width, open below and closed above.

    Args:
        probabilities: `(n, classes)`.
        labels: class numbers, `(n,)`.
        bins: how many.

    Returns:
        0..1.

    Raises:
        UserError: the rows are no probabilities.

    Source: Guo et al., "On calibration of modern neural networks", ICML 2017, eq. 3.

    Example:
        >>> round(calibration_error(np.array([[0.9, 0.1], [0.6, 0.4]]), np.array([0, 1])), 3)
        0.35
    """
    if not np.allclose(probabilities.sum(axis=1), 1.0, atol=1e-3) or (probabilities < 0).any():
        raise UserError("probabilities: rows that do not sum to 1; expected softmax of the logits.")
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(of, right - confidence, minlength=bins)  # n times the gap of each bin
    return float(np.abs(gaps).sum() / len(labels))


def class_accuracies(answers: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Share of each class's images that are right.

    Args:
        answers: logits or probabilities, `(n, classes)`.
        labels: class numbers, `(n,)`.

    Returns:
        0..1, float64 `(classes,)`; nan for a class without images.
    """
    count = answers.shape[1]
    right = (answers.argmax(axis=1) == labels).astype(np.float64)
    images = np.bincount(labels, minlength=count).astype(np.float64)
    found = np.full(count, np.nan)
    np.divide(np.bincount(labels, right, minlength=count), images, out=found, where=images > 0)
    return found
