"""What each peer is about to be trained with, in the log before anything has been trained."""

import inspect
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kgraft.grafting.mixer import Independent, Mixer
from kgraft.keras_private import flat_layers
from kgraft.settings import described as described_of

_log = logging.getLogger("kgraft")
_MULTI = vars(keras.optimizers).get("MultiOptimizer")  # Keras 3.15 on
_SCHEDULE = ("every", "every_steps", "epochs", "evaluate")
_UNSAID = ("self", "name", "dtype", "learning_rate", "fn", "inner_optimizer", "optimizer_map")


def preflight(models: Sequence[keras.Model], first: int = 1) -> None:
    """Log one line a peer: optimizer, learning rate, loss, weights that train and that are frozen.

    What differs from the first model's is in capitals, with the first one's in brackets. All
    learning rates are read in one transfer from the device; where the log is not read, nothing is.

    Args:
        models: the peers in ring order, built or not.
        first: where in the ring the first of them is, counted from 1.

    Example:
        >>> import logging, sys
        >>> log = logging.getLogger("kgraft")
        >>> log.addHandler(handler := logging.StreamHandler(sys.stdout)); log.setLevel("INFO")
        >>> peers = [keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]) for _ in range(2)]
        >>> for peer, rate in zip(peers, (0.1, 0.05)):
        ...     peer.compile(keras.optimizers.SGD(rate, momentum=0.9), "mse")
        >>> preflight(peers)
        peer 1: optimizer SGD(momentum=0.9), learning rate 0.1, loss mse, \
2 weights (3 parameters) train, 0 are frozen
        peer 2: optimizer SGD(momentum=0.9), LEARNING RATE 0.05 (peer 1: 0.1), loss mse, \
2 weights (3 parameters) train, 0 are frozen
        >>> log.removeHandler(handler); log.setLevel("NOTSET")
    """
    if _log.isEnabledFor(logging.INFO):
        for line in described(models, first):
            _log.info("%s", line)


def say_if_idle(mixer: Mixer, epochs: range, steps: int | None = None) -> None:
    """Log that a mixer has nothing to do in a training, where it is there to do something.

    A training of one epoch may be one of many: there it is no warning.

    Args:
        mixer: the mixer.
        epochs: the training's, counted from 0 over all trainings.
        steps: how many an epoch has, None where nobody knows.
    """
    if isinstance(mixer, Independent) or not epochs or mixer.acts_in(epochs, steps):
        return
    own = {name: getattr(mixer, name) for name in _SCHEDULE if name in described_of(mixer)}
    schedule = ", ".join(f"{name}={value!r}" for name, value in own.items() if value is not None)
    _log.log(
        logging.WARNING if len(epochs) > 1 else logging.INFO,
        "%s(%s) never acts in this training of %d epoch%s: the peers are trained and not mixed.",
        type(mixer).__name__,
        schedule,
        len(epochs),
        "" if len(epochs) == 1 else "s",
    )


def described(models: Sequence[keras.Model], first: int = 1) -> list[str]:
    """The lines that `preflight` logs.

    Args:
        models: the peers in ring order, built or not.
        first: where in the ring the first of them is, counted from 1.
    """
    rates = learning_rates(models)
    facts = [_facts(model, own) for model, own in zip(models, rates, strict=True)]
    return [
        f"peer {k}: "
        + ", ".join(_phrase(fact, usual, first) for fact, usual in zip(own, facts[0], strict=True))
        for k, own in enumerate(facts, start=first)
    ]


def learning_rates(models: Sequence[keras.Model]) -> list[list[float]]:
    """Each model's learning rates now, one for each of its optimizers, in one transfer.

    Args:
        models: models, compiled or not; a model without optimizer has none.
    """
    optimizers = [optimizers_of(model) for model in models]
    rates = [optimizer.learning_rate for own in optimizers for optimizer in own]
    if not rates:
        return [[] for _ in models]
    tensors = [keras.ops.cast(keras.ops.convert_to_tensor(rate), "float32") for rate in rates]
    stacked = keras.ops.stack([keras.ops.reshape(tensor, ()) for tensor in tensors])
    values = iter(np.asarray(keras.ops.convert_to_numpy(stacked)).tolist())
    return [[next(values) for _ in own] for own in optimizers]


def optimizers_of(model: Any) -> list[Any]:
    """The optimizers that move a model's weights: those inside of a wrapping one, not that one.

    Args:
        model: a model, compiled or not.
    """
    return list(_unwrapped(model.optimizer)) if model.compiled else []


@dataclass(frozen=True)
class _Fact:
    """What is said of a peer: `before value after`."""

    before: str
    value: str
    after: str = ""


def _phrase(fact: _Fact, usual: _Fact, first: int) -> str:
    if fact.value == usual.value:
        return f"{fact.before}{fact.value}{fact.after}"
    return f"{fact.before.upper()}{fact.value}{fact.after.upper()} (peer {first}: {usual.value})"


def _facts(model: Any, rates: list[float]) -> list[_Fact]:
    optimizers = optimizers_of(model)
    return [
        _Fact("optimizer ", _optimizer(model) if model.compiled else "none, it is not compiled"),
        _Fact("learning rate ", " and ".join(map(_rate, optimizers, rates)) or "none"),
        _Fact("loss ", _loss(model.loss) if model.compiled else "none"),
        _Fact("", _amount(model.trainable_variables, model), " train"),
        _Fact("", _amount(_frozen(model), model), " are frozen"),
    ]


def _rate(optimizer: Any, value: float) -> str:
    schedule = optimizer._learning_rate
    return f"{_name(schedule)}, now {value:g}" if callable(schedule) else f"{value:g}"


def _optimizer(model: Any) -> str:
    outer, inner = model.optimizer, optimizers_of(model)
    if outer is None:
        return "none"
    names = " and ".join(map(_with_settings, inner))
    return names if inner == [outer] else f"{type(outer).__name__} of {names or 'none yet'}"


def _unwrapped(optimizer: Any) -> Iterator[Any]:
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        yield from _unwrapped(optimizer.inner_optimizer)
    elif _MULTI is not None and isinstance(optimizer, _MULTI):
        yield from optimizer.optimizers
    elif optimizer is not None:
        yield optimizer


def _loss(loss: Any) -> str:
    if loss is None:
        return "the model's own"
    if isinstance(loss, dict):
        return "{" + ", ".join(f"{name}: {_loss(part)}" for name, part in loss.items()) + "}"
    if isinstance(loss, list | tuple):
        return "[" + ", ".join(map(_loss, loss)) + "]"
    return _with_settings(loss) if isinstance(loss, keras.Loss) else _name(loss)


def _with_settings(part: Any) -> str:
    """A class and those of its arguments that are not as they are by default.

    Attributes are read and no config is made, which would fetch a learning rate from the device.
    """
    defaults: dict[str, Any] = {}
    for kind in type(part).__mro__:
        if kind is not object and "__init__" in vars(kind):
            for name, parameter in inspect.signature(vars(kind)["__init__"]).parameters.items():
                defaults.setdefault(name, parameter.default)
    plain = (bool, int, float, str, tuple)
    given = {**vars(part), **vars(part).get("_fn_kwargs", {})}  # where a loss keeps its arguments
    settings = [
        f"{name}={value!r}"
        for name, default in defaults.items()
        if name not in _UNSAID and type(value := given.get(name)) in plain and value != default
    ]
    return type(part).__name__ + (f"({', '.join(settings)})" if settings else "")


def _amount(variables: Sequence[Any], model: Any) -> str:
    if not model.built:
        return "an unknown number of weights, it is not built,"
    if not variables:
        return "0"
    numbers = sum(math.prod(variable.shape) for variable in variables)
    noun = "weight" if len(variables) == 1 else "weights"
    return f"{len(variables)} {noun} ({numbers:,} parameter{'s' if numbers != 1 else ''})"


def _frozen(model: Any) -> list[Any]:
    """Weights that would train if nothing were frozen; batch statistics never would."""
    trained = {id(variable) for variable in model.trainable_variables}
    found = {
        id(variable): variable
        for layer in flat_layers(model)
        for variable in layer._trainable_variables
        if id(variable) not in trained
    }
    return list(found.values())


def _name(thing: Any) -> str:
    if isinstance(thing, str):
        return thing
    return thing.__name__ if inspect.isroutine(thing) else type(thing).__name__
