"""PopulAtion Parameter Averaging: peers are pulled to their mean, or put on it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import keras

from kgraft.grafting.averaging import healthy_of, record_of
from kgraft.grafting.mixer import EpochMixer, State, StepMixer
from kgraft.grafting.peers import Moment, Peers
from kgraft.grafting.ring import GraftRecord
from kgraft.settings import setting


@dataclass(frozen=True)
class Average(EpochMixer):
    """All peers go on from the mean of all (PAPA-all).

    When: every few epochs (`every`; 5 as `papa-all` in a run file), with peers that differ in their
    data orders in between. Cost: a grafting's without the counting, each time.

    Args:
        every: see `EpochMixer`, as `epochs` and `evaluate`.

    Source: Jolicoeur-Martineau et al., TMLR 2024, PAPA-all, without its re-normalisation (REPAIR):
    batch statistics are averaged and move on in the next epoch.
    """

    def apply(self, peers: Peers, state: State, moment: Moment) -> tuple[State, GraftRecord]:
        """See `Mixer`."""
        healthy = _pull(peers, [0.0] * len(peers))
        share = 1 / max(sum(healthy), 1)
        alphas = [share if well else 1.0 for well in healthy]
        return state, record_of(peers, alphas, (None,) * len(peers), healthy)


@dataclass(frozen=True)
class Papa(StepMixer):
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

    name = "papa"
    peers = 4
    least = 2
    rate: float = setting(0.99, low=0.0, high=1.0)
    every_steps: int = setting(10, low=1)
    lr_scaling: Literal["linear", "none"] = setting("linear")

    def init(self, peers: Peers, last: State | None = None) -> State:
        """See `Mixer`: the highest learning rate that each peer has had so far."""
        if self.lr_scaling == "none":
            return {}
        known = [_highest_so_far(model, self.every_steps) for model in peers.models]
        before = known  # or what callbacks have set, too
        if last and "highest" in last:
            before = [last["highest"][k] for k in peers.places]
        highest = [
            max(own, earlier) if _has_stepped(model) else own  # a new optimizer begins anew
            for model, own, earlier in zip(peers.models, known, before, strict=True)
        ]
        return {"highest": _of_all(peers, highest)}

    def apply(self, peers: Peers, state: State, moment: Moment) -> tuple[State, None]:
        """See `Mixer`."""
        ratios = [1.0] * len(peers)
        if self.lr_scaling == "linear":
            rates = _of_all(peers, [_learning_rate(model) for model in peers.models])
            highest = [max(*pair) for pair in zip(state["highest"], rates, strict=True)]
            state, ratios = {"highest": highest}, _ratios(rates, highest)
        _pull(peers, [1 - (1 - self.rate) * ratio for ratio in ratios])
        return state, None


def _pull(peers: Peers, rates: Sequence[float]) -> list[bool]:
    """Move healthy peers towards their mean; returns who is healthy."""
    weights = peers.population()
    healthy = healthy_of(weights, len(peers))
    weights.pull(peers.plan.blended, rates, healthy)
    weights.commit()
    return healthy


def _of_all(peers: Peers, values: Sequence[float]) -> list[float]:
    """A number of every peer; NaN for a lost one, whose weights nobody moves."""
    return [math.nan if own is None else own for own in peers.gather(values, opens=True)]


def _ratios(rates: Sequence[float], highest: Sequence[float]) -> list[float]:
    """Each peer's learning rate as a share of the highest that it has had; NaN is none at all.

    Peers without one take after the first that has one; 1 where none has, or where it was always 0.
    """
    ratios = [now / most if most > 0 else 1.0 for now, most in zip(rates, highest, strict=True)]
    known = [ratio for ratio, now in zip(ratios, rates, strict=True) if not math.isnan(now)]
    others = known[0] if known else 1.0
    return [others if math.isnan(now) else own for own, now in zip(ratios, rates, strict=True)]


def _learning_rate(model: keras.Model) -> float:
    """A peer's learning rate; NaN for one that is not compiled."""
    if not model.compiled:
        return math.nan
    return float(keras.ops.convert_to_numpy(model.optimizer.learning_rate))


def _has_stepped(model: keras.Model) -> bool:
    return bool(model.compiled and int(keras.ops.convert_to_numpy(model.optimizer.iterations)))


def _highest_so_far(model: keras.Model, every: int) -> float:
    """The highest learning rate that a peer's schedule gave it, at every n-th of its past steps.

    A training that goes on from a checkpoint finds what it would have known without a break.
    """
    if not model.compiled:
        return 0.0
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
