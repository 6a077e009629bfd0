"""One contender's process: `python -m kgraft_cli.benchmarks.worker '{"contender": ...}'`.

Answers one JSON line when its first step is done, and one for every line that it is sent.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from kgraft_cli.benchmarks.contenders import build, warm_up
from kgraft_cli.benchmarks.tasks import Task


def main(specification: str) -> None:
    """Build, warm up, then measure whenever asked.

    Args:
        specification: a `Task` as JSON.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    import kgraft  # noqa: F401  # chooses the backend

    task = Task(**json.loads(specification))
    contender = build(task)
    contender.block(0, 1)
    startup = time.time() - task.started
    first = warm_up(contender)
    contender.exchange()

    def say(**answer: float) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    say(startup_seconds=startup)
    for number, _ in enumerate(sys.stdin, start=first):
        contender.block(number, 1)  # while it waited, its memory and caches went to others
        say(
            step_seconds=_seconds(contender.block, number, task.steps) / task.steps,
            exchange_seconds=_seconds(contender.exchange),
            peak_bytes=contender.peak_bytes(),
        )


def _seconds(action: Callable[..., None], *arguments: Any) -> float:
    started = time.perf_counter()
    action(*arguments)
    return time.perf_counter() - started


if __name__ == "__main__":
    main(sys.argv[1])
