"""What native networks and traces take for granted: the plain settings of everything in a step.

Stands beside the way of a step: `native_steps` compares a model's settings whenever it turns to
training or to inference, `traced_steps` those of its optimizers at every step. What has changed is
built or traced anew, so that a callback may set a layer's `momentum` or a loss' `label_smoothing`
as it may in `fit`.
"""

import types
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

_PLAIN = (bool, int, float, str, type(None))
_PRIVATE = ("_trainable", "_fn_kwargs")
_STATE = frozenset(  # of a running `fit`, and of a torch module
    "built compiled stop_evaluating stop_predicting stop_training training "
    "train_function test_function predict_function".split()
)
_PARTS = (
    keras.constraints.Constraint,
    keras.losses.Loss,
    keras.optimizers.schedules.LearningRateSchedule,
    keras.regularizers.Regularizer,
    keras.DTypePolicy,
)


def settings_of(model: Any) -> tuple[Any, ...]:
    """Settings of a model's layers, and if it is compiled of its loss, metrics and optimizers.

    Args:
        model: a built model.

    Returns:
        What is equal as long as nothing was set.
    """
    found: list[Any] = [_of(layer) for layer in model._flatten_layers()]
    found.append([variable.trainable for variable in model.variables])
    if model.compiled:
        found += [model._compile_loss, *map(_of, keras.tree.flatten(model.loss))]
        found += [_of(part) for metric in model.metrics for part in metrics_of(metric)]
        found += [_of(optimizer) for optimizer in optimizers_of(model)]
        found.append(optimizer_settings(model))
    return tuple(found)


def optimizer_settings(model: Any) -> list[Any]:
    """Plain settings of a compiled model's optimizers, cheap enough for every step.

    Args:
        model: a compiled model.
    """
    return [
        value
        for optimizer in optimizers_of(model)
        for value in (
            optimizer._learning_rate,
            *(own for own in vars(optimizer).values() if type(own) in _PLAIN),
        )
    ]


def optimizers_of(model: Any) -> list[Any]:
    """Every optimizer of a compiled model that moves variables by itself."""
    return [optimizer for optimizer in all_optimizers(model) if not _inside(optimizer)]


def all_optimizers(model: Any) -> list[Any]:
    """Every optimizer of a compiled model, those that wrap others included."""
    found = [model.optimizer]
    for optimizer in found:  # grows
        found.extend(_inside(optimizer))
    return found


def metrics_of(metric: Any) -> Iterator[Any]:
    """A metric, and what a metric of compiled metrics consists of."""
    yield metric
    yield from getattr(metric, "metrics", ())


def _inside(optimizer: Any) -> list[Any]:
    """The optimizers that one passes gradients on to: Keras' wrappers, and kgraft's of peers."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return [optimizer.inner_optimizer]
    return list(vars(optimizer).get("optimizers", ()))


def _of(part: Any) -> Any:
    """Settings of one thing: a name's plain value, whose parts that hold settings are asked too."""
    if isinstance(part, (*_PLAIN, types.FunctionType, types.BuiltinFunctionType, type)):
        return part
    return (
        part,
        [
            (name, known)
            for name, value in vars(part).items()
            if name not in _STATE and (known := _known(name, value)) is not _NOTHING
        ],
    )


_NOTHING = object()


def _known(name: str, value: Any) -> Any:
    """What is compared of an attribute, `_NOTHING` of what is no setting."""
    if isinstance(value, _PARTS):
        return _of(value)
    if name.startswith("_") and name not in _PRIVATE:
        return _NOTHING
    if isinstance(value, types.FunctionType | types.BuiltinFunctionType | type):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, tuple | list):
        return tuple(_known("", own) for own in value)
    if isinstance(value, dict):
        return tuple((key, _known("", own)) for key, own in value.items())
    return value if type(value) in _PLAIN else _NOTHING
