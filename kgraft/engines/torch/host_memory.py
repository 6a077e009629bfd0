"""The host's memory, of which a step on the CPU takes and frees a gigabyte."""

import ctypes
import functools
import sys
from contextlib import suppress
from pathlib import Path


@functools.cache
def keep_freed() -> bool:
    """Tell the C library, once a process, to keep what a step frees for the next step.

    By default glibc gives every large block back to the system when it is freed, and each step then
    waits for the kernel to hand out zeroed pages again: a fifth to a third of a CPU step. Threads
    share one pool, so that none keeps a pool of its own.

    Returns:
        Whether it was done: on Linux with glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    mmap_threshold, trim_threshold, arena_max = -3, -1, -8  # malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    largest = 2**31 - 1
    return all(
        [mallopt(mmap_threshold, largest), mallopt(trim_threshold, largest), mallopt(arena_max, 1)]
    )


def give_back() -> None:
    """Give what is freed and kept back to the system, once; on Linux with glibc."""
    if sys.platform.startswith("linux"):
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def most_held() -> int:
    """Bytes that this process has held at most; 0 where nobody can say."""
    return _status("/proc/self/status", "VmHWM") or 0


def free() -> int | None:
    """Bytes that may still be had without swapping; None where nobody can say."""
    return _status("/proc/meminfo", "MemAvailable")


def _status(file: str, name: str) -> int | None:
    with suppress(OSError, ValueError):
        for line in Path(file).read_text().splitlines():
            if line.startswith(f"{name}:"):
                return 1024 * int(line.split()[1])
    return None
