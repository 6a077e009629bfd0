"""Networks of runs and of files, looked into: what `kgraft analyze` tells."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import keras
import numpy as np
from scipy.special import softmax

from kgraft.analysis.activations import dead_share, has_rectifiers, rectified
from kgraft.analysis.answers import calibration_error, class_accuracies, disagreement
from kgraft.analysis.filters import (
    THRESHOLDS,
    LayerFilters,
    check_alike,
    invalid_ratio,
    layer_filters,
    overlap,
    split_norms,
)
from kgraft.data import Dataset
from kgraft.errors import UserError
from kgraft.files import is_directory
from kgraft.runs.assembly import in_order
from kgraft.runs.directory import best_peer_file, peer_file, read_run
from kgraft.runs.evaluation import answers_of_run, peers_of_run
from kgraft.runs.keras_file import read_model
from kgraft.runs.scoring import ensemble

Networks = dict[str, tuple[LayerFilters, ...]]


def filters_of(places: Sequence[str]) -> Networks:
    """The filters of networks.

    Args:
        places: `.keras` files, and directories of finished runs, all peers of which count.

    Returns:
        By what each is called, in their order: the file's name, or the run's and the peer's number;
        as given where names would be the same.

    Raises:
        UserError: there is no such file or run, it is named twice, or has no filters.
    """
    if twice := [place for place in places if places.count(place) > 1]:
        raise UserError(f"{twice[0]}: named twice.")
    short = [Path(place).resolve().name for place in places]
    found: Networks = {}
    for place, name in zip(places, short, strict=True):
        called = place if short.count(name) > 1 else name
        for suffix, model in _models(Path(place)):
            found[called + suffix] = layer_filters(model)
    return found


def baseline_of(place: str) -> tuple[LayerFilters, ...]:
    """The filters of one network.

    Args:
        place: a `.keras` file, or the directory of a finished run, the best peer of which counts.

    Raises:
        UserError: see `filters_of`.
    """
    path = best_peer_file(Path(place)) if is_directory(Path(place)) else Path(place)
    return layer_filters(read_model(path, place))


def told(
    networks: Networks,
    baseline: tuple[LayerFilters, ...] | None = None,
    *,
    thresholds: Sequence[float] = THRESHOLDS,
    threshold: float = 0.1,
) -> dict[str, Any]:
    """What there is to say of networks' filters, JSON-able.

    Args:
        networks: what `filters_of` gave.
        baseline: whose invalid filters split those of the others, see `split_norms`.
        thresholds: at which invalid filters are counted.
        threshold: at which they are split and compared.

    Returns:
        `"networks"`: of each its name, numbers of filters, invalid shares by threshold, plain and
        folded, entropy of its layers (sum and each), mean norms of its own split and of the
        baseline's; and `"overlap"` of every two that have the same layers, by their names.

    Raises:
        UserError: the baseline is of another architecture.
    """
    rows = []
    for name, layers in networks.items():
        if baseline is not None:
            check_alike(layers, baseline)
        folded = [replace(own, norms=own.folded) for own in layers if own.folded is not None]
        rows.append(
            {
                "network": name,
                "filters": sum(len(own.norms) for own in layers),
                "invalid": _by_threshold(layers, thresholds),
                "invalid_folded": _by_threshold(
                    folded,
                    thresholds,
                )
                if folded
                else None,
                "entropy": sum(own.entropy for own in layers),
                "norms": _split(layers, layers, threshold),
                "norms_by_baseline": baseline and _split(layers, baseline, threshold),
                "layers": [
                    {
                        "layer": own.name,
                        "filters": len(own.norms),
                        "invalid": int(own.invalid(threshold).sum()),
                        "mean_norm": float(own.norms.mean()),
                        "entropy": own.entropy,
                    }
                    for own in layers
                ],
            }
        )
    pairs = []
    for (first, own), (second, other) in combinations(networks.items(), 2):
        if [len(a.norms) for a in own] == [len(b.norms) for b in other]:
            pairs.append(
                {"networks": [first, second], "overlap": _number(overlap(own, other, threshold))}
            )
    return {"threshold": threshold, "networks": rows, "overlap": pairs}


def answers_told(
    run: Path, baseline: Path | None = None, *, data_dir: str | None = None, trusted: bool = False
) -> dict[str, Any]:
    """How a run's peers answer on its test images, beside each other and beside a baseline's best.

    Args:
        run: the directory of a finished run.
        baseline: another one's, of the same images; its peers answer together.
        data_dir: where prepared data sets are, if not where the runs found them.
        trusted: whether functions that a run names may be called.

    Returns:
        `"networks"`: of each peer, and of all together, its accuracy and calibration error, and of
        each peer the share of its rectifiers' channels that no test image makes speak (None without
        rectifiers);
        `"disagreement"`, the mean over every two peers, None for one; `"classes"`: of each class
        its name, the accuracy of all peers together, and by how much that is above the baseline's.

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
    others = None
    if baseline is not None:
        other, theirs = _classified(baseline, data_dir, trusted)
        if not np.array_equal(other.test.labels, labels):
            raise UserError(f"{baseline} has other test images than {run}: nothing to compare.")
        others = class_accuracies(ensemble(list(theirs.values())), labels)
    dead = _dead_shares(run, dataset, list(given), trusted)
    pairs = disagreement(list(given.values()))[np.triu_indices(len(given), 1)]
    return {
        "networks": [
            {
                "network": name,
                "accuracy": float((own.argmax(axis=1) == labels).mean()),
                "calibration_error": calibration_error(own, labels),
                "dead_activations": dead.get(name),
            }
            for name, own in shares.items()
        ],
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


def _dead_shares(
    run: Path, dataset: Dataset, numbers: Sequence[int], trusted: bool
) -> dict[str, float]:
    """By peer, the share of channels that no test image makes speak; of those with rectifiers."""
    config, summary = read_run(run)
    test, found = in_order(config, dataset, dataset.test), {}
    peers = peers_of_run(run, config, summary, dataset, numbers, trusted=trusted)
    for number, peer in zip(numbers, peers, strict=True):
        if has_rectifiers(peer):
            found[f"peer {number}"] = dead_share(rectified(peer, test.epoch(0)))
    return found


def _classified(
    run: Path, data_dir: str | None, trusted: bool
) -> tuple[Dataset, dict[int, np.ndarray]]:
    dataset, _, given = answers_of_run(run, data_dir=data_dir, trusted=trusted)
    if dataset.open_set is not None:
        raise UserError(f"{run}: its images are searched, and not classified.")
    return dataset, given


def every_filter(networks: Networks) -> Iterator[tuple[str, str, int, float, float | None]]:
    """Every filter: network, layer, its number, its l1 norm, and the folded one.

    Args:
        networks: what `filters_of` gave.
    """
    for name, layers in networks.items():
        for layer in layers:
            folded = [None] * len(layer.norms) if layer.folded is None else layer.folded.tolist()
            for number, (norm, other) in enumerate(zip(layer.norms.tolist(), folded, strict=True)):
                yield name, layer.name, number, norm, other


def _models(path: Path) -> Iterator[tuple[str, keras.Model]]:
    if not is_directory(path):
        yield "", read_model(path, str(path))
        return
    _, summary = read_run(path)
    for k in range(1, len(summary["peers"]) + 1):
        file = peer_file(path, summary, k)
        yield f", peer {k}", read_model(file, str(file))


def _by_threshold(layers: Sequence[LayerFilters], thresholds: Sequence[float]) -> dict[str, float]:
    shares = invalid_ratio(layers, thresholds)
    return {f"{bound:g}": share for bound, share in zip(thresholds, shares.tolist(), strict=True)}


def _split(
    layers: Sequence[LayerFilters], baseline: Sequence[LayerFilters], threshold: float
) -> dict[str, Any]:
    own = split_norms(layers, baseline, threshold)
    return {
        "valid": _number(own.valid),
        "invalid": _number(own.invalid),
        "valid_count": own.valid_count,
        "invalid_count": own.invalid_count,
    }


def _number(value: float) -> float | None:
    """JSON has no nan."""
    return None if np.isnan(value) else value
