"""PopulAtion Parameter Averaging: peers are pulled to their mean, or put on it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal
from weakref import WeakKeyDictionary

import keras

from kgraft import equations
from kgraft.errors import UserError, suggest
from kgraft.grafting.averaging import healthy_of, record_of
from kgraft.grafting.mixer import Mixer
from kgraft.grafting.plan import GraftPlan
from kgraft.grafting.population import population
from kgraft.grafting.ring import GraftRecord
from kgraft.grafting.settings import check_count, check_share


@dataclass(frozen=True)
class Average(Mixer):
    """All peers go on from the mean of all (PAPA-all).

    When: every few epochs (`every` of the schedule), with peers that differ in their data orders
    in between. Cost: a grafting's without the counting, each time.

    Source: Jolicoeur-Martineau et al., TMLR 2024, PAPA-all, without its re-normalisation (REPAIR):
    batch statistics are averaged and move on in the next epoch.
    """

    def apply(
        self, models: Sequence[keras.Model], plan: GraftPlan | None = None, epoch: int = 0
    ) -> GraftRecord:
        """See `Mixer`."""
        plan = plan or self.check(models)
        healthy = _pull(models, plan, [0.0] * len(models))
        share = 1 / max(sum(healthy), 1)
        alphas = [share if well else 1.0 for well in healthy]
        return record_of(plan, alphas, (None,) * len(models), healthy)


@dataclass(frozen=True)
class Papa(Mixer):
    """Every few steps each peer moves a little towards the mean of all peers.

    When: to end with peers that can be averaged into one (`kgraft select`), or to train a better
    population. Cost: one pass over all weights every n steps, no memory to speak of.

    Args:
        rate: share of its own weights that a peer keeps, in [0, 1].
        every_steps: n.
        lr_scaling: `"linear"`, where the pull 1 - rate shrinks with the peer's learning rate, or
            `"none"`, where it stays what it is. The pull is whole at the largest rate that the
            peer has had: its schedule's first one, or what a warm-up has reached. Peers that are
            not compiled take after the first that has one, and pull in full if none has.

    Raises:
        UserError: an argument is out of range.

    Source: Jolicoeur-Martineau et al., "PopulAtion Parameter Averaging", TMLR 2024; the scaling
    is their code's default, where all peers have one rate. The statistics of batch normalisation
    move with the weights.
    """

    rate: float = 0.99
    every_steps: int | None = 10
    lr_scaling: Literal["linear", "none"] = "linear"
    _highest: WeakKeyDictionary[keras.Model, float] = field(
        default_factory=WeakKeyDictionary, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        check_share(self, "rate")
        check_count(self, "every_steps")
        if self.lr_scaling not in ("linear", "none"):
            raise UserError(
                f"Papa(lr_scaling={self.lr_scaling!r}): unknown."
                + suggest(str(self.lr_scaling), ("linear", "none"))
            )

    def begin(self, models: Sequence[keras.Model]) -> None:
        """See `Mixer`: measures learning rates by what they have been so far."""
        for model in models:
            self._highest.pop(model, None)
        if self.lr_scaling == "linear":
            self._lr_ratios(models)

    def step(self, models: Sequence[keras.Model], plan: GraftPlan, number: int) -> None:
        """See `Mixer`."""
        ratios = self._lr_ratios(models) if self.lr_scaling == "linear" else [1.0] * len(models)
        _pull(models, plan, [1 - (1 - self.rate) * ratio for ratio in ratios])

    def _lr_ratios(self, models: Sequence[keras.Model]) -> list[float]:
        """Each peer's learning rate, as a share of the highest that it has had."""
        known: list[float | None] = []
        for model in models:
            if not model.compiled:
                known.append(None)
                continue
            now = _learning_rate(model)
            if model not in self._highest:
                self._highest[model] = _highest_so_far(model, self.every_steps or 1)
            highest = self._highest[model] = max(self._highest[model], now)
            known.append(now / highest if highest > 0 else 1.0)
        others = next((ratio for ratio in known if ratio is not None), 1.0)
        return [others if ratio is None else ratio for ratio in known]


def _pull(models: Sequence[keras.Model], plan: GraftPlan, rates: Sequence[float]) -> list[bool]:
    """Move healthy peers towards their mean; returns who is healthy."""
    peers = population(models)
    healthy = healthy_of(peers, len(models))
    peers.mix(plan.blended, partial(_towards_mean, rates=rates, healthy=healthy))
    peers.commit()
    return healthy


def _towards_mean(
    values: list[Any], *, rates: Sequence[float], healthy: Sequence[bool]
) -> list[Any]:
    kept = [value for value, well in zip(values, healthy, strict=True) if well]
    if not kept:
        return values
    mean = kept[0]
    for count, value in enumerate(kept[1:], start=2):
        mean = mean + (value - mean) * (1 / count)  # equal values stay equal to the last bit
    return [
        equations.blend(value, mean, rate) if well else value
        for value, rate, well in zip(values, rates, healthy, strict=True)
    ]


def _learning_rate(model: keras.Model) -> float:
    return float(keras.ops.convert_to_numpy(model.optimizer.learning_rate))


def _highest_so_far(model: keras.Model, every: int) -> float:
    """The highest learning rate that a peer's schedule gave it, at every n-th of its past steps.

    A training that goes on from a checkpoint finds what it would have known without a break.
    """
    optimizer = model.optimizer
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer = optimizer.inner_optimizer
    schedule = optimizer._learning_rate
    if not isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule):
        return _learning_rate(model)
    taken = int(keras.ops.convert_to_numpy(optimizer.iterations))
    return max(
        float(keras.ops.convert_to_numpy(schedule(step))) for step in range(0, taken + 1, every)
    )
