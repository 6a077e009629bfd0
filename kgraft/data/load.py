"""Data sets by name: what there is, how it is prepared, how it is loaded."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kgraft.data import cifar, digits
from kgraft.data.dataset import Dataset, channel_statistics
from kgraft.data.npz import read_npz
from kgraft.data.order import with_validation
from kgraft.data.own import loader, read_own
from kgraft.errors import UserError, suggest, told
from kgraft.settings import argument

_MOST_SIDE = 4096  # pixels, as in a run file

NAMES = ("digits", *cifar.SETS)


@dataclass(frozen=True)
class Entry:
    """What is known of a data set without loading it.

    Attributes:
        name: What it is loaded by.
        train: Number of training images.
        test: Number of test images.
        shape: Height, width and channels of an image; None where they are not fixed.
        classes: Number of classes.
        prepared: Where it is ready to be read; None if it is not.
        source: Who made it, and where it is published.
        licence: Terms of use, as its makers state them.
    """

    name: str
    train: int
    test: int
    shape: tuple[int | None, ...]
    classes: int
    prepared: Path | None
    source: str
    licence: str


def names() -> tuple[str, ...]:
    """The sets that kgraft brings or can prepare by itself."""
    return NAMES


def data_directory(data_dir: str | Path | None = None) -> Path:
    """Where prepared sets are kept.

    Args:
        data_dir: A directory; None for `$KGRAFT_DATA` or, where that is not set, the directory that
            TFDS uses (`$TFDS_DATA_DIR`, else `~/tensorflow_datasets`), so that whatever TFDS has
            prepared is found.
    """
    chosen = data_dir or os.environ.get("KGRAFT_DATA") or os.environ.get("TFDS_DATA_DIR")
    return Path(chosen or "~/tensorflow_datasets").expanduser()


def load(
    name: str | Path,
    *,
    data_dir: str | Path | None = None,
    limit_train: int | None = None,
    limit_test: int | None = None,
    size: int | None = None,
    validation: float | None = None,
    seed: int = 0,
    **own: Any,
) -> Dataset:
    """Load a classification set into memory.

    Args:
        name: One of `names()`, a set that TFDS has prepared, the path of an `.npz` file with
            `x_train`, `y_train`, `x_test` and `y_test`, or `module:function` of one's own, which
            returns a `Dataset` or `(x_train, y_train), (x_test, y_test)`.
        data_dir: Where prepared sets are; see `data_directory`.
        limit_train: Use only the first N training images, in the set's own order: the published
            one for digits and the CIFAR sets, that of the file for the others. A set with fewer
            gives them all.
        limit_test: Use only the first N test images.
        size: Side of the images, in pixels: they are resized on the way in, antialiased (Pillow's
            bilinear filter); None leaves them as they are.
        validation: What is taken from the (limited) training images for validation, the same share
            of every class: a share below 1, or a whole number of images, 0 for none. None for a
            tenth, and for the images of a set of one's own that has such.
        seed: Which images those are.
        own: Arguments of a function of one's own.

    Returns:
        The set. Its mean and standard deviation are the published ones for the CIFAR sets that are
        not resized; elsewhere they are those of the (limited) training images before validation is
        taken from them, so that they do not depend on the seed.

    Raises:
        UserError: the set is unknown, not prepared or not usable, or a number is out of range.

    Example:
        >>> digits = load("digits", limit_train=500, validation=100)
        >>> len(digits.train), len(digits.validation), len(digits.test), digits.classes
        (400, 100, 355, 10)
    """
    if not isinstance(name, str | os.PathLike):
        raise UserError(f"name is {told(name)}: expected a data set's name or an .npz file.")
    argument("validation", validation, float | None)
    argument("seed", seed, int, low=0)
    argument("size", size, int | None, low=1, high=_MOST_SIDE)
    for option, limit in (("limit_train", limit_train), ("limit_test", limit_test)):
        argument(option, limit, int | None)
        if limit is not None and limit < 1:
            raise UserError(f"{option} {limit}: expected a number of images, 1 or more.")
    part = loader(name)
    if part is not None:
        part.check(own, lambda option: "kgraft.data.load:")
        whole = read_own(part, own, data_dir)
    elif own:
        raise UserError(f"data set {str(name)!r} has no {next(iter(own))}: only functions have.")
    elif str(name).endswith(".npz"):
        path = Path(name)
        whole = read_npz(path, name=path.stem, source=str(path), licence="not stated")
    elif name == "digits":
        whole = digits.read_digits()
    else:
        whole = _load_prepared(str(name), data_directory(data_dir), limit_train, limit_test)
    train, test = whole.train.first(limit_train), whole.test.first(limit_test)
    mean, std, held_out = whole.mean, whole.std, whole.validation
    if size is not None and train.images.shape[1:3] != (size, size):
        from kgraft.data.resize import resized

        train, test, mean = resized(train, size), resized(test, size), ()
        held_out = None if held_out is None else resized(held_out, size)
    if not mean:
        mean, std = channel_statistics(train.images)
    ready = replace(whole, train=train, validation=held_out, test=test, mean=mean, std=std)
    return with_validation(ready, validation, seed=seed)


def prepare(
    name: str, *, archive: str | Path | None = None, data_dir: str | Path | None = None
) -> Path:
    """Make a set ready for `load`; nothing is left behind if that fails.

    Args:
        name: One of `names()`.
        archive: Path of the set's published binary archive; None downloads it.
        data_dir: Where prepared sets are kept; see `data_directory`.

    Returns:
        Where the set is now; one that was ready already is left as it is.

    Raises:
        UserError: kgraft cannot prepare such a set, the archive is missing, truncated or another
            one, or the download failed.
    """
    argument("name", name, str)
    folder = data_directory(data_dir)
    if name == "digits":
        if archive is not None:
            raise UserError("data set 'digits' ships with kgraft: it takes no archive.")
        return digits.FILE
    if name not in cifar.SETS:
        raise UserError(
            f"data set {name!r} is not one that kgraft prepares.{suggest(name.lower(), NAMES)} "
            f"{_how_tfds_prepares(name, folder)}"
        )
    from kgraft.data.builders import prepare_cifar

    return prepare_cifar(
        name, archive=None if archive is None else Path(archive).expanduser(), data_dir=folder
    )


def describe(data_dir: str | Path | None = None) -> tuple[Entry, ...]:
    """What `kgraft data list` shows: kgraft's own sets, then others that TFDS has prepared.

    Args:
        data_dir: Where prepared sets are; see `data_directory`.
    """
    folder = data_directory(data_dir)
    entries = [
        Entry(
            "digits",
            digits.TRAIN,
            digits.TEST,
            digits.SHAPE,
            digits.CLASSES,
            digits.FILE,
            digits.SOURCE,
            digits.LICENCE,
        )
    ]
    for name, known in cifar.SETS.items():
        spec = known.archive
        ready = sorted((folder / known.prepared_as).glob("*/features.json"))
        entries.append(
            Entry(
                name,
                spec.count("train"),
                spec.count("test"),
                spec.shape,
                known.classes,
                ready[-1].parent if ready else None,
                cifar.SOURCE,
                cifar.LICENCE,
            )
        )
    return (*entries, *_describe_others(folder))


def _describe_others(folder: Path) -> list[Entry]:
    if not folder.is_dir():
        return []
    from kgraft.data.prepared import describe_prepared, list_prepared

    own = {known.prepared_as for known in cifar.SETS.values()}
    others = (name for name in list_prepared(folder) if name not in own)
    facts = (describe_prepared(name, folder) for name in others)
    return [Entry(**of_set) for of_set in facts if of_set is not None]


def _load_prepared(
    name: str, folder: Path, limit_train: int | None, limit_test: int | None
) -> Dataset:
    from kgraft.data.prepared import find_prepared, list_prepared, read_prepared

    known = cifar.SETS.get(name)
    builder = find_prepared(known.prepared_as if known else name, folder)
    if builder is None and known:
        raise UserError(
            f"data set {name!r} is not prepared in {folder}: run kgraft data prepare {name} "
            "[--archive PATH] [--data-dir DIR]."
        )
    if builder is None:
        hint = suggest(name.lower(), {*NAMES, *list_prepared(folder)})
        raise UserError(
            f"data set {name!r} is not known, not prepared in {folder}, and no folder in "
            f"{Path.cwd()}.{hint} "
            f"{_how_tfds_prepares(name, folder)}"
        )
    label = known.label if known else None
    whole = read_prepared(
        builder, name=name, label=label, limit_train=limit_train, limit_test=limit_test
    )
    if known is None:
        return whole
    return replace(
        whole, mean=known.mean, std=known.std, source=cifar.SOURCE, licence=cifar.LICENCE
    )


def _how_tfds_prepares(name: str, folder: Path) -> str:
    return (
        f"For a set of TFDS' own: tfds.builder({name!r}, data_dir={str(folder)!r})"
        ".download_and_prepare(file_format='array_record')."
    )
