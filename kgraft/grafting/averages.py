"""The averages that optimizers keep of weights (`use_ema`), mixed as the weights are.

At the end of a fit the averages take the weights' place: a grafting that reached the weights only
would be undone then. After a mixing between steps they follow by themselves, as they follow
whatever a step does; one at an epoch's end may be the last of all.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import keras

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
    optimizer: Any = getattr(model, "optimizer", None)
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer = optimizer.inner_optimizer
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


class WithAverages:
    """Weights of K peers whose averages are mixed as they are.

    An elementwise mixing is done to the averages too; where a peer has none, its weights stand for
    them. A weight that is replaced moves its average by as much.

    Args:
        weights: the weights.
        averages: each peer's.
    """

    def __init__(self, weights: Population, averages: Sequence[Averages]) -> None:
        self._weights, self._averages = weights, averages
        self.is_finite, self.weights = weights.is_finite, weights.weights
        self.commit = weights.commit

    def mix(self, members: Sequence[int], mix: Mix) -> None:
        """See `Population`."""
        for index in members:
            kept = [own.get(index) for own in self._averages]
            if any(average is not None for average in kept):
                before = [
                    _tensor(self._weights.weights(k, [index])[0] if own is None else own.value)
                    for k, own in enumerate(kept)
                ]
                for average, value in zip(kept, mix(before), strict=True):
                    if average is not None:
                        average.assign(value)
        self._weights.mix(members, mix)

    def replace(self, k: int, index: int, value: Any) -> None:
        """See `Population`."""
        average = self._averages[k].get(index)
        if average is not None:
            before = _tensor(self._weights.weights(k, [index])[0])
            average.assign(average.value + (_tensor(value) - before))
        self._weights.replace(k, index, value)


def _tensor(value: Any) -> Any:
    return keras.ops.stop_gradient(keras.ops.convert_to_tensor(value))
