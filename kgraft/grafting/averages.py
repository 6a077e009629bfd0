"""What optimizers know of weights: averages (`use_ema`), mixed as the weights are, and momenta.

At the end of a fit the averages take the weights' place: a grafting that reached the weights only
would be undone then. After a mixing between steps they follow by themselves, as they follow
whatever a step does; one at an epoch's end may be the last of all.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import keras

from kgraft.equations import Float64
from kgraft.grafting.population import Mix, Population
from kgraft.grafting.ring import ring_mix

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
        self.commit, self.counts, self.on_host = weights.commit, weights.counts, weights.on_host

    def mix(self, members: Sequence[int], mix: Mix) -> None:
        """See `Population`."""
        self._mix_averages(members, mix)
        self._weights.mix(members, mix)

    def graft(
        self, groups: Sequence[Sequence[int]], alphas: Float64, ring: Sequence[int | None]
    ) -> None:
        """See `Population`."""
        for members, shares in zip(groups, alphas.T.tolist(), strict=True):
            self._mix_averages(members, partial(ring_mix, alphas=shares, ring=ring))
        self._weights.graft(groups, alphas, ring)

    def _mix_averages(self, members: Sequence[int], mix: Mix) -> None:
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

    def replace(self, k: int, index: int, value: Any) -> None:
        """See `Population`."""
        average = self._averages[k].get(index)
        if average is not None:
            before = _tensor(self._weights.weights(k, [index])[0])
            average.assign(average.value + (_tensor(value) - before))
        self._weights.replace(k, index, value)


def _tensor(value: Any) -> Any:
    return keras.ops.stop_gradient(keras.ops.convert_to_tensor(value))
