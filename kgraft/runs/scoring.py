"""What models answer, and how often they are right: that they classify, or that they find."""

from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from scipy.special import softmax

from kgraft.data import BatchStream, Dataset, OpenSet, OrderedPhotos
from kgraft.engines.engine import stepper_for
from kgraft.retrieval import Reranked, RetrievalResult, embedder, ranked
from kgraft.retrieval.distances import Distances, FeatureDistances, checked_features
from kgraft.runs.identities import Retrieval


def predict(model: keras.Model, stream: BatchStream | OrderedPhotos) -> np.ndarray:
    """A model's logits, float32 `(n, classes)`."""
    return _predicted(model, stream.epoch(0))


def _predicted(model: keras.Model, batches: Iterator[Any]) -> np.ndarray:
    if not model.compiled:
        model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    found = stepper_for(model).predict(batches)
    return np.asarray(found, np.float32) if found.dtype.name == "bfloat16" else found


def answers(
    model: keras.Model,
    stream: BatchStream | OrderedPhotos,
    dataset: Dataset,
    wanted: Retrieval,
) -> np.ndarray:
    """What a model says of a set's test images.

    Args:
        model: a classifier of its training images.
        stream: the test images.
        dataset: the set.
        wanted: how features are made of images that are searched.

    Returns:
        Logits, float32 `(n, classes)`; features `(n, d)` where the images are searched.
    """
    if dataset.open_set is None:
        return predict(model, stream)
    sees = embedder(model)
    if not wanted.flip:
        return predict(sees, stream)
    found = _predicted(sees, _with_mirror_images(stream))
    size, whole = stream.batch_size, len(found) // 2
    ends = [2 * min(start + size, whole) for start in range(0, whole, size)]
    return np.concatenate([sum(np.split(part, 2)) for part in np.split(found, ends[:-1])])


def _with_mirror_images(stream: BatchStream | OrderedPhotos) -> Iterator[Any]:
    """Every batch, and after it its mirror images: photographs may have to be decoded for each."""
    for x, y in stream.epoch(0):
        yield x, y
        yield ops.flip(x, 2), y


def figures(given: Sequence[np.ndarray], dataset: Dataset, wanted: Retrieval) -> dict[str, float]:
    """How good answers to a set's test images are, all in 0..1.

    Args:
        given: what each of some models has said, see `answers`; several answer together: by the
            mean of their probabilities, or by all their features, each model's of length 1 unless
            distances are Euclidean.
        dataset: the set.
        wanted: how images are compared that are searched.

    Returns:
        `"accuracy"`, and `"top5"` where there are enough classes. Of images that are searched
        `"accuracy"` is rank-1, beside `"mAP"`, `"rank5"`, `"rank10"`, `"mAP_official"`, `"mINP"`.
    """
    if dataset.open_set is None:
        labels, scores = dataset.test.labels, ensemble(list(given))
        five = {f"top{TOP}": top_accuracy(scores, labels)} if has_top(dataset.classes) else {}
        return {"accuracy": accuracy(scores, labels), **five}
    compared = distances(given, dataset.open_set, wanted)
    found = searched(compared, dataset.open_set).figures()
    return {"accuracy": found.pop("rank1"), **found}


def searched(compared: Distances, open_set: OpenSet) -> RetrievalResult:
    """What is found of a set's queries in its gallery.

    Args:
        compared: how far these are from each other, see `distances`.
        open_set: who is on the test images.
    """
    count, people, cameras = open_set.queries, open_set.identities, open_set.cameras
    return ranked(
        compared,
        people[:count],
        people[count:],
        None if cameras is None else cameras[:count],
        None if cameras is None else cameras[count:],
    )


def distances(features: Sequence[np.ndarray], open_set: OpenSet, wanted: Retrieval) -> Distances:
    """How far a set's queries are from its gallery.

    Args:
        features: each model's of all test images, `(n, d)`.
        open_set: which of them are queries.
        wanted: how they are compared.
    """
    is_measured = wanted.metric == "euclidean" and not wanted.rerank
    together = (
        features[0]
        if len(features) == 1
        else np.concatenate(
            [own if is_measured else _of_length_one(own) for own in features],
            axis=1,
        )
    )
    queries, gallery = together[: open_set.queries], together[open_set.queries :]
    if wanted.rerank:
        return Reranked(queries, gallery)
    return FeatureDistances(
        checked_features(queries, "queries"), checked_features(gallery, "gallery"), wanted.metric
    )


def _of_length_one(features: np.ndarray) -> np.ndarray:
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


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
