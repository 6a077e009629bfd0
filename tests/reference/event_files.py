"""Event files read independently of kgraft and tensorboardX' own writing, checksums included."""

import struct
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event


def crc32c(content):
    """Castagnoli's, bit by bit, masked as TensorFlow's records have it."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 * (crc & 1))
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def events(folder):
    """All events of a folder, file by file as TensorBoard reads them."""
    for file in sorted(Path(folder).glob("events.out.tfevents.*")):
        content = file.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = content[12 : 12 + length]
            checks = content[8:12] + content[12 + length : 16 + length]
            assert struct.unpack("<II", checks) == (crc32c(content[:8]), crc32c(event))
            yield Event.FromString(event)
            content = content[16 + length :]


def values(folder):
    """By tag, `(step, value)` in order; of histograms and images the messages."""
    found = {}
    for event in events(folder):
        for value in event.summary.value:
            own = getattr(value, value.WhichOneof("value"))
            found.setdefault(value.tag, []).append((event.step, own))
    return found


def steps(folder):
    """By tag, the steps in order."""
    return {tag: [step for step, _ in own] for tag, own in values(folder).items()}
