"""What native and traced steps have taken for granted: the settings of all that takes part in them.

Stands beside the way of a step. `native_steps` compares all settings before every epoch, evaluation
and prediction, and makes its networks anew where one has changed; `traced_steps` drops its traces
then, and looks at the model's, the losses' and the optimizers' own numbers before every step that
it plays.
"""

import functools
import operator
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import torch

from kgraft.keras_private import BOOKS, flat_layers

_Optimizer = keras.optimizers.Optimizer
_PLAIN = (bool, int, float, complex, str, bytes, types.NoneType)
_HOOKS = frozenset(
    {"_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"}
)
_SKIPPED = BOOKS | frozenset(vars(torch.nn.Module())) - _HOOKS
# How a model inside of another was compiled has no part in the other's step.
_COMPILED = frozenset(
    {"_compile_loss", "_compile_metrics", "_loss_tracker", "compiled", "loss", "optimizer"}
)


@dataclass(frozen=True, eq=False)
class Same:
    """Stands for an object among settings: equal to the same object alone, which it keeps alive."""

    thing: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.thing is other.thing

    def __hash__(self) -> int:
        return id(self.thing)


def settings_of(model: Any) -> tuple[Any, ...]:
    """All settings that a step of a model may depend on, to be compared with later ones.

    Numbers, names and functions of the model, its layers, losses, metrics, optimizers, schedules,
    regularizers and constraints; for variables whether they train; which objects all these are.

    Args:
        model: a built model, compiled or not.
    """
    described = [(Same(part), _described(own)) for part, own in _parts(model)]
    variables = [
        (Same(v), Same(v._value), v.trainable, Same(v.regularizer), Same(v.constraint))
        for v in model.variables
    ]
    return (*described, *variables)


def foreign_parts(model: Any) -> Iterator[Any]:
    """What takes part in a model's step and can be called, but is neither Keras' nor kgraft's.

    Args:
        model: a built, compiled model.
    """
    for part, own in _parts(model):
        if not _is_ours(part):
            yield part
        for value in _flat(list(own.values())):
            if _acts(value) and not _is_ours(value):
                yield value


class Numbers:
    """The plain settings of a model, its losses and its optimizers, to be compared at every step.

    Args:
        model: a model, compiled or not.
    """

    def __init__(self, model: Any) -> None:
        roots = list(_compiled_parts(model))
        self._model, self._roots = model, roots
        self._reads: list[tuple[Any, Any, Any]] = []
        self._rates: list[tuple[Any, Any]] = []
        found: dict[int, tuple[Any, dict[str, Any]]] = {id(model): (model, _own(model))}
        _gather(list(_own(model).values()), found)
        for part, own in found.values():
            tables = [entry for entry in own.values() if isinstance(entry, dict)]
            for table, entries in [(vars(part), own), *((entry, entry) for entry in tables)]:
                names = [name for name, value in entries.items() if isinstance(value, _PLAIN)]
                if names:
                    read = operator.itemgetter(*names)
                    self._reads.append((table, read, read(table)))
            if isinstance(part, _Optimizer):
                self._rates.append((part, part._learning_rate))

    def hold(self) -> bool:
        """Whether they are what they were."""
        return (
            all(map(operator.is_, _compiled_parts(self._model), self._roots))
            and all(part._learning_rate is rate for part, rate in self._rates)
            and all(read(own) == seen for own, read, seen in self._reads)
        )


def variables_of(model: Any) -> list[Any]:
    """Everything that a step may change.

    Args:
        model: a built model, compiled or not.
    """
    optimizer = getattr(model, "optimizer", None)
    own = [] if optimizer is None else optimizer.variables
    found = [*model.variables, *own, *model.metrics_variables]
    return list({id(variable): variable for variable in found}.values())


def optimizers_of(model: Any) -> list[Any]:
    """A model's optimizer and those inside of it; none where it is not compiled."""
    found: dict[int, tuple[Any, dict[str, Any]]] = {}
    _gather(getattr(model, "optimizer", None), found)
    return [part for part, _ in found.values() if isinstance(part, _Optimizer)]


def _compiled_parts(model: Any) -> tuple[Any, ...]:
    """What `compile` has given to a model, Nones where it was not called."""
    return getattr(model, "optimizer", None), model._compile_loss, model._compile_metrics


def _parts(model: Any) -> list[tuple[Any, dict[str, Any]]]:
    """Every object with settings that takes part in a model's step, and its attributes."""
    found: dict[int, tuple[Any, dict[str, Any]]] = {}
    for layer in flat_layers(model):
        own = _own(layer)
        if layer is not model:
            own = {name: value for name, value in own.items() if name not in _COMPILED}
        found[id(layer)] = (layer, own)
    for _, own in list(found.values()):
        _gather(list(own.values()), found)
    for variable in model.variables:
        _gather([variable.regularizer, variable.constraint], found)
    return list(found.values())


def _gather(value: Any, found: dict[int, tuple[Any, dict[str, Any]]]) -> None:
    """Add the objects with settings in a value, and in their attributes, to those found so far."""
    for part in _flat(value):
        if id(part) not in found and _has_settings(part):
            own = _own(part)
            found[id(part)] = (part, own)
            _gather(list(own.values()), found)


def _own(part: Any) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(part).items()
        if name not in _SKIPPED and not name.endswith("_initializer")
    }


def _flat(value: Any) -> Iterator[Any]:
    """What a value holds that is no container."""
    if isinstance(value, dict):
        for entry in value.values():
            yield from _flat(entry)
    elif isinstance(value, list | tuple | set | frozenset):
        for entry in value:
            yield from _flat(entry)
    else:
        yield value


def _has_settings(part: Any) -> bool:
    """Whether an attribute's value is an object to look into: a layer is one of its own."""
    kind: Any = type(part)
    return _is_looked_into(kind) and not isinstance(part, type)


@functools.cache
def _is_looked_into(kind: type) -> bool:
    return (
        kind.__module__.split(".")[0] in ("keras", "kgraft")
        and kind.__dictoffset__ != 0
        and not issubclass(kind, keras.Layer | keras.Variable | keras.KerasTensor)
    )


def _acts(value: Any) -> bool:
    """Whether it does something in a step, other than an object that only says what it is."""
    return (callable(value) and not isinstance(value, type)) or isinstance(value, _Optimizer)


def _described(value: Any) -> Any:
    """A value as something that equals its like."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return tuple((_described(key), _described(entry)) for key, entry in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(_described, value))
    if isinstance(value, set | frozenset):
        return frozenset(map(_described, value))
    return Same(value)


def _is_ours(part: Any) -> bool:
    """Whether something is Keras' or kgraft's own."""
    part = part.__func__ if isinstance(part, types.MethodType) else part
    kind = part if isinstance(part, types.FunctionType) else type(part)
    return kind.__module__.split(".")[0] in ("keras", "kgraft")
