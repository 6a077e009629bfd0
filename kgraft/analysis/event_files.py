"""What TensorBoard reads: scalars, histograms and pictures by epoch, in event files."""

import socket
import struct
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from kgraft.analysis.filters import LayerFilters
from kgraft.errors import UserError
from kgraft.files import storing, write_bytes

_DECADES = 3  # of l1 norms, from the threshold on, that have colours of their own
_CIVIDIS = ((0, 32, 77), (87, 93, 109), (124, 123, 120), (188, 175, 111), (255, 234, 70))
_NOTHING = (255, 255, 255)
_WIDTH, _CELL = 640, 12  # pixels
_BINS = np.linspace(0.0, 1.0, 51)
_PREFIX = "events.out.tfevents."


def check_installed() -> None:
    """Refuse where event files cannot be written.

    Raises:
        UserError: tensorboardX is missing.
    """
    if find_spec("tensorboardX") is None:
        raise UserError(
            "event files for TensorBoard are written by tensorboardX, which is missing: "
            "pip install 'kgraft[live]'."
        )


def has_events(folder: Path) -> bool:
    """Whether a folder has event files.

    Args:
        folder: which; it may be missing.
    """
    return any(folder.glob(f"{_PREFIX}*"))


class EventFiles:
    """The event files of one network, in a folder of their own.

    A folder that has some is gone on with in a new file: what the others have of the first step
    and of later ones is taken out of them, and TensorBoard, where it has read that already, is
    told so.

    Args:
        folder: made where it is missing.
        step: the first one that will be added.

    Raises:
        UserError: tensorboardX is missing.
        StorageError: the folder or a file in it cannot be written.
    """

    def __init__(self, folder: Path, step: int) -> None:
        check_installed()
        with storing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            files = sorted(folder.glob(f"{_PREFIX}*"))
        for file in files:
            _keep_before(file, step)
        # TensorBoard reads them in the order of their names; several may begin in one second
        name = f"{_PREFIX}{int(time.time()):010d}.{socket.gethostname()}.{len(files)}"
        self._file = folder / name
        from tensorboardX.proto.event_pb2 import SessionLog

        start = SessionLog(status=SessionLog.START)  # the second one takes back what was read
        version = _event(file_version="brain.Event:2")
        self._append([version, _event(step=step, session_log=start)])

    def add(
        self,
        step: int,
        scalars: Mapping[str, float],
        histograms: Mapping[str, np.ndarray],
        images: Mapping[str, np.ndarray],
    ) -> None:
        """Add what there is of one step.

        Args:
            step: counted from 1.
            scalars: by name.
            histograms: values in 0..1 of any shape by name; what is not finite does not count.
            images: pixels in uint8, `(height, width, 3)`, by name.

        Raises:
            StorageError: it cannot be written.
        """
        from tensorboardX import summary

        found = [summary.scalar(name, 0.0) for name in scalars]
        for own, number in zip(found, scalars.values(), strict=True):
            own.value[0].simple_value = number  # tensorboardX would warn of one that is not finite
        for name, values in histograms.items():
            finite = values[np.isfinite(values)]
            if finite.size:
                found.append(summary.histogram(name, finite, bins=_BINS))
        found += [summary.image(name, own, dataformats="HWC") for name, own in images.items()]
        self._append([_event(step=step, summary=own) for own in found])

    def _append(self, events: Iterable[bytes]) -> None:
        with storing(self._file), self._file.open("ab") as file:
            file.write(b"".join(map(_record, events)))


def filter_image(layers: Sequence[LayerFilters], *, threshold: float = 0.1) -> np.ndarray:
    """One cell a filter, a row a layer: the larger its l1 norm the lighter, invalid ones black.

    Colours mean the same in every epoch: they begin at the threshold and end three decades above.

    Args:
        layers: a network's.
        threshold: the l1 norm below which a filter is invalid.

    Returns:
        Pixels, uint8 `(height, width, 3)`; white where a layer has no more filters.

    Example:
        >>> layers = [LayerFilters("kernel", np.array([0.0, 5.0]), None, 1.0, 9)]
        >>> filter_image(layers).shape
        (12, 24, 3)
    """
    widest = max(len(layer.norms) for layer in layers)
    cells = np.full((len(layers), widest, 3), _NOTHING, np.uint8)
    places = np.linspace(0.0, 1.0, len(_CIVIDIS))
    for row, layer in zip(cells, layers, strict=True):
        dead = ~(layer.norms >= threshold)  # a norm that is no number is not valid either
        light = np.log10(np.where(dead, threshold, layer.norms) / threshold) / _DECADES
        channels = [np.interp(light, places, own) for own in zip(*_CIVIDIS, strict=True)]
        colours = np.stack(channels, axis=-1).round()
        row[: len(dead)] = np.where(dead[:, None], 0, colours)
    wide = int(np.clip(_WIDTH // widest, 1, _CELL))
    return cells.repeat(max(wide, _CELL // 2), axis=0).repeat(wide, axis=1)


def _keep_before(file: Path, step: int) -> None:
    """Take out of a file what it has of a step and later ones, and half a record at its end."""
    with storing(file):
        content = file.read_bytes()
    kept = b"".join(record for own, record in _records(content) if own < step)
    if kept != content:
        write_bytes(file, kept)


def _event(**what: Any) -> bytes:
    from tensorboardX.proto.event_pb2 import Event

    event: bytes = Event(wall_time=time.time(), **what).SerializeToString()
    return event


def _record(event: bytes) -> bytes:
    """Its length (8 bytes), a checksum of that (4), the event, and a checksum of it (4)."""
    from tensorboardX.record_writer import masked_crc32c

    length = struct.pack("<Q", len(event))
    checksums = (struct.pack("<I", masked_crc32c(own)) for own in (length, event))
    return b"".join((length, next(checksums), event, next(checksums)))


def _records(content: bytes) -> Iterator[tuple[int, bytes]]:
    """The records of an event file as far as they are whole, and the step of each."""
    from google.protobuf.message import DecodeError
    from tensorboardX.proto.event_pb2 import Event

    place = 0
    while len(content) - place >= 16:
        (length,) = struct.unpack_from("<Q", content, place)
        end = place + 16 + length
        if end > len(content):
            return
        try:
            step = Event.FromString(content[place + 12 : end - 4]).step
        except DecodeError:
            return
        yield step, content[place:end]
        place = end
