"""The grafting step alone, beside a training step and a per-layer loop of the authors' formula."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras

from kgraft_cli.benchmarks.keras_peers import Kgraft
from kgraft_cli.benchmarks.tasks import Task


@dataclass(frozen=True)
class GraftTimes:
    """Seconds of every round.

    Attributes:
        steps: one training step of all peers.
        grafts: one grafting by kgraft, blending included.
        loops: the same by the per-layer loop.
    """

    steps: tuple[float, ...]
    grafts: tuple[float, ...]
    loops: tuple[float, ...]

    def row(self, task: Task) -> dict[str, Any]:
        """Medians, and ratios with their range, JSON-able."""
        shares = [graft / step for graft, step in zip(self.grafts, self.steps, strict=True)]
        gains = [loop / graft for loop, graft in zip(self.loops, self.grafts, strict=True)]
        return {
            "backend": keras.config.backend(),
            "model": task.model,
            "peers": task.peers,
            "batch_size": task.batch_size,
            "step_seconds": statistics.median(self.steps),
            "graft_seconds": statistics.median(self.grafts),
            "loop_seconds": statistics.median(self.loops),
            "share_of_step": statistics.median(shares),
            "share_of_step_range": [min(shares), max(shares)],
            "loop_over_graft": statistics.median(gains),
            "loop_over_graft_range": [min(gains), max(gains)],
        }


def measure(task: Task, repeats: int) -> GraftTimes:
    """Time training steps, graftings and the loop in turns, after one of each.

    Args:
        task: the peers and their batches.
        repeats: rounds.
    """
    contender = Kgraft(task)

    def loop() -> None:
        per_layer_loop(contender.models)
        for model in contender.models:
            keras.ops.convert_to_numpy(model.weights[-1].value)

    contender.block(0, 1)
    contender.exchange()
    loop()
    rounds = [
        (
            _seconds(contender.block, number, task.steps) / task.steps,
            _seconds(contender.exchange),
            _seconds(loop),
        )
        for number in range(1, repeats + 1)
    ]
    return GraftTimes(*(tuple(column) for column in zip(*rounds, strict=True)))


def per_layer_loop(models: list[Any]) -> list[list[float]]:
    """Graft K peers layer by layer with the backend's own operations, as one writes it first.

    Args:
        models: peers of one architecture.

    Returns:
        Each peer's coefficients.
    """
    before = [[variable.value + 0 for variable in model.weights] for model in models]
    coefficients: list[list[float]] = []
    for k, model in enumerate(models):
        alpha = 1.0
        coefficients.append([])
        for variable, own, donor in zip(model.weights, before[k], before[k - 1], strict=True):
            if len(variable.shape) == 4:
                difference = entropy(own) - entropy(donor)
                alpha = 0.4 / math.pi * math.atan(500 * difference) + 0.5
                coefficients[-1].append(alpha)
            if keras.backend.is_float_dtype(variable.dtype):
                variable.assign(alpha * own + (1 - alpha) * donor)
    return coefficients


def entropy(weights: Any, bins: int = 10) -> float:
    """Entropy of a layer's weights, counted one bin after the other."""
    ops = keras.ops
    low, high = ops.min(weights), ops.max(weights)
    width = (high - low) / bins
    count = math.prod(weights.shape)
    total = 0.0
    for number in range(bins):
        inside = weights >= low + number * width
        if number < bins - 1:
            inside = ops.logical_and(inside, weights < low + (number + 1) * width)
        share = ops.sum(ops.cast(inside, "float32")) / count
        if share > 0:
            total -= float(share * ops.log(share))
    return total


def _seconds(action: Callable[..., None], *arguments: Any) -> float:
    started = time.perf_counter()
    action(*arguments)
    return time.perf_counter() - started
