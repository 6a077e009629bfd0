"""What models answer, and how often they are right."""

import keras
import numpy as np
from scipy.special import softmax

from kgraft.data import BatchStream, OrderedPhotos
from kgraft.engines.engine import stepper_for


def predict(model: keras.Model, stream: BatchStream | OrderedPhotos) -> np.ndarray:
    """A model's logits, float32 `(n, classes)`."""
    if not model.compiled:
        model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return stepper_for(model).predict(stream.epoch(0))


TOP = 5
"""How many guesses an image has beside its first, where five of the classes say something."""
_CLASSES = 20


def has_top(classes: int) -> bool:
    """Whether there are enough classes that five guesses are not easily right.

    Args:
        classes: How many there are.
    """
    return classes >= _CLASSES


def top_accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """Share of images whose label is among the five highest scores.

    Of equal scores those of lower classes count as higher, as in `accuracy`.

    Args:
        scores: `(n, classes)`.
        labels: Class numbers, `(n,)`.
    """
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    before = np.arange(scores.shape[1]) < labels[:, None]
    ahead = (scores > own) | ((scores == own) & before)
    return float(np.mean(ahead.sum(axis=1) < TOP))


def accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """Share of images whose highest score is their label's."""
    return float(np.mean(scores.argmax(axis=1) == labels))


def ensemble(logits: list[np.ndarray]) -> np.ndarray:
    """Mean of several models' softmax probabilities, `(n, classes)`."""
    return np.mean([softmax(part.astype(np.float64), axis=1) for part in logits], axis=0)
