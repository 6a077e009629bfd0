"""A folder of photographs, a folder a class: what is in it, and which part is for what."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kgraft.data.decode import SUFFIXES
from kgraft.errors import UserError, suggest
from kgraft.files import is_directory

_TRAIN, _VALIDATION, _TEST = "train", ("val", "valid", "validation"), "test"


@dataclass(frozen=True, eq=False)
class Part:
    """Files of one part of a folder.

    Attributes:
        name: The folder that the classes lie in, `""` for the root.
        paths: Below the root, with forward slashes, in an order that is shuffled once for all, and
            stays when files come or go.
        labels: Class numbers, int64 `(n,)`.
    """

    name: str
    paths: tuple[str, ...]
    labels: np.ndarray


@dataclass(frozen=True, eq=False)
class Folder:
    """A folder of photographs.

    Attributes:
        root: The folder.
        class_names: Names of the class folders, sorted.
        train: What to learn from.
        validation: `val` or `validation`, where there is a `test` beside it; else None.
        test: `test`, or `val` or `validation` alone; None where the classes lie in the root.
        others: How many files are no images by their names.
    """

    root: Path
    class_names: tuple[str, ...]
    train: Part
    validation: Part | None
    test: Part | None
    others: int

    @property
    def parts(self) -> list[Part]:
        """All parts that there are."""
        return [part for part in (self.train, self.validation, self.test) if part is not None]


def read_folder(root: Path) -> Folder:
    """Look for photographs in a folder.

    Either the root holds `train` and beside it `test`, `val` or `validation`, each with a folder a
    class; or it holds the folders of the classes itself. Photographs may lie deeper in their class'
    folder; names that begin with a dot are passed over.

    Args:
        root: The folder.

    Raises:
        UserError: there is no such folder, no class or only one, a class without photographs, or
            one that the training part does not have.
    """
    if not is_directory(root):
        raise UserError(f"{root} is no folder.")
    folders = {own.name: own for own in folders_in(root)}
    if _TRAIN not in folders:
        if alone := [name for name in (*_VALIDATION, _TEST) if name in folders]:
            raise UserError(
                f"{root} holds {', '.join(alone)} and no {_TRAIN}: expected {_TRAIN} beside it, or "
                "a folder a class."
            )
        names, train, others = _read(root, root, None)
        return Folder(root, names, train, None, None, others)
    names, train, others = _read(root, folders[_TRAIN], None)
    found: dict[str, Part] = {}
    for name in (*_VALIDATION, _TEST):
        if name in folders:
            _, found[name], more = _read(root, folders[name], names)
            others += more
    held_out = [found[name] for name in _VALIDATION if name in found]
    if len(held_out) > 1:
        both = " and ".join(part.name for part in held_out)
        raise UserError(f"{root} holds {both}: expected one of them.")
    if not found:
        raise UserError(f"{root} holds {_TRAIN} alone: expected test, val or validation beside it.")
    test = found.get(_TEST)
    if test is None:
        return Folder(root, names, train, None, held_out[0], others)
    return Folder(root, names, train, held_out[0] if held_out else None, test, others)


def _read(
    root: Path, folder: Path, known: tuple[str, ...] | None
) -> tuple[tuple[str, ...], Part, int]:
    """The classes in a folder, their files, and how many others there are."""
    classes = [own.name for own in folders_in(folder)]
    if known is None and len(classes) < 2:
        count = f"{len(classes)} folder{'s' * (len(classes) != 1)}"
        raise UserError(f"{folder} holds {count}: expected a folder a class, of two or more.")
    for name in classes:
        if known is not None and name not in known:
            raise UserError(f"{folder / name} is no class of {_TRAIN}." + suggest(name, known))
    names = tuple(classes) if known is None else known
    paths, labels, others = [], [], 0
    for name in classes:
        own = sorted(files_below(folder / name))
        images = [path for path in own if path.lower().endswith(SUFFIXES)]
        others += len(own) - len(images)
        if not images and known is None:
            raise UserError(f"{folder / name} holds no image: expected {', '.join(SUFFIXES)}.")
        start = (folder / name).relative_to(root).as_posix()
        paths += [f"{start}/{path}" for path in images]
        labels += [names.index(name)] * len(images)
    if not paths:
        raise UserError(f"{folder} holds no image: expected a folder a class.")
    order = sorted(range(len(paths)), key=lambda k: rank(paths[k]))
    part = Part(
        folder.relative_to(root).as_posix().strip("."),
        tuple(paths[k] for k in order),
        np.array(labels, np.int64)[order],
    )
    return names, part, others


def rank(path: str) -> bytes:
    """A file's place among others, whichever they are.

    Args:
        path: Of the file, below the root.
    """
    return hashlib.sha256(path.encode(errors="surrogateescape")).digest()


def folders_in(root: Path) -> list[Path]:
    """The folders in one, sorted by name, and those that links lead to.

    Args:
        root: The folder; names that begin with a dot are passed over.
    """
    return sorted(own for own in root.iterdir() if own.is_dir() and not own.name.startswith("."))


def files_below(root: Path) -> Iterator[str]:
    """Paths of all files below a folder, relative, with forward slashes.

    Args:
        root: The folder; names that begin with a dot are passed over.
    """
    for where, folders, files in os.walk(root, followlinks=True):
        folders[:] = sorted(own for own in folders if not own.startswith("."))
        start = Path(where).relative_to(root)
        for own in files:
            if not own.startswith("."):
                yield (start / own).as_posix()
