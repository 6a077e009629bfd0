"""A finished run, evaluated again."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import keras
import numpy as np
from PIL.Image import Image

from kgraft.data import Dataset
from kgraft.errors import UserError
from kgraft.models import registry
from kgraft.parts import is_reference
from kgraft.retrieval.page import page, worst
from kgraft.runs.assembly import images_of, in_order
from kgraft.runs.config import Config
from kgraft.runs.finished import numbers_of, peer_file, read_run
from kgraft.runs.identities import Retrieval
from kgraft.runs.images import check_same
from kgraft.runs.keras_file import read_classifier
from kgraft.runs.own import check_trusted
from kgraft.runs.scoring import TOP, answers, distances, figures, searched
from kgraft.settings import checked

_TOLD = {"accuracy": "", f"top{TOP}": f", top {TOP}"}
_SEARCHED = {"accuracy": ", rank1"}


def evaluate_run(
    path: Path,
    *,
    peer: int | None = None,
    data_dir: str | None = None,
    trusted: bool = False,
    search: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Test accuracy of a run's peers, from their files.

    Args:
        path: the directory of a finished run.
        peer: which peer, counted from 1; None for all of them and their ensemble.
        data_dir: where prepared data sets are, if not where the run found them.
        trusted: whether functions that the run names may be called.
        search: settings of `[retrieval]` that are others than the run's, by key: how the test
            images are compared where they are searched.

    Returns:
        `"peer 1"` ... and, for all of them, `"ensemble"` -> accuracy on the run's test images; with
        20 classes or more also `"peer 1, top 5"` ..., where five guesses count. Where the test
        images are searched: `"peer 1, rank1"`, `"peer 1, mAP"` and what else `figures` has.

    Raises:
        UserError: there is no finished run, or no such peer; or its data come from a function, and
            it is not trusted.
    """
    return _scores(*answers_of_run(path, peer, data_dir, trusted, search or {}), peer)


def _scores(
    dataset: Dataset, wanted: Retrieval, given: Mapping[int, np.ndarray], peer: int | None
) -> dict[str, float]:
    groups = {f"peer {k}": [own] for k, own in given.items()}
    if peer is None:
        groups["ensemble"] = list(given.values())
    scores: dict[str, float] = {}
    for name, group in groups.items():
        for figure, value in figures(group, dataset, wanted).items():
            words = _TOLD if dataset.open_set is None else _SEARCHED
            told = words.get(figure, f", {figure}")
            scores[name + told] = value
    return scores


def worst_queries(
    path: Path,
    *,
    peer: int | None = None,
    count: int = 10,
    data_dir: str | None = None,
    trusted: bool = False,
    search: Mapping[str, Any] | None = None,
) -> tuple[Image, dict[str, float]]:
    """A picture of the queries that fared worst, each with its first ten results.

    Args:
        path: see `evaluate_run`.
        peer: whose features, counted from 1; None for all peers' together.
        count: how many queries.
        data_dir: see `evaluate_run`.
        trusted: see `evaluate_run`.
        search: see `evaluate_run`.

    Returns:
        The picture, and what `evaluate_run` gives: the images are looked at once.

    Raises:
        UserError: see `evaluate_run`; or the run's images are not searched.
    """
    dataset, wanted, given = answers_of_run(path, peer, data_dir, trusted, search or {})
    if dataset.open_set is None:
        raise UserError(f"{path}: its images are classified, and not searched: no worst queries.")
    features = list(given.values())
    compared = distances(features, dataset.open_set, wanted)
    found = searched(compared, dataset.open_set)
    rows = worst(found, count).tolist()
    picture = page(dataset.test.images, compared, dataset.open_set, found, rows)
    return picture, _scores(dataset, wanted, given, peer)


def answers_of_run(
    path: Path,
    peer: int | None = None,
    data_dir: str | None = None,
    trusted: bool = False,
    search: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[Dataset, Retrieval, dict[int, np.ndarray]]:
    """A run's images, how they are searched, and what each chosen peer says of its test images.

    Args:
        path: see `evaluate_run`.
        peer: see `evaluate_run`.
        data_dir: see `evaluate_run`.
        trusted: see `evaluate_run`.
        search: see `evaluate_run`.

    Raises:
        UserError: see `evaluate_run`.
    """
    config, summary = read_run(path)
    chosen = numbers_of(summary) if peer is None else [peer]
    for k in chosen:
        peer_file(path, summary, k)
    config, dataset = images_of_run(path, config, data_dir, ("test",), trusted=trusted)
    wanted = config.retrieval
    for key, value in search.items():
        if dataset.open_set is None:
            raise UserError(f"{path}: its images are classified, and not searched: no {key}.")
        wanted = replace(wanted, **{key: checked(Retrieval, key, value, "evaluate:")})
    if "metric" in search and wanted.rerank:
        raise UserError(
            f"metric is {search['metric']!r}, and re-ranked images have distances of their own: "
            "leave it out, or do not re-rank (--no-rerank)."
        )
    test = in_order(config, dataset, dataset.test)
    peers = peers_of_run(path, config, summary, dataset, chosen, trusted=trusted)
    given = (answers(own, test, dataset, wanted) for own in peers)
    return dataset, wanted, dict(zip(chosen, given, strict=True))


def images_of_run(
    path: Path, config: Config, data_dir: str | None, parts: Sequence[str], *, trusted: bool
) -> tuple[Config, Dataset]:
    """The images that a run was trained on, see `images_of`.

    Args:
        path: the run's directory.
        config: its settings.
        data_dir: where prepared data sets are, if not where the run found them.
        parts: which parts of them have to be those that the run began with.
        trusted: whether a function that it names may be called.

    Raises:
        UserError: what `images_of` raises, they are others, or the run is not trusted.
    """
    if not trusted:
        check_trusted(config, path, ("data.name",))
    config, dataset = images_of(config, data_dir)
    check_same(path, dataset, parts)
    return config, dataset


def peers_of_run(
    path: Path,
    config: Config,
    summary: dict[str, Any],
    dataset: Dataset,
    numbers: Sequence[int],
    *,
    trusted: bool,
) -> Iterator[keras.Model]:
    """Peers of a finished run, one after the other, from their files.

    Where the run may be trusted, the part that built its models is imported first: their layers may
    be classes that are registered there.

    Args:
        path: the run's directory.
        config: its settings.
        summary: what `read_run` gave.
        dataset: its images.
        numbers: which peers, counted from 1.
        trusted: whether a module that it names may be imported.

    Raises:
        UserError: a file is gone, or no such model.
    """
    name, shape = config.model.name, dataset.test.images.shape[1:]
    if trusted or not is_reference(name):
        registry.part(name)
    for k in numbers:
        file = peer_file(path, summary, k)
        try:
            peer = read_classifier(file, str(file), shape, dataset.classes)
        except UserError as error:
            if trusted or not is_reference(name):
                raise
            raise UserError(
                f"{error} Its layers may be those of {name}, which --trust imports (--here, from "
                "the current directory)."
            ) from None
        yield peer
