"""Where the time of a step goes: torch's profiler over one contender's steps."""

import time
from typing import Any

import keras

from kgraft.errors import UserError
from kgraft_cli.benchmarks import contenders
from kgraft_cli.benchmarks.tasks import Task

_LISTED = 12


def profile(task: Task, repeats: int) -> list[dict[str, Any]]:
    """Profile a contender's training steps, after a round that warms up.

    Args:
        task: what it trains; its `steps` are a round.
        repeats: rounds that are profiled.

    Returns:
        One JSON-able row an operation, the dearest first, and a last one for all others and Python:
        seconds of a peer's step that the operation takes by itself, its share, its calls.

    Raises:
        UserError: the backend is not torch, or the contender works in other processes.
    """
    if keras.config.backend() != "torch":
        raise UserError("bench profile reads torch's profiler: expected KERAS_BACKEND=torch.")
    if task.contender.startswith("processes"):
        raise UserError(f"bench profile: {task.contender} works in other processes.")
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    contender = contenders.build(task)
    first = contenders.warm_up(contender)
    with profiler(activities=[ProfilerActivity.CPU]) as recorded:
        started = time.perf_counter()
        for number in range(repeats):
            contender.block(first + number, task.steps)
        whole = time.perf_counter() - started
    steps = repeats * task.steps * task.peers
    found = sorted(recorded.key_averages(), key=lambda event: -event.self_cpu_time_total)
    listed = found[:_LISTED]
    seconds = [event.self_cpu_time_total * 1e-6 for event in listed]
    named = {"model": task.model, "contender": task.contender, "batch_size": task.batch_size}
    rows = [
        {
            **named,
            "operation": event.key,
            "calls": event.count / steps,
            "seconds": own / steps,
            "share": own / whole,
        }
        for event, own in zip(listed, seconds, strict=True)
    ]
    rest = whole - sum(seconds)
    return [
        *rows,
        {
            **named,
            "operation": "all others, and Python",
            "calls": None,
            "seconds": rest / steps,
            "share": rest / whole,
        },
    ]
