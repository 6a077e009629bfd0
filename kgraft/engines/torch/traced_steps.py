"""Traced steps: native steps that leave Python out, on CUDA captured as one graph.

Where the engine sends a model whose parts all keep their state in variables, i.e. are Keras' or
kgraft's. Keras' train step costs milliseconds of Python whatever it computes. A native step that is
repeated with batches of one form is traced (`trace`), and from then on the trace is played:
operation by operation on the CPU, as one CUDA graph (`cuda_graph`) on a GPU. No trace is played
that has not come to the numbers of a native step, or whose settings (`settings`) have changed.
"""

import logging
import time
from collections.abc import Callable
from typing import Any

import keras
import torch

from kgraft.engines.steps import Logs, on_device
from kgraft.engines.torch.cuda_graph import captured, farthest, line_of, restore
from kgraft.engines.torch.native_steps import NativeSteps
from kgraft.engines.torch.settings import (
    Numbers,
    foreign_parts,
    optimizers_of,
    settings_of,
    variables_of,
)
from kgraft.engines.torch.trace import Trace, tensors_of
from kgraft.keras_private import flat_layers

_log = logging.getLogger("kgraft")
_AFTER = 40  # steps of one form before a trace: a fit that is shorter is not worth one
_SHORT = 0.06  # seconds: in longer steps on a CPU, Python is lost among the convolutions
# How far a played step may be from a native one, relative to a variable's largest value. On a CPU
# both do the same operations in the same order; some of CUDA's add up in any order.
_EXACT = {"cpu": 0.0}
_CLOSE = 1e-3

Play = Callable[[list[torch.Tensor]], Logs]


class TracedSteps(NativeSteps):
    """Native steps of one model; training steps are played from a trace after a while.

    Args:
        model: a compiled, built model that `why_not` has no objection to.
    """

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self._plays: dict[Any, Play | None] = {}
        self._counts: dict[Any, int] = {}
        self._numbers: Numbers | None = None

    def train(self, data: tuple[Any, ...]) -> Logs:
        self._compare()
        data = on_device(data)
        tensors = tensors_of(data)
        form = tuple(
            None if part is None else (part.shape, part.dtype, part.device)
            for part in keras.tree.flatten(data)
        )
        if self._numbers is not None and not self._numbers.hold():
            self._forget()
        play = self._plays.get(form)
        if play is not None:
            return play(tensors)
        count = self._counts[form] = self._counts.get(form, 0) + 1
        if count == _AFTER + 1 and form not in self._plays:
            return self._trace(form, data, tensors)
        started = time.perf_counter()
        logs = super().train(data)
        if tensors[0].device.type == "cpu" and time.perf_counter() - started > _SHORT:
            self._counts[form] = 0
        return logs

    def _forget(self) -> None:
        super()._forget()
        self._plays.clear()
        self._counts.clear()
        self._numbers = None

    def _trace(self, form: Any, data: tuple[Any, ...], tensors: list[torch.Tensor]) -> Logs:
        """One native step, which a trace of it is held against before it is played."""
        if settings_of(self._model) != self._settings:
            self._forget()  # what was traced in this epoch saw other settings
        variables = [variable.value.data for variable in variables_of(self._model)]
        before = [value.clone() for value in variables]
        logs = super().train(data)
        after = [value.clone() for value in variables]
        self._plays[form] = None
        self._numbers = Numbers(self._model)
        try:
            self._plays[form] = self._checked(data, tensors, variables, before, [*logs.values()])
        except Exception as error:
            _log.info("a step of %s is not traced: %s", self._model.name, line_of(error))
        finally:
            restore(variables, after)
        return logs

    def _checked(
        self,
        data: tuple[Any, ...],
        tensors: list[torch.Tensor],
        variables: list[torch.Tensor],
        before: list[torch.Tensor],
        logs: list[torch.Tensor],
    ) -> Play:
        """A trace of the next step that has taken this one once more, to the same numbers.

        A number that it holds for constant, and that changes from step to step, shows that way.
        """
        objection = why_not(self._model)  # settings may have changed since the model was sent here
        if objection:
            raise ValueError(objection)
        expected = [value.clone() for value in [*variables, *logs]]
        trace = Trace(super().train, data)
        restore(variables, before)
        play: Play = trace
        if tensors[0].is_cuda:
            play = captured(trace, tensors, variables) or trace
        played = list(play(tensors).values())
        off = farthest([*variables, *played], expected)
        if not off <= _EXACT.get(tensors[0].device.type, _CLOSE):
            raise ArithmeticError(f"a played step is off by {off:.1e} of a variable's largest")
        return play


def why_not(model: Any) -> str | None:
    """Why a model's step cannot be traced, None if it can."""
    if not model.compiled:
        return "it is not compiled"
    if model.run_eagerly:
        return "it is compiled with run_eagerly=True"
    for layer in flat_layers(model):
        if isinstance(layer, keras.layers.Lambda):
            return f"layer {layer.name!r} is not Keras'"
        if layer._seed_generators:
            return f"layer {layer.name!r} draws random numbers"
    for part in foreign_parts(model):
        if isinstance(part, keras.Layer):
            return f"layer {part.name!r} is not Keras'"
        return f"{part!r} is not Keras'"
    for optimizer in optimizers_of(model):
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            return "its LossScaleOptimizer looks at the gradients in every step"
    return None
