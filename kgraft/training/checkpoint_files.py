"""Checkpoints on disk: a directory an epoch, whole or not there, its contents held by checksums.

`epoch-000012/` has `arrays.safetensors`, every array by name, and `state.json`, all that is no
array, with the checksum of both. It is written under another name, flushed with its directory, and
renamed.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from kgraft.errors import StorageError
from kgraft.files import read_text, storing

_log = logging.getLogger("kgraft")

_ARRAYS, _STATE = "arrays.safetensors", "state.json"
_VERSION = 1
_MOST_STATE = 1 << 28  # bytes: records of a thousand epochs of 8 ResNet110 have 40 million


class DamagedError(Exception):
    """A checkpoint that is not what was written."""


@dataclass(frozen=True)
class CheckpointFiles:
    """The checkpoints in one directory, which one process writes to.

    Args:
        directory: where they lie, see `make`; where it vanishes, nothing is written any more.
        keep: how many of the newest stay.
    """

    directory: Path
    keep: int = 2

    def epochs(self) -> list[int]:
        """The epochs of which there is a checkpoint, damaged ones too, ascending."""
        found = self.directory.glob("epoch-*") if self.directory.is_dir() else ()
        numbers = [path.name.removeprefix("epoch-") for path in found if not path.is_symlink()]
        return sorted(int(number) for number in numbers if number.isdecimal())

    def make(self) -> None:
        """Make the directory, before the first one is written.

        Raises:
            StorageError: it cannot be made.
        """
        with storing(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)

    def write(self, epoch: int, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any]) -> None:
        """Write one, and remove those that are old.

        Args:
            epoch: whole epochs done.
            arrays: by name.
            state: JSON-able values, and NumPy arrays.

        Raises:
            StorageError: it cannot be written; the others are as before.
        """
        path = self._path(epoch)
        partial = self._hidden(f"partial-{epoch:06d}")
        with storing(path):
            _remove(partial)
            try:
                partial.mkdir()
                _write(partial, dict(arrays), state)
                if path.exists():  # a damaged one, or one of a training that went on elsewhere
                    path.replace(self._hidden(f"gone-{epoch:06d}"))
                partial.replace(path)
                _flush(self.directory)
            finally:
                self._sweep()
            whole = self.epochs()
            left = [other for other in whole if other > epoch]  # by a training that was set back
            for old in [*whole[: -self.keep - len(left)], *left]:
                self._path(old).replace(self._hidden(f"gone-{old:06d}"))
            self._sweep()

    def read(self, epoch: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """What was written of an epoch.

        Args:
            epoch: one of `epochs`.

        Returns:
            Arrays and state.

        Raises:
            DamagedError: it is not what was written; says why.
            StorageError: this process may not read it.
        """
        path = self._path(epoch)
        try:
            told = json.loads(read_text(path / _STATE, _MOST_STATE))
            if not (isinstance(told, dict) and told.get("checksum") == _checksum(told)):
                raise DamagedError(f"{_STATE} has changed")
            if told["version"] != _VERSION:
                raise DamagedError("another version of kgraft has written it")
            if _checksum_of(path / _ARRAYS) != told["arrays"]:
                raise DamagedError(f"{_ARRAYS} has changed")
            arrays, state = safetensors.numpy.load_file(path / _ARRAYS), told["state"]
        except (KeyError, TypeError):  # a value that is missing, numbers that NumPy does not have
            raise DamagedError(f"{_STATE} is not as kgraft writes it") from None
        except PermissionError as error:
            raise StorageError(f"{path} cannot be read: {error.strerror}.") from None
        except json.JSONDecodeError:
            raise DamagedError(f"{_STATE} is cut off, or has changed") from None
        except (OSError, ValueError, RecursionError, safetensors.SafetensorError) as error:
            raise DamagedError(str(getattr(error, "strerror", None) or error)) from None
        return arrays, state

    def whole(self) -> list[int]:
        """The epochs of which there is a checkpoint as it was written, ascending."""
        found = []
        for epoch in self.epochs():
            with contextlib.suppress(DamagedError):
                self.read(epoch)
                found.append(epoch)
        return found

    def newest(
        self, after: int = 0, among: Collection[int] | None = None
    ) -> tuple[int, dict[str, np.ndarray], dict[str, Any]] | None:
        """The newest one that is whole; a damaged one is named in the log.

        Args:
            after: an epoch; older ones are not looked at.
            among: which epochs are looked at; all by default.

        Returns:
            Epoch, arrays and state; None where there is none.
        """
        asked = [e for e in self.epochs() if e > after and (among is None or e in among)]
        for epoch in reversed(asked):
            try:
                return epoch, *self.read(epoch)
            except DamagedError as error:
                before = [other for other in asked if other < epoch]
                then = f"that of epoch {before[-1]} is used" if before else "it begins anew"
                _log.warning(
                    "the checkpoint %s is damaged (%s): %s.",
                    self._path(epoch),
                    error,
                    then,
                )
        return None

    def clear(self) -> None:
        """Remove all of them; the directory stays, somebody else may use it."""
        with storing(self.directory):
            for epoch in self.epochs():
                _remove(self._path(epoch))
            self._sweep()

    def _path(self, epoch: int) -> Path:
        return self.directory / f"epoch-{epoch:06d}"

    def _hidden(self, name: str) -> Path:
        return self.directory / f".{name}"

    def _sweep(self) -> None:
        """Remove what a killed writer may have left."""
        for name in ("partial", "gone"):
            for path in self.directory.glob(f".{name}-*"):
                _remove(path)


def _write(directory: Path, arrays: dict[str, np.ndarray], state: Mapping[str, Any]) -> None:
    try:
        safetensors.numpy.save_file(arrays, directory / _ARRAYS)
    except safetensors.SafetensorError as error:  # it writes by itself, and says so in words only
        found = re.search(r"(?:os error |code: )(\d+)", str(error))
        number = int(found[1]) if found else errno.EIO
        raise OSError(number, os.strerror(number)) from None
    told = {"version": _VERSION, "arrays": _checksum_of(directory / _ARRAYS), "state": dict(state)}
    told["checksum"] = _checksum(told)
    (directory / _STATE).write_text(json.dumps(told), encoding="utf-8")
    mode = (directory / _STATE).stat().st_mode  # safetensors' own is for this user's eyes alone
    (directory / _ARRAYS).chmod(stat.S_IMODE(mode))
    for name in (_ARRAYS, _STATE):
        _flush(directory / name)
    _flush(directory)


def _checksum(told: Mapping[str, Any]) -> str:
    """Of all but itself."""
    rest = {key: value for key, value in told.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _checksum_of(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Put a file, or a directory's list of names, on the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
