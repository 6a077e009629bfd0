"""Native steps that leave Python out: traced where that pays, on CUDA captured as one graph.

Keras' train step costs milliseconds of Python whatever it computes. A step that is repeated with
batches of one form is traced (`torch_trace`), and from then on the trace is played: operation by
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
from kgraft.engines.torch_compiled import NativeSteps
from kgraft.engines.torch_trace import Trace, tensors_of

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
            _restore(variables, before)
            _log.info("steps of %s are not traced: %s", self._model.name, _line(error))
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
    for layer in model._flatten_layers():
        if not _is_ours(layer) or isinstance(layer, keras.layers.Lambda):
            return f"layer {layer.name!r} is not Keras'"
        if layer._seed_generators:
            return f"layer {layer.name!r} draws random numbers"
    for part in _parts(model):
        if not _is_ours(part):
            return f"{part!r} is not Keras'"
    return None


def captured(trace: Trace, tensors: list[torch.Tensor], variables: list[torch.Tensor]) -> Any:
    """A trace as one CUDA graph, None where the device cannot, or comes to other numbers.

    Takes three more steps and takes them back.

    Args:
        trace: of a step.
        tensors: a batch on the device.
        variables: everything that the step changes.
    """
    start = [value.clone() for value in variables]
    try:
        trace(tensors)
        expected = [value.clone() for value in variables]
        _restore(variables, start)
        graph = CudaGraph(trace, tensors)
        _restore(variables, start)
        graph(tensors)
        off = max(map(_distance, variables, expected), default=0.0)
        if off > 1e-3:
            raise ArithmeticError(f"the graph's step is off by {off:.1e} of a variable's largest")
    except Exception as error:
        _log.info("no CUDA graph of the steps: %s", _line(error))
        return None
    finally:
        _restore(variables, start)
    return graph


class CudaGraph:
    """A trace as one launch. All graphs share memory: they are played one after the other.

    Args:
        trace: of a step; is taken twice, once to warm up and once into the graph.
        tensors: a batch on the device.
    """

    _pool: Any = None

    def __init__(self, trace: Trace, tensors: list[torch.Tensor]) -> None:
        self._inputs = [tensor.clone() for tensor in tensors]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            trace(self._inputs)
        torch.cuda.current_stream().wait_stream(side)
        CudaGraph._pool = CudaGraph._pool or torch.cuda.graph_pool_handle()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=CudaGraph._pool):
            self._logs = trace(self._inputs)

    def __call__(self, tensors: list[torch.Tensor]) -> Logs:
        """Take the next step."""
        for own, given in zip(self._inputs, tensors, strict=True):
            own.copy_(given, non_blocking=True)
        self._graph.replay()
        return {name: value.clone() for name, value in self._logs.items()}


def _variables(model: Any) -> list[torch.Tensor]:
    """Everything that a step may change."""
    state = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
    return list({id(variable): variable.value.data for variable in state}.values())


def _restore(variables: list[torch.Tensor], values: list[torch.Tensor]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.copy_(value)


def _distance(own: torch.Tensor, other: torch.Tensor) -> float:
    largest = other.double().abs().max().clamp(min=1e-12)
    return float((own.double() - other.double()).abs().max() / largest)


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


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
