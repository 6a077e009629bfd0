"""Contenders in turns: one works, the others wait; ratios are taken within a round."""

import contextlib
import dataclasses
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from kgraft_cli.benchmarks.contenders import REFERENCE
from kgraft_cli.benchmarks.tasks import Task


@dataclass
class Result:
    """What was measured of one contender.

    Attributes:
        task: what it trained.
        startup_seconds: from the call of the process to the end of the first step of all peers,
            None where other contenders started beside it.
        step_seconds: one step of all peers, for every round.
        exchange_seconds: what an epoch's end costs, for every round.
        peak_bytes: largest memory.
        error: why there are no numbers.
    """

    task: Task
    startup_seconds: float | None = None
    step_seconds: list[float] = field(default_factory=list)
    exchange_seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    error: str | None = None

    def throughput(self, images: int) -> list[float]:
        """Images x peers a second over a whole epoch with its exchange, for every round.

        Args:
            images: training images of an epoch.
        """
        steps = math.ceil(images / self.task.batch_size)
        return [
            self.task.peers * images / (steps * step + exchange)
            for step, exchange in zip(self.step_seconds, self.exchange_seconds, strict=True)
        ]


def ratios(reference: Sequence[float], other: Sequence[float]) -> tuple[float, float, float]:
    """Median, smallest and largest of reference / other, round by round.

    Example:
        >>> ratios([4.0, 9.0, 2.0], [2.0, 3.0, 2.0])
        (2.0, 1.0, 3.0)
    """
    each = [first / second for first, second in zip(reference, other, strict=True)]
    return statistics.median(each), min(each), max(each)


def run(
    tasks: Sequence[Task], repeats: int, tell: Callable[[str], None], together: bool = False
) -> list[Result]:
    """Measure contenders of the same work, interleaved.

    Args:
        tasks: one a contender.
        repeats: rounds.
        tell: gets a line about what is going on.
        together: start all contenders at once; how long that takes then says nothing of one.
    """
    workers = []
    for task in tasks:
        tell(f"{task.contender}: start")
        workers.append(_Worker(task))
        if not together:
            workers[-1].begin()
    for worker in workers if together else ():
        tell(f"{worker.result.task.contender}: start")
        worker.begin()
        worker.result.startup_seconds = None
    for number in range(repeats):
        for worker in workers:
            if worker.result.error is None:
                tell(f"round {number + 1} of {repeats}: {worker.result.task.contender}")
                worker.measure()
    for worker in workers:
        worker.close()
    return [worker.result for worker in workers]


def rows(results: Sequence[Result], images: int) -> list[dict[str, Any]]:
    """JSON-able rows, each with its ratio to the reference of the same work."""
    made = []
    for result in results:
        row: dict[str, Any] = {
            key: value
            for key, value in dataclasses.asdict(result.task).items()
            if key not in ("started", "data_dir")
        }
        if result.error is not None:
            made.append({**row, "error": result.error})
            continue
        speed = result.throughput(images)
        row |= {
            "images_per_second": statistics.median(speed),
            "images_per_second_range": [min(speed), max(speed)],
            "step_seconds": statistics.median(result.step_seconds),
            "exchange_seconds": statistics.median(result.exchange_seconds),
            "startup_seconds": result.startup_seconds,
            "peak_bytes": result.peak_bytes,
        }
        for other in results:
            same = dataclasses.replace(result.task, contender=REFERENCE, started=0.0)
            if dataclasses.replace(other.task, started=0.0) == same and other.error is None:
                median, low, high = ratios(other.throughput(images), speed)
                row |= {"kgraft_over_this": median, "kgraft_over_this_range": [low, high]}
        made.append(row)
    return made


class _Worker:
    """A contender's process and what it has answered so far."""

    def __init__(self, task: Task) -> None:
        task = dataclasses.replace(task, started=time.time())
        self.result = Result(task)
        self._errors = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "kgraft_cli.benchmarks.worker",
                json.dumps(dataclasses.asdict(task)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def begin(self) -> None:
        """Wait until it has warmed up."""
        answer = self._answer()
        if answer is not None:
            self.result.startup_seconds = answer["startup_seconds"]

    def measure(self) -> None:
        """One round."""
        if self._process.stdin is not None and self._process.poll() is None:
            print("go", file=self._process.stdin, flush=True)
        answer = self._answer()
        if answer is not None:
            self.result.step_seconds.append(answer["step_seconds"])
            self.result.exchange_seconds.append(answer["exchange_seconds"])
            self.result.peak_bytes = max(self.result.peak_bytes, int(answer["peak_bytes"]))

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._errors.close()

    def _answer(self) -> dict[str, float] | None:
        line = self._process.stdout.readline() if self._process.stdout is not None else ""
        if line:
            answer: dict[str, float] = json.loads(line)
            return answer
        self._process.wait(30)
        self._errors.seek(0)
        said = [text for text in self._errors.read().splitlines() if text.strip()]
        self.result.error = said[-1] if said else f"ended with exit code {self._process.returncode}"
        return None
