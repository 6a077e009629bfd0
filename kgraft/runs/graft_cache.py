"""A run's graftings, parsed once: the lines of a long run take seconds, and 150 MB.

`RUN/.cache/grafts.npz` holds them as arrays, with the size and the time of the lines that they came
from. It is a convenience: whatever is wrong with it, the lines are read instead, and where it
cannot be written nothing is said. Whoever trains or resumes the run does not look at it.
"""

import zipfile
from pathlib import Path

import numpy as np

from kgraft.analysis.records import Grafts, read_grafts
from kgraft.errors import StorageError
from kgraft.files import whole

LARGE = 1 << 20
"""Bytes of lines that are worth a file."""

_FILE = Path(".cache") / "grafts.npz"


def cached_grafts(path: Path) -> Grafts | None:
    """The graftings of a run's peers, see `read_grafts`; from the lines, or as they were parsed.

    Args:
        path: the run's directory.

    Raises:
        UserError: a line of the file is damaged.
    """
    try:
        told = (path / "grafts.jsonl").stat()
    except OSError:
        return None
    lines = np.array([told.st_size, told.st_mtime_ns], np.int64)
    if told.st_size < LARGE:
        return read_grafts(path)
    known = _read(path / _FILE, lines)
    if known is not None:
        return known
    found = read_grafts(path)
    if found is not None:
        write_cache(path / _FILE, lines, found)
    return found


def _read(file: Path, lines: np.ndarray) -> Grafts | None:
    """What was parsed of these very lines, None where there is no such file or another one."""
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as kept:
            if not np.array_equal(kept["lines"], lines):
                return None
            groups = tuple(kept["groups"].tolist())
            found = Grafts(
                kept["epochs"],
                kept["peers"],
                groups,
                kept["information"],
                kept["coefficients"],
                kept["donors"],
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    shape = len(found.epochs), len(found.peers), len(groups)
    fits = (
        found.information.shape == found.coefficients.shape == shape
        and found.donors.shape == shape[:2]
        and found.epochs.ndim == found.peers.ndim == 1
        and all(isinstance(name, str) for name in groups)
        and {own.dtype.str for own in (found.epochs, found.peers, found.donors)} == {"<i8"}
        and {found.information.dtype.str, found.coefficients.dtype.str} == {"<f8"}
    )
    return found if fits else None


def write_cache(file: Path, lines: np.ndarray, found: Grafts) -> None:
    """Write what was parsed; nothing where that cannot be.

    Args:
        file: the `.npz`.
        lines: size and time of the lines that it was parsed of, int64 `(2,)`.
        found: what they say.
    """
    if file.parent.is_symlink() or file.is_symlink():  # it would be written elsewhere
        return
    try:
        file.parent.mkdir(exist_ok=True)
        with whole(file) as partial:
            np.savez_compressed(
                partial,
                lines=lines,
                epochs=found.epochs,
                peers=found.peers,
                groups=np.array(found.groups),
                information=found.information,
                coefficients=found.coefficients,
                donors=found.donors,
            )
    except (OSError, StorageError):  # a directory that is only read, a full disk
        return
