"""What a grafting costs beside the training step it follows."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kgraft.engines.eager import Stepper
from kgraft.grafting import Graft
from kgraft.runs.assembly import Assembly


@dataclass(frozen=True)
class GraftCost:
    """Medians over the repeats.

    Attributes:
        step_seconds: one training step of all K peers, each on its own batch.
        graft_seconds: one grafting of the same peers, measuring and blending.
        shares: grafting over step in every repeat.
    """

    step_seconds: float
    graft_seconds: float
    shares: tuple[float, ...]

    @property
    def share(self) -> float:
        """Median of the grafting's share of a step."""
        return statistics.median(self.shares)


def graft_cost(assembly: Assembly, *, repeats: int = 5) -> GraftCost:
    """Time graftings and training steps of the same peers, alternately.

    Args:
        assembly: a run's peers and batches; its teachers are not used.
        repeats: timed pairs, after one of each that is not timed.
    """
    steppers = [Stepper(peer) for peer in assembly.peers]
    batches = [next(assembly.train.for_peer(k).epoch(0)) for k in range(len(assembly.peers))]
    graft = Graft()
    for stepper in steppers:
        stepper.begin_epoch()

    def step() -> None:
        for stepper, batch in zip(steppers, batches, strict=True):
            stepper.step(batch)
        _wait(assembly.peers)

    step()
    plan = graft.check(assembly.peers)

    def apply() -> None:
        graft.apply(assembly.peers, plan)
        _wait(assembly.peers)

    apply()
    pairs = [(_seconds(step), _seconds(apply)) for _ in range(repeats)]
    return GraftCost(
        step_seconds=statistics.median(first for first, _ in pairs),
        graft_seconds=statistics.median(second for _, second in pairs),
        shares=tuple(second / first for first, second in pairs),
    )


def _wait(models: list[Any]) -> None:
    """Reading a number from each model's last weight waits for an asynchronous device."""
    for model in models:
        np.asarray(keras.ops.convert_to_numpy(model.weights[-1].value)).sum()


def _seconds(action: Callable[[], None]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started
