"""A run's images where they are a folder of identities: others are looked for than learnt from."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import keras

from kgraft.data import Dataset, Photos, ShiftedWhole, Whole
from kgraft.errors import UserError
from kgraft.models.neck import before_neck
from kgraft.retrieval import load_identities
from kgraft.retrieval.distances import Metric
from kgraft.retrieval.folders import has_identities
from kgraft.runs.methods import method_of
from kgraft.settings import setting
from kgraft.training.mutual import Mutual
from kgraft.training.triplets import Triplet

if TYPE_CHECKING:  # a run's settings have a table from here
    from kgraft.runs.config import Config

_log = logging.getLogger("kgraft")
_SIZE = (256, 128)  # as all person re-identification has it
_MARGIN = 0.3
_SEEN = ("area", "ratio", "jitter", "resize", "cache", "test")  # of crops, or of other folders


@dataclass(frozen=True)
class Retrieval:
    """Photographs of identities, of which others are looked for (`data.name = "DIR"`).

    The features are what goes into the classifier; with `neck` after a batch normalisation of their
    own, and the classifier has no bias (Luo et al., CVPRW 2019); `dropout` is between the two. They
    are compared by `metric`, with `flip` as the sum of an image's and its mirror image's, with
    `rerank` after k-reciprocal re-ranking (Zhong et al., CVPR 2017). In training `erase` is the
    share of images of which a rectangle is painted over; `triplet` is what the triplet loss of the
    features before the neck weighs beside the cross entropy, with `margin` (Hermans et al., 2017),
    and `instances` how many images of an identity come in a batch. Where the folders' files say no
    camera, `camera` is an expression whose group does.
    """

    neck: bool = False
    dropout: float = setting(0.0, low=0.0, high=0.99)
    metric: Metric = "cosine"
    flip: bool = False
    rerank: bool = False
    erase: float = setting(0.0, low=0.0, high=1.0)
    triplet: float = setting(0.0, low=0.0)
    margin: float = setting(_MARGIN, low=0.0)
    instances: int | None = setting(None, low=2, high=1024)
    camera: str | None = None


def load(config: "Config", place: Path, validation: float | None) -> Dataset | None:
    """The images of a folder of identities that a run's settings name.

    Args:
        config: the settings.
        place: where what is known of its files is kept.
        validation: what is taken from the training images.

    Returns:
        None where the folder is one of classes.

    Raises:
        UserError: see `load_identities`, or a setting has no part in it.
    """
    root, photos, wanted = Path(config.data.name).expanduser(), config.photos, config.data
    if not has_identities(root):
        return None
    usual = type(photos)()
    for name in _SEEN:
        if getattr(photos, name) != getattr(usual, name):
            raise UserError(
                f"photos.{name}: of identities whole photographs are seen. Take that out."
            )
    if wanted.limit_test is not None:
        raise UserError(
            "data.limit_test: a gallery is searched whole, or its figures say nothing. Take that "
            "out."
        )
    return load_identities(
        root,
        place,
        size=_pair(wanted.size),
        camera=config.retrieval.camera,
        limit_train=wanted.limit_train,
        validation=validation,
        seed=config.run.seed,
        unreadable=photos.unreadable,
        workers=photos.workers,
    )


def _pair(size: int | tuple[int, ...] | None) -> tuple[int, int]:
    if size is None:
        return _SIZE
    if isinstance(size, int):
        return size, size
    if len(size) != 2:
        raise UserError(f"data.size is {list(size)}: expected rows and columns, or one number.")
    return size[0], size[1]


def in_training(config: "Config", photos: Photos) -> ShiftedWhole:
    """What is seen of the training images.

    Args:
        config: settings with the data's own filled in.
        photos: the images.
    """
    wanted = config.data
    fill = wanted.mean or (0.0,)
    return ShiftedWhole(
        photos.sides,
        pad=wanted.pad or 0,
        flip=bool(wanted.flip),
        erase=config.retrieval.erase,
        fill=fill * 3 if len(fill) == 1 else fill,
    )


def triplet_of(config: "Config", peer: keras.Model) -> Triplet | None:
    """How the peers' features learn distances, None where they do not.

    Args:
        config: the settings.
        peer: one of the peers.
    """
    own = config.retrieval
    return Triplet(own.triplet, own.margin, before_neck(peer)) if own.triplet else None


def _check_triplet(config: "Config") -> None:
    own = config.retrieval
    if own.triplet:
        method = method_of(config)
        if config.teachers.count or issubclass(method, Mutual):
            raise UserError(
                f"retrieval.triplet is {own.triplet}, and {config.run.method or 'the method'} "
                "learns from other networks: expected a method without, and teachers.count = 0."
            )
        if own.instances is None:
            _log.warning(
                "retrieval.triplet without retrieval.instances: few images of a batch have another "
                "of their identity in it, and only those learn distances."
            )
    elif own.margin != _MARGIN:
        raise UserError("retrieval.margin is the triplet loss's: set retrieval.triplet, e.g. 1.")


def in_order(photos: Photos) -> Whole:
    """What is seen of images in evaluation.

    Args:
        photos: the images.
    """
    return Whole(photos.sides)


def check_settings(config: "Config", dataset: Dataset) -> None:
    """Refuse settings that have no part in what the images are.

    Args:
        config: the settings.
        dataset: the images.

    Raises:
        UserError: names what was given in vain.
    """
    if dataset.open_set is not None:
        if config.run.select == "test":
            raise UserError(
                "run.select is 'test', and the test images are of other identities than those that "
                "are learnt: expected 'validation'."
            )
        _check_triplet(config)
        return
    if isinstance(config.data.size, tuple):
        raise UserError(
            f"data.size is {list(config.data.size)}: only photographs of identities have rows and "
            "columns; expected one number."
        )
    if vain := sorted(key for key in config.given if key.startswith("retrieval.")):
        raise UserError(
            f"{', '.join(vain)}: {dataset.name} is no folder of identities. Take that out."
        )
