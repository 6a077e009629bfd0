"""What optimizers know of weights: averages (`use_ema`), mixed as the weights are, and momenta.

At the end of a fit the averages take the weights' place: a grafting that reached the weights only
would be undone then. After a mixing between steps they follow by themselves, as they follow
whatever a step does; one at an epoch's end may be the last of all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from kgraft.equations import Float64
from kgraft.grafting.population import Mix, Population

Averages = Mapping[int, Any]
"""Of some weights of a model, indices as in `model.weights`, the variables with their averages."""


def averages_of(model: keras.Model, weights: Sequence[Any]) -> Averages:
    """The averages that a model's optimizer keeps.

    Args:
        model: what is trained, compiled or not.
        weights: the weights that are mixed.

    Returns:
        Nothing where it keeps none, or has none yet, before its first step.
    """
    optimizer = _optimizer(model)
    if not (getattr(optimizer, "use_ema", False) and optimizer.built):
        return {}
    if int(keras.ops.convert_to_numpy(optimizer.iterations)) == 0:
        return {}
    kept = zip(
        optimizer._trainable_variables, optimizer._model_variables_moving_average, strict=True
    )
    of = {id(own): average for own, average in kept}
    found = {index: of.get(id(weight)) for index, weight in enumerate(weights)}
    return {index: average for index, average in found.items() if average is not None}


def forget(model: keras.Model) -> None:
    """Put what a model's optimizer knows of past gradients to 0.

    Its step count, its learning rate and the averages of weights stay.

    Args:
        model: what is trained; nothing happens where it is not compiled or has taken no step.
    """
    optimizer = _optimizer(model)
    if optimizer is None or not optimizer.built:
        return
    kept = [
        optimizer.iterations,
        *(optimizer._model_variables_moving_average if optimizer.use_ema else ()),
    ]
    kept += [optimizer._learning_rate]
    others = {id(variable) for variable in kept}
    for variable in optimizer.variables:
        if id(variable) not in others:
            variable.assign(keras.ops.zeros_like(variable.value))


def _optimizer(model: keras.Model) -> Any:
    optimizer: Any = getattr(model, "optimizer", None)
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return optimizer.inner_optimizer
    return optimizer


@dataclass(eq=False)
class Kept:
    """A model's weights as they would be if its fit ended now: the averages where there are any.

    Attributes:
        weights: variables, as in `model.weights`.
    """

    weights: list[Any]

    @classmethod
    def of(cls, model: keras.Model, averages: Averages) -> "Kept":
        """Those of a model.

        Args:
            model: a built model.
            averages: what its optimizer keeps of it.
        """
        return cls([averages.get(index, own) for index, own in enumerate(model.weights)])


class WithAverages:
    """Weights of K peers whose averages are mixed as they are.

    Whatever is done to the weights is done to the averages too; where a peer has none, its weights
    stand for them. A weight that is replaced moves its average by as much.

    Args:
        weights: the weights.
        averages: the weights of each peer's `Kept`.
    """

    def __init__(self, weights: Population, averages: Population) -> None:
        self._weights, self._averages = weights, averages
        self.is_finite, self.weights = weights.is_finite, weights.weights
        self.counts, self.on_host, self.of_donors = (
            weights.counts,
            weights.on_host,
            weights.of_donors,
        )

    def mix(self, members: Sequence[int], mix: Mix) -> None:
        """See `Population`."""
        self._averages.mix(members, mix)
        self._weights.mix(members, mix)

    def graft(
        self, groups: Sequence[Sequence[int]], alphas: Float64, ring: Sequence[int | None]
    ) -> None:
        """See `Population`."""
        self._averages.graft(groups, alphas, ring)
        self._weights.graft(groups, alphas, ring)

    def pull(self, members: Sequence[int], kept: Sequence[float], healthy: Sequence[bool]) -> None:
        """See `Population`."""
        self._averages.pull(members, kept, healthy)
        self._weights.pull(members, kept, healthy)

    def replace(self, k: int, index: int, value: Any) -> None:
        """See `Population`."""
        (before,), (average,) = (own.weights(k, [index]) for own in (self._weights, self._averages))
        moved = _tensor(average) + (_tensor(value) - _tensor(before))
        self._averages.replace(k, index, moved)
        self._weights.replace(k, index, value)

    def commit(self) -> None:
        """See `Population`."""
        self._weights.commit()  # first: over a link this may raise, and then nothing is assigned
        self._averages.commit()


def _tensor(value: Any) -> Any:
    return keras.ops.stop_gradient(keras.ops.convert_to_tensor(value))
