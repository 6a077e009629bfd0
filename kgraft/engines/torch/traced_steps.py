"""Native steps that leave Python out: traced where that pays, on CUDA captured as one graph.

The first place that a step comes to. Keras' train step costs milliseconds of Python whatever it
computes. A step that is repeated with batches of one form is traced (`trace`), and from then on the
trace is played: operation by operation on the CPU, as one launch on a GPU (`cuda_graph`). Before it
is used, each trace is held once against an untraced step from the same state. Only models, losses,
metrics and optimizers that are Keras' or kgraft's are traced: they keep all their state in
variables.
"""

import logging
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import keras
import torch

from kgraft.engines.eager import Logs, on_device
from kgraft.engines.torch.cuda_graph import captured, line_of, restore
from kgraft.engines.torch.native_steps import NativeSteps
from kgraft.engines.torch.settings import (
    all_optimizers,
    metrics_of,
    optimizer_settings,
    optimizers_of,
)
from kgraft.engines.torch.trace import Trace, agree, copies, tensors_of

_log = logging.getLogger("kgraft")
_AFTER = 40  # steps of one form before a trace: a fit that is shorter is not worth one
_SHORT = 0.06  # seconds: in longer steps on a CPU, Python is lost among the convolutions

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
        self._optimizers: list[Any] = []

    def forget(self) -> None:
        """See `NativeSteps`; traces go as well."""
        super().forget()
        self._plays.clear()
        self._counts.clear()

    def train(self, data: tuple[Any, ...]) -> Logs:
        """See `Steps`."""
        optimizers = optimizer_settings(self._model)
        if optimizers != self._optimizers:
            self._optimizers = optimizers
            self.forget()
        data = on_device(data)
        tensors = tensors_of(data)
        form = tuple(
            None if part is None else (part.shape, part.dtype, part.device)
            for part in keras.tree.flatten(data)
        )
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

    def _trace(self, form: Any, data: tuple[Any, ...], tensors: list[torch.Tensor]) -> Logs:
        """One step, untraced, and a trace of it that has come to the same numbers."""
        self._plays[form] = None
        variables = _variables(self._model)
        before = copies(variables)
        try:
            trace = Trace(super().train, data)
        except Exception as error:
            restore(variables, before)
            self._say(line_of(error))
            return super().train(data)
        restore(variables, before)
        logs = super().train(data)
        after = copies(variables)
        restore(variables, before)
        played = trace(tensors)
        found = copies(variables)
        restore(variables, after)
        if not agree(found, after, before) or not agree(
            list(played.values()), list(logs.values()), None
        ):
            self._say("the trace comes to other numbers than the step")
        else:
            on_gpu = tensors[0].is_cuda
            self._plays[form] = (on_gpu and captured(trace, tensors, variables)) or trace
        return logs

    def _say(self, reason: str) -> None:
        _log.info("steps of %s are not traced: %s", self._model.name, reason)


def why_not(model: Any) -> str | None:
    """Why a model's step cannot be traced, None if it can."""
    if not model.compiled:
        return "it is not compiled"
    if model.run_eagerly:
        return "it is compiled with run_eagerly=True"
    if any(isinstance(o, keras.optimizers.LossScaleOptimizer) for o in all_optimizers(model)):
        return "its LossScaleOptimizer looks at the gradients in every step"
    for layer in model._flatten_layers():
        if not _is_ours(layer) or isinstance(layer, keras.layers.Lambda):
            return f"layer {layer.name!r} is not Keras'"
        if layer._seed_generators:
            return f"layer {layer.name!r} draws random numbers"
    for part in _parts(model):
        if not _is_ours(part):
            return f"{part!r} is not Keras'"
    return None


def _variables(model: Any) -> list[torch.Tensor]:
    """Everything that a step may change."""
    state = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
    return list({id(variable): variable.value.data for variable in state}.values())


def _parts(model: Any) -> Iterator[Any]:
    """What takes part in a model's step beside its layers."""
    for optimizer in optimizers_of(model):
        yield optimizer
        yield optimizer._learning_rate
    for metric in model.metrics:
        for part in metrics_of(metric):
            yield part
            yield getattr(part, "_fn", None)
    yield from keras.tree.flatten(model.loss)
    for variable in model.trainable_variables:
        yield variable.regularizer
        yield variable.constraint
    for layer in model._flatten_layers():
        yield getattr(layer, "activation", None)


def _is_ours(part: Any) -> bool:
    """Whether something is Keras' or kgraft's own, or a plain value."""
    if part is None or isinstance(part, str):
        return True
    kind = part if isinstance(part, type | types.FunctionType) else type(part)
    return kind.__module__.split(".")[0] in ("keras", "kgraft")
