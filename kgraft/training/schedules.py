"""Learning rates: what the papers' recipes use, as serialisable Keras schedules.

| function | PyTorch | the papers |
|---|---|---|
| `step_decay` | `StepLR` | "slr": x0.1 every 60 epochs |
| `cosine` | `CosineAnnealingLR`, stepped per epoch | |
| `cosine_per_step` | `CosineAnnealingLR`, stepped per batch | "dlr", with `spread` over the peers |
| `warmup` | `LinearLR`, chained with another | |
| `spread` | | the initial learning rate of each of K peers |

A Keras schedule counts optimizer steps, a PyTorch scheduler epochs: each function takes
`steps_per_epoch`, the number of batches an epoch has, the last partial one included.
"""

import math
from typing import Any

import keras

from kgraft.errors import UserError
from kgraft.settings import argument


def step_decay(
    lr: float, *, every: int, steps_per_epoch: int, factor: float = 0.1
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Learning rate that is multiplied by `factor` every `every` epochs.

    Args:
        lr: learning rate of the first epoch, positive.
        every: epochs between two drops, at least 1.
        steps_per_epoch: optimizer steps in an epoch, at least 1.
        factor: what each drop multiplies by, in (0, 1].

    Returns:
        lr * factor ** floor(epoch / every), as `keras.optimizers.schedules.ExponentialDecay`.

    Raises:
        UserError: an argument is out of range.

    Example:
        >>> schedule = step_decay(0.1, every=60, steps_per_epoch=391)
        >>> [round(float(schedule(epoch * 391)), 6) for epoch in (0, 59, 60, 120, 199)]
        [0.1, 0.1, 0.01, 0.001, 0.0001]

    Source: the papers' "slr", lr 0.1, x0.1 every 60 of 200 epochs.
    """
    _check(lr=lr, every=every, steps_per_epoch=steps_per_epoch, factor=factor)
    return keras.optimizers.schedules.ExponentialDecay(
        lr, decay_steps=every * steps_per_epoch, decay_rate=factor, staircase=True
    )


def cosine(
    lr: float, *, epochs: int, steps_per_epoch: int
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Learning rate that falls from `lr` towards 0 along half a cosine, once an epoch.

    It stands still within an epoch, as `CosineAnnealingLR` in the usual PyTorch loop, so the last
    epoch's rate is not 0. The authors' "dlr" is `cosine_per_step`.

    Args:
        lr: learning rate of the first epoch, positive.
        epochs: epochs to anneal over, at least 1; after them the rate stays 0.
        steps_per_epoch: optimizer steps in an epoch, at least 1.

    Returns:
        lr (1 + cos(pi epoch / epochs)) / 2.

    Raises:
        UserError: an argument is out of range.

    Example:
        >>> schedule = cosine(0.1, epochs=4, steps_per_epoch=10)
        >>> [round(float(schedule(step)), 4) for step in (0, 9, 10, 20, 39, 40)]
        [0.1, 0.1, 0.0854, 0.05, 0.0146, 0.0]
    """
    _check(lr=lr, epochs=epochs, steps_per_epoch=steps_per_epoch)
    return EpochCosineDecay(lr, epochs=epochs, steps_per_epoch=steps_per_epoch)


def cosine_per_step(
    lr: float, *, epochs: int, steps_per_epoch: int
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Learning rate that falls from `lr` to 0 along half a cosine, a little at every step.

    Args:
        lr: learning rate of the first step, positive.
        epochs: epochs to anneal over, at least 1; after them the rate stays 0.
        steps_per_epoch: optimizer steps in an epoch, at least 1.

    Returns:
        lr (1 + cos(pi step / (epochs steps_per_epoch))) / 2, as
        `keras.optimizers.schedules.CosineDecay`.

    Raises:
        UserError: an argument is out of range.

    Example:
        >>> schedule = cosine_per_step(0.1, epochs=2, steps_per_epoch=2)
        >>> [round(float(schedule(step)), 4) for step in range(5)]
        [0.1, 0.0854, 0.05, 0.0146, 0.0]

    Source: the authors' "dlr": `CosineAnnealingLR` with T_max = epochs x batches, stepped after
    every batch.
    """
    _check(lr=lr, epochs=epochs, steps_per_epoch=steps_per_epoch)
    return keras.optimizers.schedules.CosineDecay(lr, decay_steps=epochs * steps_per_epoch)


def warmup(
    schedule: "float | keras.optimizers.schedules.LearningRateSchedule",
    *,
    epochs: int,
    steps_per_epoch: int,
) -> keras.optimizers.schedules.LearningRateSchedule:
    """A schedule whose first epochs rise linearly, step by step, to what it says.

    Args:
        schedule: a learning rate or a schedule, which counts its steps from the very first.
        epochs: epochs to rise over, at least 1.
        steps_per_epoch: optimizer steps in an epoch, at least 1.

    Returns:
        schedule(step) * min(1, (step + 1) / (epochs steps_per_epoch)).

    Raises:
        UserError: an argument is out of range.

    Example:
        >>> schedule = warmup(0.1, epochs=2, steps_per_epoch=2)
        >>> [round(float(schedule(step)), 4) for step in range(5)]
        [0.025, 0.05, 0.075, 0.1, 0.1]

    Source: Goyal et al., arXiv 1706.02677, section 2.2.
    """
    _check(epochs=epochs, steps_per_epoch=steps_per_epoch)
    if not isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule):
        argument("schedule", schedule, float, above=0)
    return Warmup(schedule, steps=epochs * steps_per_epoch)


def spread(lr: float, k: int, K: int) -> float:
    """Initial learning rate of one of K peers: the first has the lowest, the last `lr` itself.

    lr (1 + cos(pi (K - i) / K)) / 2 with i = k + 1

    Args:
        lr: learning rate of the last peer, positive.
        k: the peer, counted from 0.
        K: number of peers.

    Returns:
        The peer's learning rate.

    Raises:
        UserError: `lr` is not positive, K is less than 1, or k is not one of 0..K-1.

    Example:
        >>> [round(spread(0.1, k, 4), 4) for k in range(4)]
        [0.0146, 0.05, 0.0854, 0.1]

    Source: the authors' "dlr" (FG, table 4); the peer reported in the papers is k = 0.
    """
    _check(lr=lr, K=K)
    argument("k", k, int)
    if not 0 <= k < K:
        raise UserError(f"k={k}: {K} peers are counted from 0 to {K - 1}.")
    return lr * (1 + math.cos(math.pi * (K - (k + 1)) / K)) / 2


@keras.saving.register_keras_serializable("kgraft")
class EpochCosineDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Cosine annealing that steps once an epoch; made by `cosine`.

    Args:
        initial_learning_rate: learning rate of the first epoch.
        epochs: epochs to anneal over.
        steps_per_epoch: optimizer steps in an epoch.
    """

    def __init__(self, initial_learning_rate: float, epochs: int, steps_per_epoch: int) -> None:
        self.initial_learning_rate = initial_learning_rate
        self.epochs = epochs
        self.steps_per_epoch = steps_per_epoch

    def __call__(self, step: Any) -> Any:
        """Learning rate of an optimizer step, counted from 0, scalar tensor."""
        epoch = keras.ops.floor_divide(keras.ops.convert_to_tensor(step), self.steps_per_epoch)
        done = keras.ops.cast(keras.ops.minimum(epoch, self.epochs), keras.config.floatx())
        return self.initial_learning_rate * (1 + keras.ops.cos(math.pi / self.epochs * done)) / 2

    def get_config(self) -> dict[str, Any]:
        """Arguments of the constructor."""
        return {
            "initial_learning_rate": self.initial_learning_rate,
            "epochs": self.epochs,
            "steps_per_epoch": self.steps_per_epoch,
        }


@keras.saving.register_keras_serializable("kgraft")
class Warmup(keras.optimizers.schedules.LearningRateSchedule):
    """Linear rise to another schedule; made by `warmup`.

    Args:
        schedule: a learning rate or a schedule.
        steps: optimizer steps to rise over.
    """

    def __init__(self, schedule: Any, steps: int) -> None:
        self.schedule = schedule
        self.steps = steps

    def __call__(self, step: Any) -> Any:
        """Learning rate of an optimizer step, counted from 0, scalar tensor."""
        done = keras.ops.cast(keras.ops.convert_to_tensor(step) + 1, keras.config.floatx())
        rate = self.schedule(step) if callable(self.schedule) else self.schedule
        return rate * keras.ops.minimum(1.0, done / self.steps)

    def get_config(self) -> dict[str, Any]:
        """Arguments of the constructor."""
        schedule = keras.saving.serialize_keras_object(self.schedule)
        return {"schedule": schedule, "steps": self.steps}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Warmup":
        """The schedule that `get_config` described."""
        schedule = config["schedule"]
        if isinstance(schedule, dict):
            schedule = keras.saving.deserialize_keras_object(schedule)
        return cls(schedule, config["steps"])


def _check(*, lr: Any = 1.0, factor: Any = 1.0, **counts: Any) -> None:
    argument("lr", lr, float, above=0)
    argument("factor", factor, float, above=0, high=1)
    for name, count in counts.items():
        argument(name, count, int, low=1)
