"""A run's settings -> plain objects: images, models, optimizers, batches."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras

from kgraft import data
from kgraft.data import (
    Augment,
    BatchStream,
    CentreCrop,
    Dataset,
    OrderedPhotos,
    Photos,
    PhotoStream,
    Split,
)
from kgraft.data.order import HELD_OUT
from kgraft.engines.backends import BACKEND
from kgraft.errors import UserError
from kgraft.files import is_directory
from kgraft.links.link import Here, Link
from kgraft.models.neck import heads_of
from kgraft.runs import optimizers, own, photographs
from kgraft.runs.config import Config
from kgraft.runs.finished import best_peer_file
from kgraft.runs.keras_file import read_classifier
from kgraft.runs.methods import Ema, mixer_of, settled, taught_epochs
from kgraft.runs.networks import check_readable, network, seed_of, start, teacher_number
from kgraft.training.schedules import cosine, cosine_per_step, spread, step_decay, warmup
from kgraft.training.smoothed_loss import SmoothedCrossentropy


@dataclass(frozen=True)
class Assembly:
    """Everything that a run trains with, built and checked before anything is written.

    Attributes:
        config: the settings.
        dataset: the images.
        train: the first peer's batches; `for_peer` gives the others'.
        validation: batches of the validation part, None without one.
        test: batches of the test images.
        peers: the peers of this process, compiled; all K, unless a link joins several.
        loaded: teachers that come from files.
        untrained: teachers that the run trains first, compiled.
        link: joins the processes that the peers are in.
    """

    config: Config
    dataset: Dataset
    train: BatchStream | PhotoStream
    validation: BatchStream | OrderedPhotos | None
    test: BatchStream | OrderedPhotos
    peers: list[keras.Model]
    loaded: list[keras.Model]
    untrained: list[keras.Model]
    link: Link

    def teacher_stream(self, number: int) -> BatchStream | PhotoStream:
        """Batches of the m-th teacher that the run trains, counted from 0."""
        return self.train.for_peer(teacher_number(number))


def assemble(config: Config, link: Link | None = None) -> Assembly:
    """Build everything a run needs in this process.

    Args:
        config: the settings.
        link: joins several processes, and knows which peers are in this one; by default all are.

    Returns:
        The objects.

    Raises:
        UserError: names what does not fit: the data, an architecture, a batch larger than the
            data, a teacher of other classes.
    """
    config, dataset = images_of(settled(config))
    train = in_training(config, dataset)
    shape = dataset.train.images.shape[1:]
    teachers = config.teachers
    if len(teachers.files) > teachers.count:
        raise UserError(
            f"teachers.files names {len(teachers.files)} teachers, teachers.count is "
            f"{teachers.count}: expected {len(teachers.files)} or more."
        )
    loaded = [load_teacher(file, shape, dataset.classes) for file in teachers.files]
    untrained = [
        _built(config, teachers.model, dataset, teacher_number(m), teaches=True)
        for m in range(teachers.count - len(loaded))
    ]
    if link is None:
        link = Here()
        link.join(config.peers.count)
    peers = [_built(config, config.model.name, dataset, k) for k in link.here]
    check_readable(config, config.model.name, peers)
    check_readable(config, teachers.model, untrained)
    start(config, [*peers, *(untrained if teachers.model == config.model.name else ())])
    for teacher in untrained:
        _compile(config, teacher, config.optimizer.lr, dataset, train, epochs=taught_epochs(config))
    mixer = mixer_of(config)
    for k, peer in zip(link.here, peers, strict=True):
        _compile(
            config,
            peer,
            peer_rate(config, k),
            dataset,
            train,
            epochs=config.run.epochs,
            ema=mixer.decay if isinstance(mixer, Ema) else None,
        )
    if teachers.start != "fresh":
        _check_start(config, peers[0], [*loaded, *untrained])
    return Assembly(
        config=config,
        dataset=dataset,
        train=train,
        validation=None
        if dataset.validation is None
        else in_order(config, dataset, dataset.validation),
        test=in_order(config, dataset, dataset.test),
        peers=peers,
        loaded=loaded,
        untrained=untrained,
        link=link,
    )


def images_of(config: Config, data_dir: str | None = None) -> tuple[Config, Dataset]:
    """The images that a run's settings name, and the settings with the data's own filled in.

    Args:
        config: the settings.
        data_dir: where prepared sets are, if not where the settings say.

    Returns:
        The settings, now with padding, flips, mean and deviation, and the images that they are of.

    Raises:
        UserError: the data cannot be had, or the settings do not fit them.
    """
    wanted = config.data
    is_default = wanted.validation == HELD_OUT and "data.validation" not in config.given
    share = None if is_default else wanted.validation  # a set may have such images of its own
    dataset = photographs.load(config, data_dir, share) or data.load(
        wanted.name,
        data_dir=data_dir or wanted.directory,
        limit_train=wanted.limit_train,
        limit_test=wanted.limit_test,
        size=None if isinstance(wanted.size, tuple) else wanted.size,  # refused below
        validation=share,
        seed=config.run.seed,
        **own.arguments(config, "data"),
    )
    photographs.check_settings(config, dataset)
    if config.run.select == "test":
        if dataset.validation is not None:
            held = "data.validation holds images out: expected data.validation = 0"
            if dataset.own_validation:
                held = "the set has validation images of its own: expected a set without"
            raise UserError(f"run.select is 'test', and {held}, or run.select = 'validation'.")
        dataset = replace(dataset, validation=dataset.test)
    return _with_augmentation(config, dataset)


def in_training(config: Config, dataset: Dataset) -> BatchStream | PhotoStream:
    """The first peer's batches of the training images: shuffled, augmented, normalised.

    Args:
        config: settings with the data's own filled in.
        dataset: the images.
    """
    wanted, images = config.data, dataset.train.images
    if isinstance(images, Photos):
        return photographs.in_training(config, dataset, images)
    return BatchStream(
        images,
        dataset.train.labels,
        batch_size=config.run.batch_size,
        seed=config.run.seed,
        peer=0,
        augment=Augment(wanted.pad or 0, bool(wanted.flip), dataset.mean, dataset.std),
        resident=BACKEND.fits(images.nbytes),
    )


def in_order(config: Config, dataset: Dataset, split: Split) -> BatchStream | OrderedPhotos:
    """Batches of a part for evaluation: normalised, not augmented, in the order they lie.

    Args:
        config: the settings.
        dataset: whose mean and standard deviation normalise.
        split: the part.
    """
    images = split.images
    if isinstance(images, Photos):
        return photographs.in_order(config, dataset, split, images)
    return BatchStream(
        images,
        split.labels,
        batch_size=min(512, len(split)),
        seed=0,
        peer=0,
        augment=Augment(0, False, dataset.mean, dataset.std),
        shuffle=False,
        resident=BACKEND.fits(images.nbytes),
    )


def load_teacher(file: str | Path, shape: tuple[int, ...], classes: int) -> keras.Model:
    """A teacher from a `.keras` file, or the best peer of a finished run.

    Args:
        file: the file, or the run's directory.
        shape: height, width and channels of the images.
        classes: number of classes.

    Raises:
        UserError: there is no such file, it holds no Keras model, or one for other images or
            another number of classes.
    """
    path = best_peer_file(Path(file)) if is_directory(Path(file)) else Path(file)
    return read_classifier(path, f"teacher {file}", shape, classes)


def teacher_seed(config: Config, number: int) -> int:
    """The seed of the m-th trained teacher's initial weights, counted from 0."""
    return seed_of(config, teacher_number(number))


def peer_rate(config: Config, k: int) -> float:
    """The initial learning rate of a peer, counted from 0."""
    lr = config.optimizer.lr
    return spread(lr, k, config.peers.count) if config.schedule.spread else lr


def _with_augmentation(config: Config, dataset: Dataset) -> tuple[Config, Dataset]:
    """Settings that say how images are padded, flipped and normalised, and data that agree.

    By default they are padded by an eighth of their side and normalised by the set's own mean and
    deviation. Only photographs may be mirrored: the CIFAR sets are, digits are not, and of a set
    that kgraft does not know it cannot tell.
    """
    wanted, channels = config.data, dataset.train.images.shape[-1]
    side = min(dataset.train.images.shape[1:3])
    mean = dataset.mean if wanted.mean is None else wanted.mean
    std = dataset.std if wanted.std is None else wanted.std
    for name, numbers in (("mean", mean), ("std", std)):
        if len(numbers) not in (1, channels):
            raise UserError(
                f"data.{name} holds {len(numbers)} numbers; expected one a channel: {channels}."
            )
    if wanted.pad is not None and wanted.pad >= side:
        raise UserError(
            f"data.pad is {wanted.pad}, the images' side is {side}: expected less, a crop would "
            "hold nothing of an image."
        )
    are_photographs = isinstance(dataset.train.images, Photos)
    are_searched = dataset.open_set is not None
    usual_pad = side // 12 if are_searched else 0 if are_photographs else side // 8
    may_be_mirrored = are_photographs or dataset.name.startswith("cifar")
    wanted = replace(
        wanted,
        validation=0.0 if dataset.own_validation else wanted.validation,
        size=dataset.train.images.size if are_photographs else wanted.size,
        pad=usual_pad if wanted.pad is None else wanted.pad,
        flip=may_be_mirrored if wanted.flip is None else wanted.flip,
        mean=mean,
        std=std,
    )
    photos = config.photos
    if are_photographs and not are_searched:  # which the run's file then says, all of it
        photos = replace(photos, resize=CentreCrop(side, photos.resize).shorter)
    return replace(config, data=wanted, photos=photos), replace(dataset, mean=mean, std=std)


def _built(
    config: Config, name: str, dataset: Dataset, number: int, *, teaches: bool = False
) -> keras.Model:
    keras.utils.set_random_seed(seed_of(config, number))
    shape = dataset.train.images.shape[1:]
    return network(config, name, shape, dataset.classes, teaches=teaches)


def _check_start(config: Config, peer: keras.Model, teachers: list[keras.Model]) -> None:
    """Refuse to begin with the weights of teachers that are other networks, or also of a file."""
    start = config.teachers.start
    if config.model.weights is not None:
        raise UserError(
            f"teachers.start is {start!r}, and model.weights is {config.model.weights!r}: expected "
            "one or the other."
        )
    own = [tuple(weight.shape) for weight in peer.weights]
    for m, teacher in enumerate(teachers[:1] if start == "teacher" else teachers, 1):
        if [tuple(weight.shape) for weight in teacher.weights] != own:
            raise UserError(
                f"teachers.start is {start!r}, and teacher {m} ({teacher.name!r}) is another "
                "network than the peers: expected teachers of their architecture, or 'fresh'."
            )


def _compile(
    config: Config,
    model: keras.Model,
    lr: float,
    dataset: Dataset,
    stream: BatchStream | PhotoStream,
    *,
    epochs: int,
    ema: float | None = None,
) -> None:
    rate = _rate(config, lr, epochs, stream.steps)
    model.compile(
        optimizer=optimizers.made(
            config.optimizer.name, own.arguments(config, "optimizer"), rate, ema, heads_of(model)
        ),
        loss=_loss(config),
        metrics=["accuracy", *photographs.metrics(dataset)],
    )


def _loss(config: Config) -> keras.losses.Loss:
    smoothing = config.run.label_smoothing
    if smoothing:
        return SmoothedCrossentropy(smoothing)
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _rate(config: Config, lr: float, epochs: int, steps: int) -> Any:
    schedule = config.schedule
    rate: Any = lr
    if schedule.name == "cosine":
        rate = cosine(lr, epochs=epochs, steps_per_epoch=steps)
    elif schedule.name == "cosine-per-step":
        rate = cosine_per_step(lr, epochs=epochs, steps_per_epoch=steps)
    elif schedule.name == "step":
        rate = step_decay(lr, every=schedule.every, steps_per_epoch=steps, factor=schedule.factor)
    if schedule.warmup:
        rate = warmup(rate, epochs=schedule.warmup, steps_per_epoch=steps)
    return rate
