"""Stores: small values by key that all ranks of a link see, and by which they agree."""

import contextlib
import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from kgraft.errors import StorageError, UserError

PART = 1 << 21
"""Bytes of one value: TCPStore takes 8 MiB at most, gRPC, which carries jax' values, 4."""


class Store(Protocol):
    """What a link needs of whatever lies between its ranks.

    Attributes:
        where: what it is called in logs and errors.
    """

    where: str

    def set(self, key: str, value: bytes) -> None:
        """Give a key a value of at most `PART` bytes, in the place of another one if need be."""
        ...

    def first(self, key: str, value: str) -> str:
        """Give a key a value unless it has one; of several ranks that do so one is the first.

        Returns:
            The value that it has then, the same for all ranks.
        """
        ...

    def get(self, key: str) -> bytes | None:
        """The value of a key, None where it has none; nobody waits."""
        ...

    def get_all(self, keys: Sequence[str]) -> list[bytes]:
        """The values of keys that all have one."""
        ...

    def has(self, keys: Sequence[str]) -> bool:
        """Whether all of these have a value."""
        ...

    def delete(self, key: str) -> None:
        """Forget a key, also one that is not there."""
        ...

    def leave(self, all_ended: Callable[[], bool]) -> None:
        """This process is about to end; where it holds the store, others may still read in it.

        Args:
            all_ended: whether nobody does any more.
        """
        ...


class DirectoryStore:
    """A directory that all ranks reach: files on one machine, or a file system that hosts share.

    A value is written under another name and renamed; the first of several is the one whose hard
    link is made. No process has to outlive another.

    Args:
        directory: made where it is missing; for one training alone.

    Raises:
        StorageError: it cannot be made.
        UserError: it is a file.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.path = Path(directory)
        self.where = f"directory {self.path}"
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"link directory {self.path} is a file: expected a directory.")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{self.path} cannot be made: {error.strerror}.") from None

    def set(self, key: str, value: bytes) -> None:
        """See `Store`."""
        with self._written(value) as partial:
            partial.replace(self._file(key))

    def first(self, key: str, value: str) -> str:
        """See `Store`."""
        file = self._file(key)
        with self._written(value.encode()) as partial, contextlib.suppress(FileExistsError):
            os.link(partial, file)
        return file.read_text("utf-8")

    def get(self, key: str) -> bytes | None:
        """See `Store`."""
        try:
            return self._file(key).read_bytes()
        except FileNotFoundError:
            return None

    def get_all(self, keys: Sequence[str]) -> list[bytes]:
        """See `Store`."""
        return [self._file(key).read_bytes() for key in keys]

    def has(self, keys: Sequence[str]) -> bool:
        """See `Store`."""
        return all(self._file(key).exists() for key in keys)

    def leave(self, all_ended: Callable[[], bool]) -> None:
        """See `Store`: the files stay."""

    def delete(self, key: str) -> None:
        """See `Store`."""
        self._file(key).unlink(missing_ok=True)

    def _file(self, key: str) -> Path:
        return self.path / key.replace("/", "+")

    @contextlib.contextmanager
    def _written(self, value: bytes):  # type: ignore[no-untyped-def]
        partial = self.path / f".{secrets.token_hex(8)}"
        try:
            try:
                partial.write_bytes(value)
                yield partial
            finally:
                partial.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"{self.where} cannot be written: {error.strerror}.") from None


def put(store: Store, key: str, content: bytes) -> None:
    """Give a key a value of any size, in parts; whoever finds the key finds all of it.

    Args:
        store: where.
        key: which.
        content: the value.
    """
    parts = [content[start : start + PART - 1] for start in range(0, len(content), PART - 1)]
    if len(parts) <= 1:
        store.set(key, b"0" + content)
        return
    for number, part in enumerate(parts):
        store.set(f"{key}/{number}", part)
    store.set(key, b"%d" % len(parts))


def taken(store: Store, keys: Sequence[str]) -> list[bytes]:
    """What `put` gave keys that all have a value.

    Args:
        store: where.
        keys: which.
    """
    found = []
    for key, head in zip(keys, store.get_all(keys), strict=True):
        if head[:1] == b"0":
            found.append(head[1:])
        else:
            names = [f"{key}/{number}" for number in range(int(head))]
            found.append(b"".join(store.get_all(names)))
    return found


def drop(store: Store, key: str) -> None:
    """Forget what `put` gave a key.

    Args:
        store: where.
        key: which.
    """
    head = store.get(key)
    store.delete(key)
    if head is not None and head[:1] != b"0":
        for number in range(int(head)):
            store.delete(f"{key}/{number}")
