"""Who a rank is, whether it is there, and how others come to know."""

import atexit
import contextlib
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any, Literal

from kgraft.errors import StorageError
from kgraft.links.store import Store

State = Literal["runs", "stopped", "gone", "unknown"]


def own_presence() -> dict[str, Any]:
    """This process as others may find it, JSON-able."""
    return {
        "host": socket.gethostname(),
        "machine": _machine(),
        "pid": os.getpid(),
        "began": _began(os.getpid()),
    }


def state_of(presence: dict[str, Any]) -> State:
    """What the system says of a process.

    Args:
        presence: what `own_presence` gave there.

    Returns:
        `"unknown"` for one on another machine, and where there is no `/proc`.
    """
    if not presence["machine"] or presence["machine"] != _machine():
        return "unknown"
    told = _told(presence["pid"])
    if told is None or told[19] != presence["began"] or told[0] in "ZXx":
        return "gone"
    return "stopped" if told[0] in "Tt" else "runs"


class Heartbeat:
    """A thread that writes a growing number to a store, for as long as the process runs.

    Args:
        store: where.
        key: under which key.
        every: seconds between two beats.
    """

    def __init__(self, store: Store, key: str, every: float) -> None:
        self._store, self._key, self._every = store, key, every
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kgraft-heartbeat", daemon=True)
        self._thread.start()
        atexit.register(self.stop)  # who is in a store of C++ when Python ends aborts the process

    def stop(self) -> None:
        """End it."""
        atexit.unregister(self.stop)
        self._ended.set()
        self._thread.join(self._every + 1.0)

    def _run(self) -> None:
        count = 0
        while True:
            with contextlib.suppress(OSError, StorageError, RuntimeError):
                self._store.set(self._key, b"%d" % count)  # who misses it says so
            count += 1
            if self._ended.wait(self._every):
                return


class Listener:
    """When each rank was last heard of, by this process' clock.

    Args:
        store: where they beat.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._heard: dict[str, tuple[bytes | None, float]] = {}

    def silent(self, key: str) -> float:
        """Seconds since a beat was new to this process.

        Args:
            key: whose.
        """
        now, beat = time.monotonic(), self._store.get(key)
        last, since = self._heard.get(key, (b"", now))
        if beat != last:
            since = now
            self._heard[key] = beat, since
        return now - since

    def begin(self, key: str) -> None:
        """Count from now on."""
        self._heard[key] = self._store.get(key), time.monotonic()


def _machine() -> str:
    """What tells machines and containers apart, empty where nothing does."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _began(pid: int) -> str:
    told = _told(pid)
    return "" if told is None else told[19]


def _told(pid: int) -> list[str] | None:
    """The fields of `/proc/PID/stat` from the state on; the 20th is when it began."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return None


class Pause:
    """Longer and longer pauses between two looks at a store, 20 ms at most."""

    def __init__(self) -> None:
        self._next = 0.0002

    def __call__(self) -> None:
        """Sleep."""
        time.sleep(self._next)
        self._next = min(2 * self._next, 0.02)
