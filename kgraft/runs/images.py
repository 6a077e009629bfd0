"""Which images a run was trained and tested on, so that others in their place are noticed."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kgraft.data import Dataset, Photos, Split
from kgraft.errors import UserError
from kgraft.runs.directory import read_json
from kgraft.structure import fault

_NAMED = 20  # class names that are written out
_LIKE = {str: (str, None)}


def told(dataset: Dataset) -> dict[str, str | None]:
    """What a set is known by: its classes, and how many images each part has, with a checksum.

    The checksum is of the labels in their order, and of what photographs are called below their
    folder; not of pixels.

    Args:
        dataset: the images.

    Returns:
        `"classes"`, `"train"`, `"validation"` (None without one) and `"test"`, in words.
    """
    names = dataset.class_names
    shown = ", ".join(names) if len(names) <= _NAMED else _checksum("\0".join(names).encode())
    parts = {name: getattr(dataset, name) for name in ("train", "validation", "test")}
    return {
        "classes": f"{dataset.classes}: {shown}",
        **{name: None if own is None else _part(own, dataset) for name, own in parts.items()},
    }


def _part(split: Split, dataset: Dataset) -> str:
    found, photos = [split.labels.astype("<i8").tobytes()], split.images
    if isinstance(photos, Photos):
        paths = (photos.source.name(number) for number in photos.numbers.tolist())
        below = (path.removeprefix(dataset.source) for path in paths)
        found.append("\0".join(below).encode(errors="surrogateescape"))
    return f"{len(split)} images ({_checksum(b''.join(found))})"


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:8]


def check_same(path: Path, dataset: Dataset, parts: Sequence[str]) -> None:
    """Refuse images that are others than those that a run began with.

    Args:
        path: the run's directory; one of an earlier kgraft does not say which they were.
        dataset: the images that there are now.
        parts: which parts have to be the same, beside the classes.

    Raises:
        UserError: names the first difference.
    """
    file = path / "environment.json"
    began = read_json(file).get("images", {}) if file.is_file() else {}
    if wrong := fault(began, _LIKE):
        raise UserError(f"{file}: images: {wrong}.")
    now: dict[str, Any] = told(dataset)
    for key in ("classes", *parts):
        if key in began and began[key] != now[key]:
            what = "classes" if key == "classes" else f"{key} images"
            raise UserError(
                f"{path}: the {what} in {dataset.source} are others than when the run began: "
                f"{began[key]} then, {now[key]} now."
            )
