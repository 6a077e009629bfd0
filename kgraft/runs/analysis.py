"""The filters of runs' peers and of files: what `kgraft analyze` tells of them."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kgraft.analysis.filters import (
    THRESHOLDS,
    LayerFilters,
    check_alike,
    invalid_ratio,
    layer_filters,
    overlap,
    split_norms,
)
from kgraft.analysis.places import by_depth, shared_places
from kgraft.errors import UserError
from kgraft.files import is_directory
from kgraft.runs.finished import best_peer_file, numbers_of, peer_file, read_run
from kgraft.runs.keras_file import read_model
from kgraft.runs.records import short_names

Networks = dict[str, tuple[LayerFilters, ...]]


def filters_of(places: Sequence[str]) -> Networks:
    """The filters of networks.

    Args:
        places: `.keras` files, and directories of finished runs, all peers of which count.

    Returns:
        By what each is called, in their order: the file's name, or the run's and the peer's number;
        more of the path where names would be the same.

    Raises:
        UserError: there is no such file or run, it is named twice, or has no filters.
    """
    paths, found = [Path(place) for place in places], dict[str, tuple[LayerFilters, ...]]()
    for path, name in zip(paths, short_names(paths), strict=True):
        for suffix, model in _models(path):
            found[name + suffix] = _filters(model, name + suffix)
    return found


def baseline_of(place: str) -> tuple[LayerFilters, ...]:
    """The filters of one network.

    Args:
        place: a `.keras` file, or the directory of a finished run, the best peer of which counts.

    Raises:
        UserError: see `filters_of`.
    """
    path = best_peer_file(Path(place)) if is_directory(Path(place)) else Path(place)
    return _filters(read_model(path, place), place)


def told(
    networks: Networks,
    baseline: tuple[LayerFilters, ...] | None = None,
    *,
    thresholds: Sequence[float] = (0.1,),
) -> dict[str, Any]:
    """What there is to say of networks' filters, JSON-able.

    Args:
        networks: what `filters_of` gave.
        baseline: whose invalid filters split those of the others, see `split_norms`.
        thresholds: l1 norms below which a filter is invalid: where they are split, placed and
            compared. They are counted at those of `THRESHOLDS` too.

    Returns:
        `"thresholds"`; `"networks"`: of each its name, numbers of filters and of those that are not
        finite, of the others invalid shares by threshold, plain and folded, entropy of its layers
        (sum and each), by threshold its own split and the baseline's, how deep its invalid filters
        sit, and which they are in each layer; and `"overlap"` by threshold of every two that have
        the same layers, in all and in each layer. Thresholds are named as `f"{threshold:g}"`,
        filters by number from 0; what is not known is None.

    Raises:
        UserError: the baseline is of another architecture, or a threshold is given twice.
    """
    names = [f"{at:g}" for at in thresholds]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"threshold {twice[0]}: given twice.")
    if baseline is not None:
        for layers in networks.values():
            check_alike(layers, baseline)
    pairs = []
    for (first, own), (second, other) in combinations(networks.items(), 2):
        if [len(a.norms) for a in own] == [len(b.norms) for b in other]:
            shared = {f"{at:g}": _shared(own, other, at) for at in thresholds}
            pairs.append({"networks": [first, second], "by_threshold": shared})
    return {
        "thresholds": [*thresholds],
        "networks": [
            {"network": name, **_of_network(layers, baseline, thresholds)}
            for name, layers in networks.items()
        ],
        "overlap": pairs,
    }


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


def _filters(model: keras.Model, name: str) -> tuple[LayerFilters, ...]:
    try:
        return layer_filters(model)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def _models(path: Path) -> Iterator[tuple[str, keras.Model]]:
    if not is_directory(path):
        yield "", read_model(path, str(path))
        return
    _, summary = read_run(path)
    for k in numbers_of(summary):
        file = peer_file(path, summary, k)
        yield f", peer {k}", read_model(file, str(file))


def _of_network(
    layers: Sequence[LayerFilters],
    baseline: Sequence[LayerFilters] | None,
    thresholds: Sequence[float],
) -> dict[str, Any]:
    counted = sorted({*THRESHOLDS, *thresholds})
    folded = [replace(own, norms=own.folded) for own in layers if own.folded is not None]
    named = {f"{at:g}": at for at in thresholds}
    return {
        "filters": sum(len(own.norms) for own in layers),
        "not_finite": sum(int((~own.finite).sum()) for own in layers),
        "invalid": _by_threshold(layers, counted),
        "invalid_folded": _by_threshold(folded, counted) if folded else None,
        "entropy": _number(sum(own.entropy for own in layers)),
        "norms": {name: _split(layers, layers, at) for name, at in named.items()},
        "norms_by_baseline": baseline
        and {name: _split(layers, baseline, at) for name, at in named.items()},
        "depth": {
            name: [{**asdict(part), "share": _number(part.share)} for part in by_depth(layers, at)]
            for name, at in named.items()
        },
        "layers": [
            {
                "layer": own.name,
                "filters": len(own.norms),
                "invalid": {
                    name: np.flatnonzero(own.invalid(at)).tolist() for name, at in named.items()
                },
                "not_finite": np.flatnonzero(~own.finite).tolist(),
                "mean_norm": _mean(own.norms),
                "mean_folded_norm": None if own.folded is None else _mean(own.folded),
                "entropy": _number(own.entropy),
            }
            for own in layers
        ],
    }


def _shared(
    layers: Sequence[LayerFilters], others: Sequence[LayerFilters], threshold: float
) -> dict[str, Any]:
    shared = shared_places(layers, others, threshold)
    return {
        "share": _number(overlap(layers, others, threshold)),
        "layers": [asdict(own) for own in shared if own.either],
    }


def _by_threshold(
    layers: Sequence[LayerFilters], thresholds: Sequence[float]
) -> dict[str, float | None]:
    shares = map(_number, invalid_ratio(layers, thresholds).tolist())
    return {f"{bound:g}": share for bound, share in zip(thresholds, shares, strict=True)}


def _split(
    layers: Sequence[LayerFilters], baseline: Sequence[LayerFilters], threshold: float
) -> dict[str, Any]:
    own = asdict(split_norms(layers, baseline, threshold))
    return {
        name: _number(value) if isinstance(value, float) else value for name, value in own.items()
    }


def _mean(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None


def _number(value: float) -> float | None:
    """JSON has no nan."""
    return float(value) if np.isfinite(value) else None
