"""Where the time of a step goes: torch's profiler over one contender's steps."""

import time
from collections.abc import Iterable
from typing import Any

import keras

from kgraft.errors import UserError
from kgraft_cli.benchmarks import contenders
from kgraft_cli.benchmarks.tasks import Task

_LISTED, _LETTERS = 12, 60


def profile(task: Task, repeats: int) -> list[dict[str, Any]]:
    """Profile a contender's training steps, after a round that warms up.

    Args:
        task: what it trains; its `steps` are a round.
        repeats: rounds that are profiled.

    Returns:
        One JSON-able row an operation, the dearest first, and a last one for all others and Python:
        seconds of a peer's step that the operation takes by itself, its share, its calls. On a GPU
        operations are kernels, which may run beside each other, and the last row is the time in
        which none runs.

    Raises:
        UserError: the backend is not torch, or the contender works in other processes.
    """
    if keras.config.backend() != "torch":
        raise UserError("bench profile reads torch's profiler: expected KERAS_BACKEND=torch.")
    if task.contender.startswith("processes"):
        raise UserError(f"bench profile: {task.contender} works in other processes.")
    import torch
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    on_gpu = torch.cuda.is_available()
    contender = contenders.build(task)
    first = contenders.warm_up(contender)
    with profiler(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_gpu]) as recorded:
        started = time.perf_counter()
        for number in range(repeats):
            contender.block(first + number, task.steps)
        whole = time.perf_counter() - started
    own = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    found = sorted(recorded.key_averages(), key=lambda event: -getattr(event, own))[:_LISTED]
    rows = [(event.key[:_LETTERS], event.count, getattr(event, own) * 1e-6) for event in found]
    if on_gpu:
        kernels = [
            event.time_range
            for event in recorded.events()
            if event.device_type == torch.autograd.DeviceType.CUDA
        ]
        idle = whole - covered((span.start, span.end) for span in kernels) * 1e-6
        rows.append(("no kernel runs", None, idle))
    else:
        rows.append(("all others, and Python", None, whole - sum(row[-1] for row in rows)))
    steps = repeats * task.steps * task.peers
    named = {"model": task.model, "contender": task.contender, "batch_size": task.batch_size}
    return [
        {
            **named,
            "operation": name,
            "calls": None if calls is None else calls / steps,
            "seconds": seconds / steps,
            "share": seconds / whole,
        }
        for name, calls, seconds in rows
    ]


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """How much of the time is inside of at least one of some spans.

    Example:
        >>> covered([(5, 6), (0, 2), (1, 3)])
        4.0
    """
    whole, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        whole += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return whole
