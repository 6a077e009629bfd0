"""Files that are whole or not there at all, and directories that one process writes to."""

import contextlib
import logging
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import filelock

from kgraft.errors import StorageError, UserError

_log = logging.getLogger("kgraft")

_LOCAL = {"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "tmpfs"}

_PARTIAL = re.compile(r"\..+\.\d+(\.\w+)?")  # of `whole`: name, process, suffix

MOST_TEXT = 1 << 24
"""Bytes of a text file that is read whole: run files and a run's JSON have some thousands."""


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary name for a file, which has its own name only once it is whole.

    Args:
        path: the file; another one of this name is replaced.

    Yields:
        A name with the same suffix in the same directory, to be written to. When the block ends it
        is flushed to the disk and renamed; after an error nothing is left of it.

    Raises:
        StorageError: it cannot be written.
    """
    if path.exists() and not path.is_file():  # /dev/stdout
        with storing(path):
            yield path
        return
    partial = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    with storing(path):
        partial.unlink(missing_ok=True)  # a link that somebody has put there leads elsewhere
        try:
            yield partial
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def sweep(directory: Path) -> None:
    """Remove what killed processes were writing when they ended, see `whole`.

    Args:
        directory: what lies in it and below; nobody else may be writing there.

    Raises:
        StorageError: something cannot be removed.
    """
    with storing(directory):
        for path in directory.rglob(".*"):
            if _PARTIAL.fullmatch(path.name) and path.is_file() and not path.is_symlink():
                path.unlink()


def check_place(path: Path) -> None:
    """Refuse a name that no file can have, before there is anything to write.

    Args:
        path: the file.

    Raises:
        UserError: it is a directory, or what it lies in is none.
    """
    if path.is_dir():
        raise UserError(f"{path} is a directory; expected a file.")
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no directory {path.parent}.")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file, see `whole`.

    Args:
        path: the file.
        content: what will be in it.

    Raises:
        StorageError: it cannot be written.
    """
    with whole(path) as partial:
        partial.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a whole file of UTF-8 text, see `whole`.

    Args:
        path: the file.
        text: what will be in it.

    Raises:
        StorageError: it cannot be written.
    """
    write_bytes(path, text.encode())


@dataclass(frozen=True)
class Kept:
    """The beginning of a file that stays.

    Attributes:
        size: bytes.
        checksum: CRC-32 of these.
    """

    size: int = 0
    checksum: int = 0

    def check(self, path: Path) -> None:
        """Refuse a file that does not begin so.

        Args:
            path: the file.

        Raises:
            UserError: it is gone, shorter, or another.
            StorageError: it cannot be read.
        """
        with storing(path):
            found, left = 0, self.size
            with path.open("rb") if path.is_file() else BytesIO() as file:
                while left and (part := file.read(min(left, 1 << 20))):
                    found, left = zlib.crc32(part, found), left - len(part)
        if left and not path.exists():
            raise UserError(f"{path} is gone; put back what was there.")
        if left:
            raise UserError(
                f"{path} has {self.size - left:,} bytes and had at least {self.size:,}: somebody "
                "has cut it off; put back what was there."
            )
        if found != self.checksum:
            raise UserError(
                f"{path} is not as it was written: somebody has changed it; put back what was "
                "there."
            )


def append_text(path: Path, text: str, after: Kept) -> Kept:
    """Write text behind the beginning of a file, on the disk when it returns: all or nothing.

    Args:
        path: the file; made where it is missing.
        text: whole lines.
        after: what stays; what follows it is cut off.

    Returns:
        What stays next time.

    Raises:
        StorageError: it cannot be written, and is as before; it has fewer bytes than stay.
    """
    content = text.encode()
    with storing(path), path.open("a+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        if size < after.size:
            raise StorageError(
                f"{path} has {size:,} bytes and had at least {after.size:,}: somebody has cut it "
                "off."
            )
        file.truncate(after.size)
        left = memoryview(content)
        try:
            while left:
                left = left[file.write(left) :]
        except OSError:
            file.truncate(after.size)
            raise
        os.fsync(file.fileno())
    return Kept(after.size + len(content), zlib.crc32(content, after.checksum))


def is_file(path: Path) -> bool:
    """Whether there is a file of this name, also where none can have it."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long a name, a NUL in it
        return False


def is_directory(path: Path) -> bool:
    """Whether there is a directory of this name, also where none can have it."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def read_text(path: Path, most: int = MOST_TEXT) -> str:
    """The UTF-8 text of a file, which may be of any kind and from anybody.

    Args:
        path: the file.
        most: how many bytes it may have; no more are read, also of one that never ends.

    Raises:
        OSError: it cannot be read.
        ValueError: it is longer, no UTF-8, or has no name that a file can have.
    """
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it has more than {most:,} bytes")
    return content.decode("utf-8")


def check_plain(directory: Path) -> None:
    """Refuse a directory in which something leads elsewhere, before anything is written to it.

    Through a link in a directory that somebody else has packed, a file elsewhere would be written
    or cut off; a pipe would never answer.

    Args:
        directory: whose files and folders are looked at, to any depth.

    Raises:
        UserError: names the first that is neither a file nor a folder.
    """
    for folder, folders, files in os.walk(directory):
        for path in (Path(folder) / name for name in sorted([*folders, *files])):
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                what = "a symbolic link" if path.is_symlink() else "no ordinary file"
                raise UserError(
                    f"{path} is {what}: nothing is written to a run's directory that has such; "
                    "copy it (cp -rL) and take the copy."
                )


@contextlib.contextmanager
def storing(path: Path) -> Iterator[None]:
    """Say in one line what the machine could not do.

    Args:
        path: what is written.

    Raises:
        StorageError: the block has met an operating system's error.
    """
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror or error}.") from None


@contextlib.contextmanager
def only_writer(directory: Path, instead: str = "another --out") -> Iterator[None]:
    """Keep a directory to this process while the block runs.

    The lock is the operating system's and ends with the process, however that ends; the empty file
    `.lock` that it hangs on stays. Where there is no such lock (some network file systems), a
    warning says so.

    Args:
        directory: made where it is missing.
        instead: what whoever is refused may give.

    Raises:
        UserError: another process has it.
        StorageError: it cannot be made.
    """
    with storing(directory):
        directory.mkdir(parents=True, exist_ok=True)
    with storing(directory / ".lock"):
        (directory / ".lock").touch()
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(filelock.FileLock(directory / ".lock").acquire(blocking=False))
        except filelock.Timeout:
            raise UserError(
                f"another process is training in {directory}: wait for it, or give {instead}."
            ) from None
        except (OSError, NotImplementedError) as error:
            reason = getattr(error, "strerror", None) or error
            _log.warning(
                "%s is not locked (%s): let no second process train in it.", directory, reason
            )
        yield


def has_writer(directory: Path) -> bool | None:
    """Whether a process keeps a directory by `only_writer`.

    The kernel's list of locks is read: whoever tries a lock has it for an instant, in which a
    process that begins to train there would be refused.

    Args:
        directory: which.

    Returns:
        None where the list says nothing: on other systems than Linux, or where processes may write
        to the directory that this machine does not know of, as on a network file system.
    """
    file = directory / ".lock"
    try:
        locks = Path("/proc/locks").read_text().split()
        mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        if file.exists() and any(own.endswith(f":{file.stat().st_ino}") for own in locks):
            return True
        device = directory.stat().st_dev
    except OSError:
        return None
    place = f"{os.major(device)}:{os.minor(device)}"
    kinds = {own[own.index("-") + 1] for own in mounts if own[2] == place}
    return False if kinds and kinds <= _LOCAL else None
