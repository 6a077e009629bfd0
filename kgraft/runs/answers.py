"""How a run's peers answer on its test images: what `kgraft analyze --answers` tells."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax

from kgraft.analysis.activations import dead_share, has_rectifiers, rectified
from kgraft.analysis.answers import calibration_error, class_accuracies, disagreement
from kgraft.data import Dataset
from kgraft.errors import UserError
from kgraft.runs.assembly import in_order
from kgraft.runs.evaluation import answers_of_run, peers_of_run
from kgraft.runs.finished import read_run
from kgraft.runs.scoring import accuracy, ensemble


def answers_told(
    run: Path, baseline: Path | None = None, *, data_dir: str | None = None, trusted: bool = False
) -> dict[str, Any]:
    """How a run's peers answer on its test images, beside each other and beside a baseline's.

    Args:
        run: the directory of a finished run.
        baseline: another one's, of the same images; its peers answer together.
        data_dir: where prepared data sets are, if not where the runs found them.
        trusted: whether functions that a run names may be called.

    Returns:
        `"networks"`: of each peer, and of all together, its accuracy and calibration error, and of
        each peer the share of its rectifiers' channels that no test image makes speak (None without
        rectifiers);
        `"baseline"`, of all of its peers together accuracy, calibration error and their number, or
        None; `"disagreement"`, the mean over every two peers, None for one; `"classes"`: of each
        class its name, the accuracy of all peers together, and by how much that is above the
        baseline's, of all of its peers together. What follows from logits that are nan is None.

    Raises:
        UserError: see `answers_of_run`; the images are searched, and not classified, or the
            baseline's are others.
    """
    dataset, given = _classified(run, data_dir, trusted)
    labels = dataset.test.labels
    shares = {f"peer {k}": softmax(own.astype(np.float64), axis=1) for k, own in given.items()}
    if len(shares) > 1:
        shares["ensemble"] = np.mean(list(shares.values()), axis=0)
    together = class_accuracies(list(shares.values())[-1], labels)
    others, beside = None, None
    if baseline is not None:
        other, theirs = _classified(baseline, data_dir, trusted)
        if not np.array_equal(other.test.labels, labels):
            raise UserError(f"{baseline} has other test images than {run}: nothing to compare.")
        scores = ensemble(list(theirs.values()))
        others = class_accuracies(scores, labels)
        beside = {**_scored(scores, labels), "peers": len(theirs)}
    dead = _dead_shares(run, dataset, list(given), trusted)
    pairs = disagreement(list(given.values()))[np.triu_indices(len(given), 1)]
    pairs = pairs[np.isfinite(pairs)]
    return {
        "networks": [
            {"network": name, **_scored(own, labels), "dead_activations": dead.get(name)}
            for name, own in shares.items()
        ],
        "baseline": beside,
        "disagreement": float(pairs.mean()) if len(pairs) else None,
        "classes": [
            {
                "class": name,
                "accuracy": _number(together[k]),
                "above_baseline": None if others is None else _number(together[k] - others[k]),
            }
            for k, name in enumerate(dataset.class_names)
        ],
    }


def _scored(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    return {
        "accuracy": None if np.isnan(probabilities).any() else accuracy(probabilities, labels),
        "calibration_error": _number(calibration_error(probabilities, labels)),
    }


def _dead_shares(
    run: Path, dataset: Dataset, numbers: Sequence[int], trusted: bool
) -> dict[str, float | None]:
    """By peer, the share of channels that no test image makes speak; of those with rectifiers."""
    config, summary = read_run(run)
    test, found = in_order(config, dataset, dataset.test), {}
    peers = peers_of_run(run, config, summary, dataset, numbers, trusted=trusted)
    for number, peer in zip(numbers, peers, strict=True):
        if has_rectifiers(peer):
            found[f"peer {number}"] = _number(dead_share(rectified(peer, test.epoch(0))))
    return found


def _classified(
    run: Path, data_dir: str | None, trusted: bool
) -> tuple[Dataset, dict[int, np.ndarray]]:
    dataset, _, given = answers_of_run(run, data_dir=data_dir, trusted=trusted)
    if dataset.open_set is not None:
        raise UserError(f"{run}: its images are searched, and not classified.")
    return dataset, given


def _number(value: float) -> float | None:
    """JSON has no nan."""
    return None if np.isnan(value) else value
