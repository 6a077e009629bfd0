"""Sets of photographs of identities: some to learn from, others to look for."""

from pathlib import Path

import numpy as np

from kgraft.data import Dataset, Files, OpenSet, Photos, Split
from kgraft.data.examine import Findings
from kgraft.data.order import with_validation
from kgraft.data.photo_sets import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Unreadable,
    examine_parts,
    refuse_unreadable,
)
from kgraft.errors import UserError
from kgraft.retrieval.folders import IdentityFolder, read_identities
from kgraft.settings import argument


def load_identities(
    root: str | Path,
    indexes: str | Path,
    *,
    size: tuple[int, int] = (256, 128),
    camera: str | None = None,
    limit_train: int | None = None,
    validation: float | None = None,
    seed: int = 0,
    unreadable: Unreadable = "refuse",
    workers: int | None = None,
) -> Dataset:
    """A folder of photographs of identities as a data set.

    Args:
        root: The folder, see `read_identities`.
        indexes: Where what was found in its files is kept.
        size: Rows and columns of the images that are seen, pixels.
        camera: See `read_identities`.
        limit_train: Only so many training images, in an order that is shuffled once for all.
        validation: What is taken from the training images for validation: a share of every
            identity's, or a whole number of images; None for a tenth.
        seed: Which images these are.
        unreadable: `"skip"` leaves out files that cannot be read.
        workers: Threads that decode; as many as there are cores by default.

    Returns:
        Images to learn from, identities as classes; and to test on, the queries and then the
        gallery, see `OpenSet`.

    Raises:
        UserError: see `read_identities`; files cannot be read, and are not to be skipped; an
            argument is out of range.
    """
    root, indexes = Path(root), Path(indexes)
    argument("limit_train", limit_train, int | None, low=1)
    argument("unreadable", unreadable, Unreadable)
    argument("workers", workers, int | None, low=1)
    if not (isinstance(size, tuple | list) and len(size) == 2 and min(size) >= 1):
        raise UserError(f"size {size}: expected rows and columns, two numbers from 1 on.")
    folder = read_identities(root, camera=camera)
    check_searchable(folder)
    parts = {part.name: part.paths for part in folder.parts}
    found = examine_parts(root, parts, indexes, workers=workers)
    refuse_unreadable(root, unreadable_of(folder, found), unreadable)
    train, query, gallery = (part.only(found[part.name].readable) for part in folder.parts)
    paths = (*query.paths, *gallery.paths)
    people = np.concatenate([query.identities, gallery.identities])
    cameras = (
        None
        if query.cameras is None or gallery.cameras is None
        else np.concatenate([query.cameras, gallery.cameras])
    )
    if not len(query) or not len(gallery):
        raise UserError(f"{root}: of the queries or of the gallery nothing can be read.")
    whole = Dataset(
        name=root.name or str(root),
        train=Split(Photos.of(Files(root, train.paths), size), train.identities).first(limit_train),
        validation=None,
        test=Split(Photos.of(Files(root, paths), size), people),
        classes=len(folder.names),
        class_names=folder.names,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        source=str(root),
        licence="not stated",
        open_set=OpenSet(people, cameras, len(query)),
    )
    return with_validation(whole, validation, seed=seed)


def check_searchable(folder: IdentityFolder) -> None:
    """Refuse a gallery in which no query can find anything.

    Args:
        folder: The folder.

    Raises:
        UserError: there is no query with its identity in the gallery.
    """
    if len(folder.unmatched()) == len(folder.query):
        by = "" if folder.query.cameras is None else " by another camera"
        raise UserError(
            f"{folder.root}: of no query is anything to be found: {folder.gallery.name} has no "
            f"image of its identity{by}."
        )


def unreadable_of(folder: IdentityFolder, found: dict[str, Findings]) -> list[tuple[str, str]]:
    """Paths of files that cannot be read, and why.

    Args:
        folder: The folder.
        found: By the names of its parts, what was found in their files.
    """
    return [
        (path, error)
        for part in folder.parts
        for path, error in zip(part.paths, found[part.name].errors, strict=True)
        if error
    ]
