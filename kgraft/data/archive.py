"""Archives in the layout of the CIFAR sets' binary versions: downloaded, checked, read.

Nothing is extracted: the members are read by name, into memory, after their sizes are checked.
"""

import gzip
import hashlib
import http.client
import io
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kgraft.errors import UserError
from kgraft.files import is_directory, is_file

_DOWNLOAD_TIMEOUT = 60  # seconds without a byte
_LONGEST_NAME_LIST = 65536  # bytes
_OTHER_CONTENTS = 1 << 24  # bytes of headers and a readme beside the members, unpacked


@dataclass(frozen=True)
class Member:
    """A file of records: the labels of an image, one byte each, then its pixels, plane by plane.

    Attributes:
        file: Its name in the archive's folder.
        split: The split that its images belong to, in the order of the members.
        images: Number of its records.
    """

    file: str
    split: str
    images: int


@dataclass(frozen=True)
class LabelColumn:
    """One label of every image.

    Attributes:
        feature: Name of the label.
        file: List of the class names in the archive's folder, one a line.
        classes: Number of classes.
    """

    feature: str
    file: str
    classes: int


@dataclass(frozen=True)
class ArchiveSpec:
    """What a published archive is and holds.

    Attributes:
        name: kgraft's name of the set.
        title: Name of the set for readers.
        file: File name of the archive.
        url: Where it is published.
        size: Its size in bytes.
        md5: Its MD5 checksum, as its owners publish it.
        sha256: Its SHA-256 checksum, as TensorFlow Datasets publishes it.
        folder: The folder in the archive that holds the members.
        members: The files of records.
        labels: The labels of a record, in the order of their bytes.
        shape: Height, width and channels of an image.
    """

    name: str
    title: str
    file: str
    url: str
    size: int
    md5: str
    sha256: str
    folder: str
    members: tuple[Member, ...]
    labels: tuple[LabelColumn, ...]
    shape: tuple[int, int, int] = (32, 32, 3)

    @property
    def record_bytes(self) -> int:
        """Bytes of one image with its labels."""
        return len(self.labels) + int(np.prod(self.shape))

    def count(self, split: str) -> int:
        """Number of images in a split."""
        return sum(member.images for member in self.members if member.split == split)


@dataclass(frozen=True, eq=False)
class Contents:
    """What an archive held, checked against its `ArchiveSpec`.

    Attributes:
        images: Of each split, uint8 `(n, height, width, channels)`, in the published order.
        labels: Of each split, uint8 `(n, columns)`, columns in the order of the spec's.
        class_names: Of each label column, in label order.
        sha256: Checksum of the archive's file.
    """

    images: Mapping[str, np.ndarray]
    labels: Mapping[str, np.ndarray]
    class_names: Mapping[str, tuple[str, ...]]
    sha256: str


def download(spec: ArchiveSpec, folder: Path) -> Path:
    """Fetch the published archive and hold it against its published size and checksums.

    Args:
        spec: What to fetch.
        folder: Where to put it; the folder exists.

    Returns:
        Path of the archive.

    Raises:
        UserError: it cannot be fetched, or is not the published one.
    """
    path = folder / spec.file
    instead = f"Or take it from a path: kgraft data prepare {spec.name} --archive PATH."
    try:
        with urllib.request.urlopen(spec.url, timeout=_DOWNLOAD_TIMEOUT) as response:
            content = response.read(spec.size + 1)  # whatever is sent, no more than this
        path.write_bytes(content)
    except (OSError, http.client.HTTPException) as problem:
        if isinstance(problem, urllib.error.HTTPError):
            problem.close()  # it holds the connection
        reason = " ".join(str(problem).split())
        raise UserError(
            f"{spec.title}: {spec.url} cannot be fetched: {reason}. {instead}"
        ) from None
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    sha256 = hashlib.sha256(content).hexdigest()
    if (len(content), md5, sha256) != (spec.size, spec.md5, spec.sha256):
        raise UserError(
            f"{spec.title}: {spec.url} gave {len(content)} bytes with md5 {md5}; expected "
            f"{spec.size} bytes with md5 {spec.md5}. {instead}"
        )
    return path


def read_archive(path: Path, spec: ArchiveSpec) -> Contents:
    """Read an archive after holding its members against their exact sizes.

    The archive is read to its end, so that a truncated or damaged one is noticed wherever it is.

    Args:
        path: The archive, a gzip-compressed tar file.
        spec: What it has to hold.

    Returns:
        Images, labels and class names, and the file's checksum.

    Raises:
        UserError: the archive is missing, truncated, damaged or not the expected one.
    """
    if not is_file(path):
        folder = is_directory(path)
        what = "is a directory; expected the archive's file" if folder else "no such file"
        raise UserError(
            f"archive {path}: {what}. Without --archive, kgraft data prepare {spec.name} "
            f"downloads {spec.file}."
        )
    raw = _members(path, spec)
    names = {
        column.feature: _class_names(path, spec, column, raw[f"{spec.folder}/{column.file}"])
        for column in spec.labels
    }
    images: dict[str, list[np.ndarray]] = {}
    labels: dict[str, list[np.ndarray]] = {}
    height, width, channels = spec.shape
    for member in spec.members:
        content = raw.pop(f"{spec.folder}/{member.file}")
        records = np.frombuffer(content, np.uint8).reshape(member.images, spec.record_bytes)
        of_member, planes = np.split(records, [len(spec.labels)], axis=1)
        _check_labels(path, spec, member, of_member)
        pixels = planes.reshape(-1, channels, height, width).transpose(0, 2, 3, 1)
        images.setdefault(member.split, []).append(pixels)
        labels.setdefault(member.split, []).append(of_member)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return Contents(
        {split: np.concatenate(parts) for split, parts in images.items()},
        {split: np.concatenate(parts) for split, parts in labels.items()},
        names,
        sha256,
    )


def _members(path: Path, spec: ArchiveSpec) -> dict[str, bytes]:
    """The contents of every expected member, by its name in the archive."""
    sizes = {f"{spec.folder}/{m.file}": m.images * spec.record_bytes for m in spec.members}
    lists = {f"{spec.folder}/{column.file}" for column in spec.labels}
    found: dict[str, bytes] = {}
    others: list[str] = []
    try:
        most = sum(sizes.values()) + len(lists) * _LONGEST_NAME_LIST + _OTHER_CONTENTS
        with (
            gzip.open(path) as unpacked,
            _Bounded(unpacked, most) as stream,
            tarfile.open(fileobj=stream, mode="r|") as archive,
        ):
            for entry in archive:
                name = entry.name.removeprefix("./")
                file = archive.extractfile(entry) if entry.isreg() else None
                if file is None or name not in sizes.keys() | lists:
                    others.append(name)
                    continue
                if name in sizes and entry.size != sizes[name]:
                    raise UserError(
                        f"archive {path}: {name} has {entry.size} bytes; expected {sizes[name]}, "
                        f"as in {spec.file}."
                    )
                if entry.size > _LONGEST_NAME_LIST and name in lists:
                    raise UserError(
                        f"archive {path}: {name} has {entry.size} bytes; expected a short list of "
                        "class names."
                    )
                found[name] = file.read()
            while stream.read(1 << 20):  # to the end, where gzip keeps its checksum
                pass
    except UserError:
        raise
    except _TooLong:
        raise UserError(
            f"archive {path} unpacks to more than {most:,} bytes; expected {spec.file}, which has "
            "less."
        ) from None
    except EOFError:
        raise UserError(
            f"archive {path} is truncated: it ends after {path.stat().st_size} bytes, in the "
            f"middle of its contents; expected {spec.file}, whole."
        ) from None
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, ValueError, RecursionError):
        raise UserError(
            f"archive {path} is damaged or no gzip-compressed tar archive; expected {spec.file}, "
            f"as {spec.url} publishes it."
        ) from None
    except OSError as problem:
        raise UserError(f"archive {path} cannot be read: {problem.strerror}.") from None
    missing = sorted((sizes.keys() | lists) - found.keys())
    if missing:
        held = ", ".join(sorted([*found, *others])[:3]) or "nothing"
        raise UserError(
            f"archive {path} has no {missing[0]}: it is not {spec.file}; it holds {held}."
        )
    return found


class _TooLong(Exception):
    """A stream that goes on."""


class _Bounded(io.RawIOBase):
    """What is read of a stream up to a number of bytes, and no more.

    Whatever a packed archive says of itself, a header's length too, it cannot unpack to more.
    """

    def __init__(self, stream: gzip.GzipFile, most: int) -> None:
        super().__init__()
        self._stream, self._left = stream, most

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes.

        Raises:
            _TooLong: there are more than `most`.
        """
        asked = self._left + 1 if size < 0 else min(size, self._left + 1)
        content = self._stream.read(asked)
        self._left -= len(content)
        if self._left < 0:
            raise _TooLong
        return content


def _class_names(
    path: Path, spec: ArchiveSpec, column: LabelColumn, content: bytes
) -> tuple[str, ...]:
    names = tuple(content.decode("utf-8", "replace").split())
    if len(set(names)) != column.classes or len(names) != column.classes:
        raise UserError(
            f"archive {path}: {spec.folder}/{column.file} names {len(set(names))} classes; "
            f"expected {column.classes}."
        )
    return names


def _check_labels(path: Path, spec: ArchiveSpec, member: Member, labels: np.ndarray) -> None:
    for column, of_images in zip(spec.labels, labels.T, strict=True):
        if of_images.max(initial=0) >= column.classes:
            at = int(of_images.argmax())
            raise UserError(
                f"archive {path}: {spec.folder}/{member.file}: {column.feature} of image {at} is "
                f"{of_images[at]}; expected 0..{column.classes - 1}."
            )
