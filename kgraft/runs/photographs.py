"""A run's images where they are a folder of photographs: which, in what crops and orders."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import keras

from kgraft import data
from kgraft.data import (
    Augment,
    CentreCrop,
    Dataset,
    OrderedPhotos,
    Photos,
    PhotoStream,
    RandomResizedCrop,
    Split,
)
from kgraft.data.order import HELD_OUT
from kgraft.data.views import side_of
from kgraft.errors import UserError
from kgraft.files import is_directory
from kgraft.parts import is_reference
from kgraft.runs import identities
from kgraft.runs.scoring import TOP, has_top
from kgraft.settings import setting

if TYPE_CHECKING:  # a run's settings have a table from here
    from kgraft.runs.config import Config

_MIB = 2**20
_SIZE = 224  # as ImageNet's networks see them


@dataclass(frozen=True)
class Photographs:
    """What is seen of photographs (`data.name = "DIR"`, or a set of TFDS), and how they are read.

    In training a random part of each, by `area` and `ratio`, resized to `data.size`, with `jitter`
    of brightness, contrast and saturation; in evaluation the middle after a `resize` of the shorter
    side (8/7 of the size by default). `order` is `"windowed"`: decoded once for all peers, which
    then share every window of photographs; or `"independent"`. `memory` is MiB of crops; `scaled`
    decodes large JPEGs to a part of their size; `cache` keeps all, resized, in a file of pixels.
    Files that are `unreadable` are refused or skipped. `test` is the share of a folder without a
    test part that becomes one.
    """

    area: tuple[float, ...] = setting((0.08, 1.0), above=0, high=1)
    ratio: tuple[float, ...] = setting((3 / 4, 4 / 3), above=0)
    jitter: float = setting(0.0, low=0, high=1)
    resize: int | None = setting(None, low=1, high=8192)
    order: Literal["windowed", "independent"] = "windowed"
    memory: int = setting(512, low=1)
    scaled: bool = False
    cache: bool = False
    unreadable: Literal["refuse", "skip"] = "refuse"
    test: float = setting(HELD_OUT, above=0, below=1)
    workers: int | None = setting(None, low=1, high=1024)


def is_folder(name: str) -> bool:
    """Whether a data set's name is that of a folder of photographs, or can be that of nothing else.

    Args:
        name: `data.name`.
    """
    return name.startswith((".", "/", "~")) or is_directory(Path(name))


def load(config: "Config", data_dir: str | None, validation: float | None) -> Dataset | None:
    """The photographs that a run's settings name: a folder, or a prepared set of TFDS.

    Args:
        config: the settings.
        data_dir: where prepared sets are, and what is known of a folder's files, if not where the
            settings say.
        validation: what is taken from the training images, see `load_folder`.

    Returns:
        None where they name something else.

    Raises:
        UserError: see `load_folder`.
    """
    wanted, own = config.data, config.photos
    if wanted.name in data.names() or wanted.name.endswith(".npz") or is_reference(wanted.name):
        return None
    place = data.data_directory(data_dir or wanted.directory)
    if is_folder(wanted.name):
        searched = identities.load(config, place, validation)
        if searched is not None:
            return searched
    if isinstance(wanted.size, tuple):
        return None  # see `check_settings`
    size = wanted.size or _SIZE
    if not is_folder(wanted.name):
        return _prepared(config, size, place, validation)
    crop = CentreCrop(size, own.resize)
    return data.load_folder(
        Path(wanted.name).expanduser(),
        place,
        size=size,
        limit_train=wanted.limit_train,
        limit_test=wanted.limit_test,
        test=None if own.test == HELD_OUT else own.test,  # a run.toml says it too
        validation=validation,
        seed=config.run.seed,
        unreadable=own.unreadable,
        cache=crop.shorter if own.cache else None,
        workers=own.workers,
    )


def _prepared(config: "Config", size: int, place: Path, validation: float | None) -> Dataset | None:
    if not place.is_dir():
        return None
    from kgraft.data.prepared_photos import find_photographs, load_records

    wanted, usual = config.data, Photographs()
    builder = find_photographs(wanted.name, place)
    if builder is None:
        return None
    for name in ("cache", "test", "unreadable"):  # a run.toml says defaults too
        if getattr(config.photos, name) != getattr(usual, name):
            raise UserError(f"photos.{name}: {wanted.name} is no folder. Take that out.")
    return load_records(
        builder,
        name=wanted.name,
        size=size,
        limit_train=wanted.limit_train,
        limit_test=wanted.limit_test,
        validation=validation,
        seed=config.run.seed,
    )


def in_training(config: "Config", dataset: Dataset, photos: Photos) -> PhotoStream:
    """The first peer's batches of the training images.

    Args:
        config: settings with the data's own filled in.
        dataset: the images.
        photos: those of them to learn from.
    """
    own, wanted = config.photos, config.data
    crop = (
        RandomResizedCrop(side_of(photos), own.area, own.ratio, bool(wanted.flip), own.jitter)
        if dataset.open_set is None
        else identities.in_training(config, photos)
    )
    return PhotoStream(
        photos,
        dataset.train.labels,
        batch_size=config.run.batch_size,
        seed=config.run.seed,
        peer=0,
        peers=config.peers.count,
        crop=crop,
        augment=Augment(0, False, dataset.mean, dataset.std),
        order=own.order,
        memory=own.memory * _MIB,
        workers=own.workers,
        scaled=own.scaled,
        instances=config.retrieval.instances,
    )


def in_order(config: "Config", dataset: Dataset, split: Split, photos: Photos) -> OrderedPhotos:
    """Batches of a part for evaluation.

    Args:
        config: the settings.
        dataset: whose mean and standard deviation normalise.
        split: the part.
        photos: its photographs.
    """
    own = config.photos
    return OrderedPhotos(
        photos,
        split.labels,
        batch_size=min(256, len(split)),
        crop=CentreCrop(side_of(photos), own.resize)
        if dataset.open_set is None
        else identities.in_order(photos),
        augment=Augment(0, False, dataset.mean, dataset.std),
        memory=own.memory * _MIB,
        workers=own.workers,
        scaled=own.scaled,
    )


def metrics(dataset: Dataset) -> list[keras.metrics.Metric]:
    """What is measured beside the accuracy while photographs are trained on.

    Args:
        dataset: the images.
    """
    if not isinstance(dataset.train.images, Photos) or not has_top(dataset.classes):
        return []
    return [keras.metrics.SparseTopKCategoricalAccuracy(TOP, name=f"top{TOP}")]


def check_settings(config: "Config", dataset: Dataset) -> None:
    """Refuse settings that have no part in what the images are.

    Args:
        config: the settings.
        dataset: the images.

    Raises:
        UserError: names what was given in vain.
    """
    identities.check_settings(config, dataset)
    if isinstance(dataset.train.images, Photos):
        if config.data.pad and dataset.open_set is None:
            raise UserError(
                f"data.pad is {config.data.pad}: photographs are not padded, photos.area says what "
                "is seen of them. Take it out."
            )
    elif vain := sorted(key for key in config.given if key.startswith("photos.")):
        raise UserError(
            f"{', '.join(vain)}: {dataset.name} is no set of photographs. Take that out."
        )
