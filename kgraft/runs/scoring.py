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


def accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """Share of images whose highest score is their label's."""
    return float(np.mean(scores.argmax(axis=1) == labels))


def ensemble(logits: list[np.ndarray]) -> np.ndarray:
    """Mean of several models' softmax probabilities, `(n, classes)`."""
    return np.mean([softmax(part.astype(np.float64), axis=1) for part in logits], axis=0)
