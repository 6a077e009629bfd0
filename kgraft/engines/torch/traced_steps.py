"""Traced steps: native steps that leave Python out, on CUDA captured as one graph.

Where the engine sends a model whose parts all keep their state in variables, i.e. are Keras' or
kgraft's. Keras' train step costs milliseconds of Python whatever it computes. A native step that is
repeated with batches of one form is traced (`trace`), and from then on the trace is played:
operation by operation on the CPU, as one CUDA graph (`cuda_graph`) on a GPU. No trace is played
that has not come to the numbers of a native step, or whose settings (`settings`) have changed.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import keras
import torch

from kgraft.engines.steps import Logs, on_device
from kgraft.engines.torch.closeness import distance, tolerance
from kgraft.engines.torch.cuda_graph import Graphs, line_of, restore
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

_tracing = threading.Lock()  # torch.fx keeps what it is at in globals

Play = Callable[[list[torch.Tensor]], Logs]


class TracedSteps(NativeSteps):
    """Native steps of one model; training steps are played from a trace after a while.

    Args:
        model: a compiled, built model that `why_not` has no objection to.
        graphs: of the models that take their steps one after the other with it.
    """

    in_any_thread = (
        True  # `why_not` lets nothing pass that draws, or that is not Keras' or kgraft's
    )

    def __init__(self, model: Any, graphs: Graphs | None = None) -> None:
        super().__init__(model)
        self._graphs = graphs or Graphs()
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
        with _tracing:
            trace = Trace(super().train, data)

        def played() -> list[torch.Tensor]:
            restore(variables, before)
            answers = trace(tensors).values()
            return [value.clone() for value in [*variables, *answers]]

        began = [*before, *map(torch.zeros_like, logs)]
        once, on_gpu = played(), _is_on_gpu(tensors[0])
        off, most = distance(once, expected, began), 0.0
        if on_gpu:
            most = tolerance(distance(played(), once, began), _precision(self._model))
        if not (off <= most if on_gpu else all(map(torch.equal, once, expected))):
            raise ArithmeticError(f"a played step is off by {off:.1e} of its way")
        if not on_gpu:
            return trace
        end = once[: len(variables)]
        return self._graphs.captured(trace, tensors, variables, before, end, most) or trace


def _is_on_gpu(tensor: torch.Tensor) -> bool:
    return tensor.is_cuda


def _precision(model: Any) -> str:
    """In which products of the model's step are computed, at their coarsest."""
    if any(layer.compute_dtype in ("bfloat16", "float16") for layer in flat_layers(model)):
        return "bfloat16"
    cuda = torch.backends
    return "tf32" if cuda.cuda.matmul.allow_tf32 or cuda.cudnn.allow_tf32 else "float32"


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
