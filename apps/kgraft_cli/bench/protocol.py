"""The two ends of the pipe between the benchmark and its workers: a line of JSON each way."""

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import IO, Any

_PATIENCE = 1800.0  # seconds; a first compilation on few cores takes many minutes
_COMMAND = (sys.executable, "-m", "kgraft_cli.bench.worker")


class WorkerDied(Exception):
    """A worker ended, or said nothing for too long; the text is one line that says why."""


class Worker:
    """A process that plays one contender, as its parent sees it.

    Args:
        spec: what the worker is told; the time of the start is added.
        environment: variables that differ from the parent's.
        command: what is run, with the spec as JSON for its last argument.
        patience: seconds until a silent worker counts as dead.
    """

    def __init__(
        self,
        spec: dict[str, Any],
        *,
        environment: Mapping[str, str] | None = None,
        command: tuple[str, ...] = _COMMAND,
        patience: float = _PATIENCE,
    ) -> None:
        self._patience = patience
        self._unread = b""
        self._errors: IO[bytes] = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [*command, json.dumps({**spec, "spawned": time.time()})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, **(environment or {})},
        )

    def send(self, order: str) -> None:
        """Tell the worker to do something; `receive` gets its answer.

        Args:
            order: a line, see `kgraft_cli.bench.worker`.

        Raises:
            WorkerDied: nobody reads it.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{order}\n".encode())
            self._process.stdin.flush()
        except OSError:
            raise WorkerDied(self._last_words()) from None

    def receive(self) -> dict[str, Any]:
        """The next answer.

        Raises:
            WorkerDied: there will be none.
        """
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        until = time.monotonic() + self._patience
        while b"\n" not in self._unread:
            ready, _, _ = select.select([pipe], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                raise WorkerDied(f"no answer within {self._patience:.0f} s")
            part = os.read(pipe, 1 << 16)
            if not part:
                raise WorkerDied(self._last_words())
            self._unread += part
        line, _, self._unread = self._unread.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerDied(answer["error"])
        return answer

    def ask(self, order: str) -> dict[str, Any]:
        """Send an order and wait for its answer."""
        self.send(order)
        return self.receive()

    def stop(self) -> None:
        """End the worker: its input closes, and if that does not help it is killed."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.close()
        except OSError:
            pass  # it is dead already, and what was buffered for it is lost
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def _last_words(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else f"ended with exit code {code} and without a word"


class Answers:
    """The worker's end: what it prints for its parent, which nothing else can print between.

    File descriptor 1 is stderr from here on, so that a library's greeting is no answer.
    """

    def __init__(self) -> None:
        self._stream = os.fdopen(os.dup(1), "w")
        sys.stdout.flush()
        os.dup2(2, 1)

    def give(self, answer: Mapping[str, Any]) -> None:
        """One line of JSON."""
        self._stream.write(json.dumps(dict(answer)) + "\n")
        self._stream.flush()
