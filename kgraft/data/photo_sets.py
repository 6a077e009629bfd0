"""Data sets of photographs, which are read while a training goes on."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kgraft.data.dataset import Dataset, Split
from kgraft.data.examine import Findings, Progress, examined
from kgraft.data.folder import Folder, Part, read_folder
from kgraft.data.order import HELD_OUT, split_validation, with_validation
from kgraft.data.photos import Files, Photos
from kgraft.data.pixel_cache import cached
from kgraft.engines.backends.cores import usable_cores
from kgraft.errors import UserError
from kgraft.settings import argument

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_MOST = 8192  # pixels of a side
_NAMED = 3  # unreadable files that a message names

_log = logging.getLogger("kgraft")

Unreadable = Literal["refuse", "skip"]


@dataclass(frozen=True, eq=False)
class Examined:
    """A folder whose files have all been looked at.

    Attributes:
        folder: What is in it.
        findings: By the name of each part, what was found in its files.
    """

    folder: Folder
    findings: dict[str, Findings]

    def unreadable(self) -> list[tuple[str, str]]:
        """Paths of files that cannot be read, and why."""
        return [
            (path, error)
            for part in self.folder.parts
            for path, error in zip(part.paths, self.findings[part.name].errors, strict=True)
            if error
        ]


def examine_folder(
    root: Path, indexes: Path, *, workers: int | None = None, progress: Progress | None = None
) -> Examined:
    """Read a folder's names, and look at every file that has not been looked at before.

    Args:
        root: The folder.
        indexes: Where findings are kept.
        workers: Threads that decode; as many as there are cores by default.
        progress: See `examined`; one part after the other.

    Raises:
        UserError: see `read_folder`.
    """
    folder = read_folder(root)
    parts = {part.name: part.paths for part in folder.parts}
    found = examine_parts(root, parts, indexes, workers=workers, progress=progress)
    return Examined(folder, found)


def examine_parts(
    root: Path,
    parts: Mapping[str, Sequence[str]],
    indexes: Path,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Findings]:
    """Look at every file of some parts of a folder that has not been looked at before.

    Args:
        root: The folder.
        parts: By their names, paths below it.
        indexes: Where findings are kept.
        workers: Threads that decode; as many as there are cores by default.
        progress: See `examined`; one part after the other.
    """
    findings = {}
    for name, paths in parts.items():
        key = hashlib.sha256(f"{root.resolve()}\0{name}".encode(errors="surrogateescape"))
        findings[name] = examined(
            Files(root, paths),
            indexes / "photos" / f"{key.hexdigest()[:16]}.npz",
            workers=workers or usable_cores(),
            progress=progress,
        )
    return findings


def refuse_unreadable(root: Path, broken: list[tuple[str, str]], unreadable: Unreadable) -> None:
    """Refuse a folder with files that cannot be read, or say that they are left out.

    Args:
        root: The folder.
        broken: Paths of files that cannot be read, and why.
        unreadable: `"skip"` leaves them out.

    Raises:
        UserError: there are any, and they are not to be left out.
    """
    if broken and unreadable == "refuse":
        raise UserError(
            f"{root}: {len(broken)} files cannot be read: {_list(broken)}. Remove them, or set "
            "photos.unreadable = 'skip'."
        )
    if broken:
        said = "%s: %d files cannot be read and are left out: %s"
        _log.warning(said, root, len(broken), _list(broken))


def load_folder(
    root: str | Path,
    indexes: str | Path,
    *,
    size: int,
    limit_train: int | None = None,
    limit_test: int | None = None,
    test: float | None = None,
    validation: float | None = None,
    seed: int = 0,
    unreadable: Unreadable = "refuse",
    cache: int | None = None,
    workers: int | None = None,
) -> Dataset:
    """A folder of photographs as a data set.

    Args:
        root: The folder, see `read_folder`.
        indexes: Where what was found in its files is kept.
        size: Side of the squares that are seen, pixels.
        limit_train: Only so many training images, in an order that is shuffled once for all.
        limit_test: Only so many test images.
        test: Where the folder has no test part, the share of every class that becomes one, or a
            whole number of images; the same ones whatever the seed. None for a tenth.
        validation: What is taken from the training images for validation, likewise; None for a
            tenth, and for the folder's validation part where it has one.
        seed: Which images are taken for validation.
        unreadable: `"skip"` leaves out files that cannot be read.
        cache: Length of the shorter side to which all photographs are resized once, into a file of
            pixels among the indexes; None for reading the files themselves.
        workers: Threads that decode; as many as there are cores by default.

    Raises:
        UserError: see `read_folder`; files cannot be read, and are not to be skipped; there is no
            room for their pixels; an argument is out of range.
    """
    root, indexes = Path(root), Path(indexes)
    argument("size", size, int, low=1, high=_MOST)
    argument("unreadable", unreadable, Unreadable)
    argument("cache", cache, int | None, low=size, high=_MOST)
    for name, value in {"limit_train": limit_train, "limit_test": limit_test}.items():
        argument(name, value, int | None, low=1)
    workers = argument("workers", workers, int | None, low=1) or usable_cores()
    known = examine_folder(root, indexes, workers=workers)
    refuse_unreadable(root, known.unreadable(), unreadable)
    folder = known.folder

    def split(part: Part) -> Split:
        found = known.findings[part.name]
        photos = Photos.of(Files(root, part.paths), size)[found.readable]
        if cache is not None:
            sizes, stamp = found.sizes[found.readable], found.digests[found.readable].tobytes()
            place = indexes / "photos"
            photos = cached(photos, sizes, stamp, place, shorter=cache, workers=workers)
        return Split(photos, part.labels[found.readable])

    train = split(folder.train)
    held_out = None if folder.validation is None else split(folder.validation)
    tested = None if folder.test is None else split(folder.test)
    classes = len(folder.class_names)
    if tested is not None and test is not None:
        raise UserError(f"photos.test is {test}, and {root} has a test part: take that out.")
    if tested is None:
        share = HELD_OUT if test is None else test
        train, tested = split_validation(train, share, classes=classes, seed=None, what="test")
        if tested is None:
            raise UserError(f"{root} has no test part: expected photos.test above 0.")
    train, tested = train.first(limit_train), tested.first(limit_test)
    whole = Dataset(
        name=root.name or str(root),
        train=train,
        validation=held_out,
        test=tested,
        classes=classes,
        class_names=folder.class_names,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        source=str(root),
        licence="not stated",
    )
    return with_validation(whole, validation, seed=seed)


def _list(broken: list[tuple[str, str]]) -> str:
    named = "; ".join(f"{path} ({error})" for path, error in broken[:_NAMED])
    return named + ("; ..." if len(broken) > _NAMED else "")


@dataclass(frozen=True, eq=False)
class Checked:
    """What a folder of photographs is made of.

    Attributes:
        known: The folder and what was found in its files.
        unreadable: Paths of files that cannot be read, and why.
        repeated: Pairs of files with the same bytes, one to learn from, one held out.
        disputed: Pairs of files with the same bytes in different classes of one part.
        mean: Mean of every channel over the readable training images' pixels, 0..1.
        std: Standard deviation, likewise.
    """

    known: Examined
    unreadable: list[tuple[str, str]]
    repeated: list[tuple[str, str]]
    disputed: list[tuple[str, str]]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def check_folder(
    root: Path, indexes: Path, *, workers: int | None = None, progress: Progress | None = None
) -> Checked:
    """Look at every file of a folder, and compare them.

    Args:
        root: The folder.
        indexes: Where findings are kept.
        workers: Threads that decode; as many as there are cores by default.
        progress: See `examined`.

    Raises:
        UserError: see `read_folder`.
    """
    known = examine_folder(root, indexes, workers=workers, progress=progress)
    firsts: dict[str, dict[bytes, tuple[str, int]]] = {}
    repeated, disputed = [], []
    for part in known.folder.parts:
        found = known.findings[part.name]
        own = firsts.setdefault(part.name, {})
        for path, label, digest, error in zip(
            part.paths, part.labels.tolist(), found.digests, found.errors, strict=True
        ):
            if error:
                continue
            before = own.setdefault(digest.tobytes(), (path, label))
            if before[1] != label:
                disputed.append((before[0], path))
            learnt = firsts[known.folder.train.name].get(digest.tobytes())
            if part is not known.folder.train and learnt is not None:
                repeated.append((learnt[0], path))
    found = known.findings[known.folder.train.name]
    return Checked(known, known.unreadable(), repeated, disputed, *found.statistics(found.readable))
