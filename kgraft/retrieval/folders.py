"""Folders of photographs that say who is on them: Market-1501's and DukeMTMC's, and any other.

| layout | learn from | queries | gallery | who, and on which camera |
|---|---|---|---|---|
| Market-1501 | `bounding_box_train` | `query` | `bounding_box_test` | `0002_c1s1_000451_03.jpg` |
| DukeMTMC-reID | the same | the same | the same | `0005_c2_f0046985.jpg` |
| any other | `train` | `query` | `gallery` | a folder an identity; cameras by an expression |

In the first two only `*.jpg` count; identity -1 is junk and 0000 a distractor, which is nobody's.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kgraft.data.decode import SUFFIXES
from kgraft.data.folder import files_below, folders_in, rank
from kgraft.errors import UserError
from kgraft.files import is_directory
from kgraft.retrieval.evaluation import JUNK

_BOXES = ("bounding_box_train", "query", "bounding_box_test")
_PLAIN = ("train", "query", "gallery")
_NAME = re.compile(r"(-?\d+)_c(\d+)(s\d+|_f\d+)?")

MARKET, DUKE, OTHER = "Market-1501", "DukeMTMC-reID", "folders"

PUBLISHED: Mapping[str, tuple[tuple[int, int], ...]] = {
    MARKET: ((12_936, 751), (3_368, 750), (19_732, 752)),
    DUKE: ((16_522, 702), (2_228, 702), (17_661, 1_110)),
}
"""Images and identities to learn from, of the queries, and of the gallery.

Zheng et al., ICCV 2015: the gallery has the queries' 750, 0000 and -1. Zheng et al., ICCV 2017 (the
gallery has 408 more).
"""


@dataclass(frozen=True, eq=False)
class Shown:
    """Photographs of one part, and who is on them.

    Attributes:
        name: The folder.
        paths: Below the root, with forward slashes, in an order that is shuffled once for all.
        identities: Who is on each, int64 `(n,)`; -1 for junk.
        cameras: Which camera took each, int64 `(n,)`; None where nobody says.
    """

    name: str
    paths: tuple[str, ...]
    identities: np.ndarray
    cameras: np.ndarray | None

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def people(self) -> np.ndarray:
        """The different identities, ascending."""
        return np.unique(self.identities)

    def only(self, which: np.ndarray) -> "Shown":
        """Some of them.

        Args:
            which: Which, bool `(n,)`.
        """
        paths = tuple(path for path, own in zip(self.paths, which, strict=True) if own)
        cameras = None if self.cameras is None else self.cameras[which]
        return Shown(self.name, paths, self.identities[which], cameras)


@dataclass(frozen=True, eq=False)
class IdentityFolder:
    """A folder of photographs of identities, of which those of the training are not searched for.

    Attributes:
        root: The folder.
        layout: One of the module's table.
        names: The training identities, sorted.
        train: What to learn from; `identities` are numbers of `names`.
        query: What is looked for.
        gallery: What is searched.
        others: How many files are not among them.
    """

    root: Path
    layout: str
    names: tuple[str, ...]
    train: Shown
    query: Shown
    gallery: Shown
    others: int

    @property
    def parts(self) -> tuple[Shown, Shown, Shown]:
        """All three."""
        return self.train, self.query, self.gallery

    def unmatched(self) -> list[str]:
        """Paths of the queries of whose identity the gallery has nothing by another camera."""
        query, gallery = self.query, self.gallery
        seen: dict[int, set[int | None]] = {}
        for who, camera in zip(gallery.identities.tolist(), _cameras(gallery), strict=True):
            seen.setdefault(who, set()).add(camera)
        return sorted(
            path
            for path, who, camera in zip(
                query.paths, query.identities.tolist(), _cameras(query), strict=True
            )
            if who == JUNK or not seen.get(who, set()) - ({camera} if camera is not None else set())
        )

    def differences(self) -> list[str]:
        """What is not as published, a line each; none for a layout that nobody has published."""
        found = []
        for part, (images, identities) in zip(
            self.parts, PUBLISHED.get(self.layout, ()), strict=False
        ):
            for what, own, expected in (
                ("images", len(part), images),
                ("identities", len(part.people), identities),
            ):
                if own != expected:
                    found.append(f"{part.name}: {own:,} {what}, {self.layout} has {expected:,}")
        return found


def has_identities(root: Path) -> bool:
    """Whether a folder is one of identities, and not one of classes; parts of it may be missing.

    Args:
        root: The folder.
    """
    names = {name.lower() for name in _names_in(root)}
    return bool(names & {_BOXES[0], _BOXES[2]}) or (
        _PLAIN[0] in names and bool(names & {*_PLAIN[1:]})
    )


def read_identities(root: str | Path, *, camera: str | None = None) -> IdentityFolder:
    """Look for photographs of identities in a folder, see the module's table.

    Args:
        root: The folder.
        camera: In folders of identities, a regular expression whose only group is the camera,
            looked for in the files' names, e.g. `"cam([0-9]+)"`; None where there are no cameras.

    Raises:
        UserError: a part is missing or empty, a name says no identity or no camera, `camera` is no
            such expression, or there are fewer than two identities to learn from.
    """
    root = Path(root)
    if not is_directory(root):
        raise UserError(f"{root} is no folder.")
    names = _names_in(root)
    boxed = bool({name.lower() for name in names} & {_BOXES[0], _BOXES[2]})
    wanted = _BOXES if boxed else _PLAIN
    if missing := [name for name in wanted if name not in names]:
        other = [name for name in names if name.lower() in missing]
        there = f" (but {', '.join(other)}: rename)" if other else ""
        raise UserError(
            f"{root} has no {' and no '.join(missing)}{there}: expected {', '.join(wanted)} in it."
        )
    if boxed and camera is not None:
        raise UserError(f"camera {camera!r}: the names in {root} say the cameras. Take that out.")
    return _boxes(root) if boxed else _plain(root, camera)


def _names_in(root: Path) -> list[str]:
    return [own.name for own in folders_in(root)] if is_directory(root) else []


def _cameras(part: Shown) -> list[int | None]:
    return [None] * len(part) if part.cameras is None else part.cameras.tolist()


def _boxes(root: Path) -> IdentityFolder:
    parts, others, layout = [], 0, MARKET
    for name in _BOXES:
        files = sorted(files_below(root / name))
        images = [own for own in files if own.endswith(".jpg")]
        others += len(files) - len(images)
        who, cameras = [], []
        for own in images:
            said = _NAME.match(own.rpartition("/")[2])
            if said is None:
                raise UserError(
                    f"{root / name / own}: the name says no identity and camera; expected one like "
                    "0002_c1s1_000451_03.jpg."
                )
            layout = DUKE if (said[3] or "").startswith("_f") else layout
            who.append(int(said[1]))
            cameras.append(int(said[2]))
        parts.append(_shown(root, name, images, who, cameras))
    train = parts[0].only(parts[0].identities != JUNK)
    return _numbered(root, layout, train, parts[1], parts[2], others, "{:04d}".format)


def _plain(root: Path, camera: str | None) -> IdentityFolder:
    expression = None if camera is None else _expression(camera)
    known: dict[str, dict[str, int]] = {"identities": {}, "cameras": {}}
    parts, others = [], 0
    names = {part: [own.name for own in folders_in(root / part)] for part in _PLAIN}
    for name in sorted({own for part in _PLAIN for own in names[part]}):
        known["identities"][name] = JUNK if name == str(JUNK) else len(known["identities"])
    for part in _PLAIN:
        images, who, cameras = [], [], []
        for name in names[part]:
            for own in sorted(files_below(root / part / name)):
                if not own.lower().endswith(SUFFIXES):
                    others += 1
                    continue
                images.append(f"{name}/{own}")
                who.append(known["identities"][name])
                if expression is not None:
                    said = expression.search(own.rpartition("/")[2])
                    if said is None:
                        raise UserError(
                            f"{root / part / name / own}: the name has nothing like {camera!r}, "
                            "which says the camera."
                        )
                    cameras.append(known["cameras"].setdefault(said[1], len(known["cameras"])))
        parts.append(_shown(root, part, images, who, cameras if expression is not None else None))
    by_number = {number: name for name, number in known["identities"].items()}
    train, query, gallery = parts
    return _numbered(root, OTHER, train, query, gallery, others, by_number.__getitem__)


def _numbered(
    root: Path,
    layout: str,
    train: Shown,
    query: Shown,
    gallery: Shown,
    others: int,
    named: Callable[[int], str],
) -> IdentityFolder:
    """The whole, with the training identities counted from 0."""
    people, labels = np.unique(train.identities, return_inverse=True)
    if len(people) < 2:
        raise UserError(
            f"{root / train.name} shows {len(people)} identities: expected two or more."
        )
    names = tuple(map(named, people.tolist()))
    train = Shown(train.name, train.paths, labels.astype(np.int64), train.cameras)
    return IdentityFolder(root, layout, names, train, query, gallery, others)


def _shown(
    root: Path, name: str, images: Sequence[str], who: list[int], cameras: list[int] | None
) -> Shown:
    if not images:
        raise UserError(f"{root / name} holds no image.")
    paths = [f"{name}/{own}" for own in images]
    order = sorted(range(len(paths)), key=lambda k: rank(paths[k]))
    return Shown(
        name,
        tuple(paths[k] for k in order),
        np.array(who, np.int64)[order],
        None if cameras is None else np.array(cameras, np.int64)[order],
    )


def _expression(camera: str) -> re.Pattern[str]:
    try:
        found = re.compile(camera)
    except re.error as error:
        raise UserError(f"camera {camera!r} is no regular expression: {error}.") from None
    if found.groups != 1:
        raise UserError(f"camera {camera!r} has {found.groups} groups: expected one, the camera.")
    return found
