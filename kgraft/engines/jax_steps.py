"""Steps on jax: the eager engine's, and one donated program for all peers that run the same one.

The state goes into a step and comes out of it. What the variables held before is donated to the
compiled engine's program, so that a step needs no second copy of weights and velocities. Variables
are pointed at the new state after every step, and hold valid values whenever Python looks.
"""

import contextlib
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import keras
import numpy as np

from kgraft.engines.interrupts import InterruptHeld
from kgraft.engines.steps import Logs, as_handed, on_device

_State = tuple[list[Any], ...]
Tracing = Callable[[Any], AbstractContextManager[None]]


def as_it_is(model: Any) -> AbstractContextManager[None]:
    """A step is traced as Keras has it."""
    del model
    return contextlib.nullcontext()


class JaxSteps:
    """Steps of one model on jax: one jitted call each, no buffer donated.

    Args:
        model: a built model.
        tracing: `model` -> what is open while a step of it is traced.
    """

    in_any_thread = True

    def __init__(self, model: Any, tracing: Tracing = as_it_is) -> None:
        self._model = model
        self._tracing = tracing
        self._train = _jitted(model, model.train_step, tracing)
        self._test = _jitted(model, model.test_step, tracing)
        self._predict = _jitted(model, model.predict_step, tracing)

    def training(self, on: bool) -> None:
        """Nothing to switch: the steps say themselves whether they train."""

    def train(self, data: Any) -> Logs:
        return _run(self._train, _trained(self._model), data)

    def test(self, data: Any) -> Logs:
        return _run(self._test, [*_read(self._model), self._model.metrics_variables], data)

    def predict(self, x: Any) -> Any:
        return self._predict(_values(_read(self._model)), as_handed((x,)))[0]


class Programs:
    """Compiled train steps, one for all models whose step is the same program."""

    def __init__(self) -> None:
        self._compiled: dict[tuple[Any, ...], Any] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._compiled)

    def of(self, step: Callable[..., Any], *arguments: Any) -> Any:
        """The compiled step for arguments of these shapes.

        Two steps are the same program if they are lowered to the same text and hold equal arrays of
        their own.

        Args:
            step: `(state, rate, data)` -> `(logs, state)`.
            arguments: what it is called with first.
        """
        import jax

        with self._lock:
            traced = jax.jit(step, donate_argnums=0).trace(*arguments)
            lowered = traced.lower()
            own = tuple(
                (value.shape, str(value.dtype), value.tobytes())
                for value in map(np.asarray, traced.jaxpr.consts)
            )
            structure = jax.tree.structure((arguments, traced.out_info))
            key = (lowered.as_text(), structure, own)
            if key not in self._compiled:
                self._compiled[key] = lowered.compile()
            return self._compiled[key]


class DonatedSteps(JaxSteps):
    """Train steps of one model with donated state; test and predict as in `JaxSteps`.

    Args:
        model: a compiled, built model.
        programs: compiled steps that it shares with others.
        tracing: see `JaxSteps`.
    """

    def __init__(self, model: Any, programs: Programs, tracing: Tracing = as_it_is) -> None:
        super().__init__(model, tracing)
        self._programs = programs
        self._own: dict[Any, Any] = {}
        self._kept: list[Any] = []

    def train(self, data: Any) -> Logs:
        import jax

        data = on_device(data)
        parts = _trained(self._model)
        rate = _rate(self._model.optimizer)
        state = self._unshared(parts)
        shapes = (
            jax.tree.structure(data),
            tuple((part.shape, part.dtype) for part in jax.tree.leaves((rate, data))),
        )
        if shapes not in self._own:
            self._own[shapes] = self._programs.of(self._step, state, rate, data)
        with InterruptHeld():
            logs, new_state = self._own[shapes](state, rate, data)
            self._kept = jax.tree.leaves(new_state)
            for variables, values in zip(parts, new_state, strict=True):
                for variable, value in zip(variables, values, strict=True):
                    variable._value = value
        return logs

    def _step(self, state: _State, rate: Any, data: Any) -> Any:
        """Keras' step; a schedule's rate is an argument, so that peers share the program."""
        with self._tracing(self._model):
            if rate is None:
                return self._model.train_step(state, data)
            optimizer = self._model.optimizer
            optimizer._get_current_learning_rate = lambda: rate
            try:
                return self._model.train_step(state, data)
            finally:
                del optimizer._get_current_learning_rate

    def _unshared(self, parts: list[list[Any]]) -> _State:
        """The variables' values; those that are not this model's last step's are copied.

        Somebody else may hold them, and a donated array is gone for everybody.
        """
        import jax

        own = {id(value) for value in self._kept}
        return tuple(
            [
                variable.value if id(variable.value) in own else jax.numpy.array(variable.value)
                for variable in variables
            ]
            for variables in parts
        )


def _rate(optimizer: Any) -> Any:
    """What a schedule says now; None where the rate is a variable."""
    rate = optimizer._learning_rate
    is_schedule = isinstance(rate, keras.optimizers.schedules.LearningRateSchedule)
    return rate(optimizer.iterations.value) if is_schedule else None


def _read(model: Any) -> list[list[Any]]:
    return [model.trainable_variables, model.non_trainable_variables]


def _trained(model: Any) -> list[list[Any]]:
    return [*_read(model), model.optimizer.variables, model.metrics_variables]


def _values(parts: list[list[Any]]) -> _State:
    return tuple([variable.value for variable in variables] for variables in parts)


def _run(step: Callable[..., Any], parts: list[list[Any]], data: Any) -> Logs:
    logs, state = step(_values(parts), data)
    for variables, values in zip(parts, state, strict=True):
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
    return logs


def _jitted(model: Any, step: Callable[..., Any], tracing: Tracing) -> Callable[..., Any]:
    """A step as the model was compiled: jitted, unless it is to run eagerly or without a jit.

    jax remembers traces of equal functions, and a model's step before and after a `compile()` are
    equal methods: a new function each time is not.
    """
    import jax

    def run(*arguments: Any) -> Any:
        with tracing(model):
            return step(*arguments)

    return run if why_not(model) else jax.jit(run)


def why_not(model: Any) -> str | None:
    """Why a model's steps are not to be jitted, None if they are."""
    if model.run_eagerly:
        return f"{model.name!r} is compiled with run_eagerly=True"
    if model.compiled and not model.jit_compile:
        return f"{model.name!r} is compiled with jit_compile=False"
    return None
