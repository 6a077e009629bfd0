"""When a training is saved, and what a killed one goes on from."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from kgraft import settings
from kgraft.errors import UserError, told
from kgraft.links.link import Here, Link
from kgraft.settings import setting
from kgraft.training.checkpoint_files import CheckpointFiles
from kgraft.training.joint_state import Arrays

_log = logging.getLogger("kgraft")

_AT_LEAST = 600.0  # seconds between two checkpoints of short epochs

Taken = tuple[Arrays, dict[str, Any]]


@dataclass(frozen=True)
class Checkpoints:
    """Where and how often GraftingFit saves a training, to go on exactly when it is killed.

    A checkpoint has all K peers at the end of an epoch: weights, optimizers, random numbers,
    callbacks' states, histories, what the mixer knows, `records`. It is whole or not there: the one
    before stays until then, and one that is damaged on the disk is noticed and passed over.

    Args:
        directory: of this training alone; made where it is missing.
        every: save every n-th epoch; by default every epoch that takes longer than a saving, and
            after ten minutes. Files are written beside the training, which waits only while its
            values are copied. The last epoch is always saved, and whatever breaks a training off
            (an error, Ctrl-C), its last whole epoch is saved then.
        keep: how many of the newest stay.

    Raises:
        UserError: an argument is out of range, or `directory` is a file.

    Example:
        ```python
        run = kgraft.GraftingFit(peers)
        run.fit(x, y, epochs=200, checkpoint="checkpoints")  # start it again, and it goes on
        ```
    """

    directory: str | PathLike[str]
    every: int | None = setting(None, low=1)
    keep: int = setting(2, low=1)

    def __post_init__(self) -> None:
        settings.check(self)
        if not isinstance(self.directory, str | PathLike) or not str(self.directory):
            raise UserError(f"checkpoint directory {self.directory!r}: expected a path.")
        if "://" in str(self.directory):
            raise UserError(f"checkpoint directory {self.directory}: expected one of this machine.")
        if "\0" in str(self.directory):
            raise UserError("checkpoint directory cannot be made: its name holds a zero byte.")
        try:
            parts = (Path(self.directory), *Path(self.directory).parents)
            files = [own for own in parts if own.exists() and not own.is_dir()]
        except (OSError, ValueError) as error:  # e.g. a name that is too long
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"checkpoint directory cannot be made: {reason}.") from None
        if files:
            raise UserError(f"checkpoint directory {self.directory}: {files[0]} is a file.")

    @classmethod
    def of(cls, given: Any) -> "Checkpoints | None":
        """The argument of `fit`: a directory, these settings, or None.

        Args:
            given: what was given.

        Raises:
            UserError: it is something else.
        """
        if given is None or isinstance(given, cls):
            return given
        if isinstance(given, str | PathLike):
            return cls(given)
        raise UserError(f"checkpoint is {told(given)}: expected a directory, or Checkpoints(...).")


class Keeper:
    """Saves one training as it goes on; a block of `with` around it.

    Args:
        settings: where and how often.
        take: copies all that is to be saved.
        link: of several processes each keeps its own, of the same epochs.

    Raises:
        StorageError: the directory cannot be made.
    """

    def __init__(
        self, settings: Checkpoints, take: Callable[[], Taken], link: Link | None = None
    ) -> None:
        self._settings, self._take, self._link = settings, take, link or Here()
        self._files = CheckpointFiles(Path(settings.directory), settings.keep)
        self._held: tuple[int, Taken] | None = None  # copied, not written
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._writing = 0.0  # seconds that the last one took
        self._epoch_began = self._last = time.monotonic()

    def __enter__(self) -> "Keeper":
        self._files.make()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Write what is not written; a failure to do so must not hide why the training ended."""
        try:
            self._wait()
            if self._held is not None:
                self._write(*self._held)
            self._raise()
        except OSError as unsaved:
            if error is None:
                raise
            if not isinstance(error, OSError):  # the same full disk, most likely
                _log.error("%s", unsaved)

    def end_of_epoch(self, epoch: int, *, last: bool = False) -> None:
        """Copy what there is, and write it where it is time to.

        Args:
            epoch: whole epochs done.
            last: whether no other follows.

        Raises:
            StorageError: the checkpoint before could not be written.
        """
        now = time.monotonic()
        took, self._epoch_began = now - self._epoch_began, now
        self._held = (epoch, self._take())
        every = self._settings.every
        if every is not None:
            due = epoch % every == 0
        else:
            due = took >= self._writing or now - self._last >= _AT_LEAST
        if not isinstance(self._link, Here):
            self._wait()  # nobody begins one while the one before is not whole everywhere
        if self._link.anywhere(due or last):
            self._wait()
            self._raise()
            self._last = now
            held, self._held = self._held, None
            self._thread = threading.Thread(target=self._write, args=held, name="checkpoint")
            self._thread.start()
        self._epoch_began = time.monotonic()

    def _write(self, epoch: int, taken: Taken) -> None:
        began = time.monotonic()
        try:
            self._files.write(epoch, *taken)
        except Exception as error:  # of this thread: it is raised where the training goes on
            self._error = error
        self._writing = time.monotonic() - began

    def _wait(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _raise(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error
