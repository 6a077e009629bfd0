"""Native steps that leave Python out: traced where that pays, on CUDA captured as one graph.

Keras' train step costs milliseconds of Python whatever it computes. A step that is repeated with
batches of one form is traced (`trace`), and from then on the trace is played: operation by
operation on the CPU, as one CUDA graph on a GPU. Only models, losses, metrics and optimizers that
are Keras' or kgraft's are traced: they keep all their state in variables.
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
from kgraft.engines.torch.trace import Trace, tensors_of

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
        self._settings: tuple[Any, ...] = ()
        self._plays: dict[Any, Play | None] = {}
        self._counts: dict[Any, int] = {}

    def training(self, on: bool) -> None:
        """See `Steps`; what was changed since the last epoch is traced anew."""
        super().training(on)
        if not on:
            return
        settings = _settings(self._model)
        if settings != self._settings:
            self._settings = settings
            self._plays.clear()
            self._counts.clear()

    def train(self, data: tuple[Any, ...]) -> Logs:
        """See `Steps`."""
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
        self._plays[form] = None
        variables = _variables(self._model)
        before = [value.clone() for value in variables]
        try:
            trace = Trace(super().train, data)
        except Exception as error:
            restore(variables, before)
            _log.info("steps of %s are not traced: %s", self._model.name, line_of(error))
            return super().train(data)
        if tensors[0].is_cuda:
            self._plays[form] = captured(trace, tensors, variables) or trace
        else:
            self._plays[form] = trace
        return trace.first


def why_not(model: Any) -> str | None:
    """Why a model's step cannot be traced, None if it can."""
    if not model.compiled:
        return "it is not compiled"
    if model.run_eagerly:
        return "it is compiled with run_eagerly=True"
    if any(isinstance(o, keras.optimizers.LossScaleOptimizer) for o in _optimizers(model)):
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


def _settings(model: Any) -> tuple[Any, ...]:
    """What a trace has taken for granted."""
    options = []
    for optimizer in _optimizers(model):
        config = optimizer.get_config()
        del config["learning_rate"]
        options.append((optimizer._learning_rate, repr(config)))
    layers = list(model._flatten_layers())
    return (
        model._compile_loss,
        tuple(options),
        tuple(variable.trainable for variable in model.variables),
        tuple((layer.trainable, *_numbers(layer)) for layer in layers),
    )


def _numbers(layer: Any) -> Iterator[tuple[str, Any]]:
    """Settings of a layer that are plain values, e.g. a Distiller's temperature."""
    for name, value in vars(layer).items():
        if not name.startswith("_") and type(value) in (bool, int, float, str):
            yield name, value


def _optimizers(model: Any) -> list[Any]:
    return list(getattr(model.optimizer, "optimizers", [model.optimizer]))


def _parts(model: Any) -> Iterator[Any]:
    """What takes part in a model's step beside its layers."""
    for optimizer in _optimizers(model):
        yield optimizer
        yield optimizer._learning_rate
    for metric in model.metrics:
        for part in (metric, *getattr(metric, "metrics", ())):
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
