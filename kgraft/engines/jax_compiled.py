"""The compiled engine on jax: one donated program for all peers that run the same one.

The state goes into the program and comes out of it; what the variables held before is donated, so
that a step needs no second copy of weights and velocities. Variables are pointed at the new state
after every step, and hold valid values whenever Python looks.
"""

import threading
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from kgraft.engines.eager import JaxSteps, Logs
from kgraft.engines.interrupts import InterruptHeld

_State = tuple[list[Any], ...]


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
    """

    def __init__(self, model: Any, programs: Programs) -> None:
        super().__init__(model)
        self._programs = programs
        self._own: dict[Any, Any] = {}
        self._kept: list[Any] = []

    def train(self, data: tuple[Any, ...]) -> Logs:
        """See `Steps`."""
        import jax

        model = self._model
        data = keras.tree.map_structure(
            lambda part: None if part is None else keras.ops.convert_to_tensor(part), data
        )
        parts = [
            model.trainable_variables,
            model.non_trainable_variables,
            model.optimizer.variables,
            model.metrics_variables,
        ]
        rate = _rate(model.optimizer)
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

    def _step(self, state: _State, rate: Any, data: tuple[Any, ...]) -> Any:
        """Keras' step; a schedule's rate is an argument, so that peers share the program."""
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
