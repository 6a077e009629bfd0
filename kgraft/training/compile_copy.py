"""A peer compiled as a model is: what keeps no state is shared, what keeps state is made anew.

Names decide nothing here: a loss, a schedule or a function is the model's very object; an optimizer
or a metric is made by its own class, from its own config, and then compared with what was meant,
setting by setting. What does not come out equal is refused.
"""

import functools
import types
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from kgraft.errors import UserError

_LOSES = (TypeError, ValueError, KeyError, AttributeError, NotImplementedError)
_MULTI = vars(keras.optimizers).get("MultiOptimizer")  # Keras 3.15 on
_DEPTH = 6  # of settings inside settings; deeper ones count as different


class _Lost(Exception):
    """Why something cannot be copied."""


def compile_as(peer: keras.Model, model: keras.Model, name: str) -> None:
    """Compile a peer as a model is compiled now, with an optimizer and metrics of its own.

    Losses, loss functions and learning rate schedules are shared, since they keep no state. The
    optimizer starts anew, with the settings that the model's has now, those changed since it was
    made and `exclude_from_weight_decay` included.

    Args:
        peer: the model to compile.
        model: a compiled, built model of the same architecture.
        name: what to call the peer in an error.

    Raises:
        UserError: something in it cannot be copied exactly; names the part and the reason.
    """
    try:
        if _compiles_itself(peer) or _compiles_itself(model):
            _by_their_own_way(peer, model)
        else:
            _compile(peer, model)
    except _Lost as reason:
        raise UserError(
            f"{name} ({peer.name!r}) cannot be compiled as {model.name!r} is: {reason}. "
            "Call its compile() yourself."
        ) from reason
    peer._compile_config.copied_from = (weakref.ref(model), weakref.ref(model._compile_config))


def must_compile(peer: keras.Model, model: keras.Model) -> bool:
    """Whether a peer is to be compiled as a model is.

    Args:
        peer: a peer.
        model: the compiled model that `fit` trains.

    Returns:
        True for a peer that is not compiled, or that `compile_as` compiled before the model's
        `compile` was called again; what a user has compiled stays.
    """
    if not peer.compiled:
        return True
    source, config = vars(peer._compile_config).get("copied_from", (None, None))
    return source is not None and source() is model and config() is not model._compile_config


def _compile(peer: Any, model: Any) -> None:
    meant = model._compile_config.config
    half = model.dtype_policy.name == "mixed_float16"
    scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    for loss in keras.tree.flatten(meant.get("loss")):
        _check_stateless(loss, "loss")
    metrics = _Metrics()
    optimizer = _Optimizers(_pairs(model, peer)).anew(model.optimizer)
    peer.compile(
        optimizer=optimizer,
        loss=meant.get("loss"),
        loss_weights=meant.get("loss_weights"),
        metrics=metrics.anew(meant.get("metrics")),
        weighted_metrics=metrics.anew(meant.get("weighted_metrics")),
        run_eagerly=model.run_eagerly,
        steps_per_execution=model.steps_per_execution,
        jit_compile=model.jit_compile,
        auto_scale_loss=scaled or not half,
    )


def _compiles_itself(model: Any) -> bool:
    return type(model).compile is not keras.Model.compile


def _by_their_own_way(peer: Any, model: Any) -> None:
    """With the model's own `compile_from_config`, the pair of methods that Keras asks it for."""
    kind = type(model)
    if (
        type(peer) is not kind
        or kind.get_compile_config is keras.Model.get_compile_config
        or kind.compile_from_config is keras.Model.compile_from_config
    ):
        raise _Lost(
            f"{(kind if _compiles_itself(model) else type(peer)).__name__} has a compile() of its "
            "own, whose arguments nobody knows"
        )
    try:
        peer.compile_from_config(model.get_compile_config())
    except _LOSES as error:
        raise _Lost(f"{kind.__name__}.compile_from_config failed ({_line(error)})") from error
    if not peer.compiled:
        raise _Lost(f"{kind.__name__}.compile_from_config leaves it uncompiled")
    _compare(model.optimizer, peer.optimizer, "optimizer")


class _Metrics:
    """Copies of metrics, one for each."""

    def __init__(self) -> None:
        self._made: dict[int, Any] = {}

    def anew(self, metrics: Any) -> Any:
        """The same nest with metrics that have counted nothing yet."""
        return keras.tree.map_structure(self._one, metrics)

    def _one(self, metric: Any) -> Any:
        if not isinstance(metric, keras.Metric):
            _check_stateless(metric, "metric")
            return metric
        if id(metric) not in self._made:
            self._made[id(metric)] = self._copy(metric)
        return self._made[id(metric)]

    def _copy(self, metric: Any) -> Any:
        if type(metric) is keras.metrics.MeanMetricWrapper:  # its config knows functions by name
            _check_stateless(metric._fn, "metric")
            return type(metric)(
                metric._fn, name=metric.name, dtype=metric.dtype, **metric._fn_kwargs
            )
        copy = _from_config(metric, metric.get_config, "metric")
        _compare(metric, copy, "metric")
        return copy


class _Optimizers:
    """Copies of optimizers, one for each, for other variables.

    Args:
        pairs: the model's variables, each with the peer's; None where the peer has none yet.
    """

    def __init__(self, pairs: list[tuple[Any, Any]] | None) -> None:
        self._pairs = pairs
        self._made: dict[int, Any] = {}

    def anew(self, optimizer: Any) -> Any:
        """An optimizer with the same settings that has taken no step yet."""
        if optimizer is None:
            return None
        if id(optimizer) not in self._made:
            self._made[id(optimizer)] = self._copy(optimizer)
        return self._made[id(optimizer)]

    def _copy(self, optimizer: Any) -> Any:
        if type(optimizer) is keras.optimizers.LossScaleOptimizer:
            return type(optimizer)(
                self.anew(optimizer.inner_optimizer),
                initial_scale=optimizer.initial_scale,
                dynamic_growth_steps=optimizer.dynamic_growth_steps,
                name=optimizer.name,
            )
        if _MULTI is not None and type(optimizer) is _MULTI:
            return self._copy_of_many(optimizer)
        copy = _from_config(optimizer, lambda: _config(optimizer), "optimizer")
        _compare(optimizer, copy, "optimizer")
        self._exclude(optimizer, copy)
        return copy

    def _copy_of_many(self, optimizer: Any) -> Any:
        chosen = optimizer._optimizer_map
        kind = keras.optimizers.OptimizerMap
        if type(chosen) is not kind:
            raise _Lost("a function chooses the optimizers of its MultiOptimizer")
        copy = kind(
            self.anew(chosen.default_optimizer),
            {pattern: self.anew(own) for pattern, own in chosen.items()},
        )
        for own, other in self._pairs or ():
            if own.trainable and self.anew(chosen(own)) is not copy(other):
                raise _Lost(
                    f"its OptimizerMap chooses by names, and {own.path} is {other.path} here"
                )
        return type(optimizer)(
            copy, loss_scale_factor=optimizer.loss_scale_factor, name=optimizer.name
        )

    def _exclude(self, optimizer: Any, copy: Any) -> None:
        """What has no weight decay in the model has none in the peer, whatever it is called."""
        listed = vars(optimizer).get("_exclude_from_weight_decay")
        pattern = vars(optimizer).get("_exclude_from_weight_decay_pattern")
        if not listed and pattern is None:
            return
        names = [] if pattern is None else [pattern.pattern]
        copy.exclude_from_weight_decay(var_names=names)
        if self._pairs is None:
            if listed:
                raise _Lost(
                    f"optimizer {_kind(optimizer)} excludes some variables from weight decay, and "
                    "the peer is not built"
                )
            return
        decays = [optimizer._use_weight_decay(own) for own, _ in self._pairs]
        if decays != [copy._use_weight_decay(other) for _, other in self._pairs]:
            pairs = zip(self._pairs, decays, strict=True)
            copy.exclude_from_weight_decay(var_list=[other for (_, other), on in pairs if not on])


def _pairs(model: Any, peer: Any) -> list[tuple[Any, Any]] | None:
    own, others = model.variables, peer.variables
    shapes = [[tuple(v.shape) for v in variables] for variables in (own, others)]
    return list(zip(own, others, strict=True)) if peer.built and shapes[0] == shapes[1] else None


def _config(optimizer: Any) -> dict[str, Any]:
    """Its config with the learning rate's schedule itself, which may be of an unknown class."""
    rate = optimizer._learning_rate
    if not callable(rate):
        return optimizer.get_config()
    without = object.__new__(type(optimizer))
    vars(without).update(vars(optimizer))
    vars(without)["_learning_rate"] = None
    config = without.get_config()
    return {**config, "learning_rate": rate} if "learning_rate" in config else config


def _from_config(part: Any, config: Callable[[], dict[str, Any]], what: str) -> Any:
    try:
        return type(part).from_config(config())
    except _LOSES as error:
        raise _Lost(f"{what} {_kind(part)} cannot be made from its config ({_line(error)})") from (
            error
        )


def _compare(meant: Any, copy: Any, what: str) -> None:
    """Refuse a copy that is not of the same class with the same settings."""
    if type(copy) is not type(meant):
        raise _Lost(f"{what} {_kind(meant)} came out as a {_kind(copy)}")
    for name, value in _settings(meant):
        if name not in vars(copy):
            continue  # no constructor has set it: it came when the optimizer was built
        found = vars(copy)[name]
        if not (_keeps_state(value) or _keeps_state(found) or _same(value, found)):
            raise _Lost(
                f"{what} {_kind(meant)} has {name}={value!r} and came out with {found!r} (its "
                "get_config does not tell)"
            )


def _settings(part: Any) -> Iterator[tuple[str, Any]]:
    """Attributes that say what something does, without its state.

    What begins with an underscore is Keras' own business in a class of Keras; in another class it
    may hold an argument, unless every optimizer or metric of Keras has it too.
    """
    known = _of_all(
        keras.optimizers.SGD if isinstance(part, keras.Optimizer) else keras.metrics.Mean
    )
    ours = type(part).__module__.split(".")[0] in ("keras", "kgraft")
    for name, value in vars(part).items():
        private = name.startswith("_")
        bookkeeping = name in known or name.startswith(("_self_", "_exclude_from_weight"))
        if name not in ("name", "built") and not (private and (ours or bookkeeping)):
            yield name, value


@functools.cache
def _of_all(kind: type) -> frozenset[str]:
    """Attributes that every object of a family has, and those that some get when they are used."""
    late = {"_built", "_accumulated_gradients", "_model_variables_moving_average"}
    return frozenset({*vars(kind(name="family")), *late})


def _keeps_state(value: Any) -> bool:
    return any(isinstance(part, keras.Variable) for part in keras.tree.flatten(value))


def _same(one: Any, other: Any, depth: int = _DEPTH) -> bool:
    if one is other:
        return True
    if type(one) is not type(other) or depth == 0:
        return False
    if isinstance(one, keras.Variable):
        return True  # a metric inside a metric has its own state
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, types.FunctionType):
        return one.__code__ is other.__code__ and _same(_bound(one), _bound(other), depth - 1)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(
            _same(value, other[name], depth - 1) for name, value in one.items()
        )
    if isinstance(one, list | tuple):
        return _same_lists(one, other, depth)
    if isinstance(one, keras.Optimizer | keras.Metric):
        return _same(dict(_settings(one)), dict(_settings(other)), depth - 1)
    if type(one).__eq__ is object.__eq__:
        return bool(_attributes(one)) and _same(_attributes(one), _attributes(other), depth - 1)
    return bool(one == other) or (one != one and other != other)


def _same_lists(one: Sequence[Any], other: Sequence[Any], depth: int) -> bool:
    return len(one) == len(other) and all(
        _same(left, right, depth - 1) for left, right in zip(one, other, strict=True)
    )


def _bound(function: types.FunctionType) -> tuple[Any, ...]:
    """What a function has besides its code."""
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    return function.__defaults__, function.__kwdefaults__, cells


def _check_stateless(part: Any, what: str) -> None:
    """Refuse to share what two models would write to, or what belongs to one of them."""
    owner = part.__self__ if isinstance(part, types.MethodType) else None
    if isinstance(owner, keras.layers.Layer):
        raise _Lost(f"{what} {part.__name__} is a method of {owner.name!r}")
    if isinstance(part, str | types.FunctionType | types.MethodType | type(None)):
        return
    for name, value in _attributes(part).items():
        stateful = keras.Variable | keras.Metric | keras.random.SeedGenerator
        for inner in keras.tree.flatten(value):
            if isinstance(inner, stateful):
                raise _Lost(f"{what} {_kind(part)} keeps state of its own in {name!r}")
            if isinstance(inner, types.MethodType):
                _check_stateless(inner, what)


def _attributes(part: Any) -> dict[str, Any]:
    """What is set on an object; nothing on one with slots."""
    return getattr(part, "__dict__", {})


def _kind(part: Any) -> str:
    return type(part).__name__


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
