"""Traced steps: native steps that leave Python out, on CUDA captured as one graph.

Where the engine sends a model whose parts all keep their state in variables, i.e. are Keras' or
kgraft's. Keras' steps cost milliseconds of Python whatever they compute. A native step, of
training, validation or prediction, that is repeated with batches of one form is traced (`trace`),
and from then on the trace is played: operation by operation on the CPU, as one CUDA graph on a GPU
(`cuda_graph`; of all peers together, `one_launch`). No trace is played that has not come to the
numbers of a native step, or whose settings (`settings`) have changed.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import torch

from kgraft.engines.steps import Logs, on_device
from kgraft.engines.torch.closeness import distance, tolerance
from kgraft.engines.torch.cuda_graph import CudaGraph, Graphs, restore
from kgraft.engines.torch.native_steps import NativeSteps
from kgraft.engines.torch.settings import (
    Numbers,
    foreign_parts,
    optimizers_of,
    settings_of,
    variables_of,
)
from kgraft.engines.torch.trace import Trace, tensors_of
from kgraft.errors import line_of
from kgraft.keras_private import flat_layers

_log = logging.getLogger("kgraft")
_AFTER = 40  # steps of one form before a trace: a fit that is shorter is not worth one
_SHORT = 0.06  # seconds: in longer steps on a CPU, Python is lost among the convolutions

_tracing = threading.Lock()  # torch.fx keeps what it is at in globals

Form = tuple[Any, ...]


@dataclass(eq=False)
class Play:
    """A step that is taken without Keras.

    Attributes:
        trace: of it.
        most: how far a graph of it may be off, see `tolerance`; None where there is to be none.
        graph: the same as one launch.
        tried: whether that was to be had.
    """

    trace: Trace
    most: float | None = None
    graph: CudaGraph | None = None
    tried: bool = False


class TracedSteps(NativeSteps):
    """Native steps of one model that are played from a trace after a while.

    Args:
        model: a built model that `why_not` has no objection to.
        graphs: of the models that take their steps one after the other with it.
    """

    in_any_thread = (
        True  # `why_not` lets nothing pass that draws, or that is not Keras' or kgraft's
    )

    def __init__(self, model: Any, graphs: Graphs | None = None) -> None:
        super().__init__(model)
        self._graphs = graphs or Graphs()
        self._plays: dict[Form, Play | None] = {}
        self._counts: dict[Form, int] = {}
        self._numbers: Numbers | None = None

    def train(self, data: Any) -> Logs:
        logs: Logs = self._taken("train", super().train, on_device(data))
        return logs

    def test(self, data: Any) -> Logs:
        logs: Logs = self._taken("test", super().test, on_device(data))
        return logs

    def predict(self, x: Any) -> Any:
        step = super().predict
        return self._taken("predict", lambda data: step(data[0]), on_device((x,)))

    def variables(self) -> list[torch.Tensor]:
        """Everything that a step may change."""
        return [variable.value.data for variable in variables_of(self._model)]

    @property
    def has_plays(self) -> bool:
        """Whether there was a step of some form often enough to be traced."""
        return bool(self._plays)

    def play_of(self, form: Form) -> Play | None:
        """What is played for batches of a form, as the settings are now.

        Args:
            form: see `form_of`.

        Returns:
            None where the step is Keras', as yet or because it cannot be traced (`is_untraced`).
        """
        self._compare()
        if self._numbers is not None and not self._numbers.hold():
            self._forget()
        return self._plays.get(form)

    def is_untraced(self, form: Form) -> bool:
        """Whether a trace was tried for batches of a form, and is none.

        Args:
            form: see `form_of`.
        """
        return form in self._plays and self._plays[form] is None

    def _taken(self, kind: str, step: Callable[[Any], Any], data: Any) -> Any:
        form, tensors = form_of(kind, data), tensors_of(data)
        play = self.play_of(form)
        if play is not None:
            return self._played(kind, play, tensors)
        count = self._counts[form] = self._counts.get(form, 0) + 1
        if count == _AFTER + 1 and form not in self._plays:
            return self._trace(form, step, data, tensors)
        started = time.perf_counter()
        answer = step(data)
        if tensors[0].device.type == "cpu" and time.perf_counter() - started > _SHORT:
            self._counts[form] = 0
        return answer

    def _played(self, kind: str, play: Play, tensors: list[torch.Tensor]) -> Any:
        if play.graph is not None:
            return play.graph(tensors)
        if play.most is None or play.tried or not (self._graphs.each or kind != "train"):
            return play.trace(tensors)
        play.tried = True
        variables = self.variables()
        before = [value.clone() for value in variables]
        answer = play.trace(tensors)
        after = [value.clone() for value in variables]
        expected = [*after, *(value.clone() for value in tensors_of(answer))]
        play.graph = self._graphs.captured(
            play.trace, tensors, variables, before, expected, play.most
        )
        restore(variables, after)
        return answer

    def _forget(self) -> None:
        super()._forget()
        self._plays.clear()
        self._counts.clear()
        self._numbers = None

    def _trace(
        self, form: Form, step: Callable[[Any], Any], data: Any, tensors: list[torch.Tensor]
    ) -> Any:
        """One native step, which a trace of it is held against before it is played."""
        if settings_of(self._model) != self._settings:
            self._forget()  # what was traced in this epoch saw other settings
        variables = self.variables()
        before = [value.clone() for value in variables]
        answer = step(data)
        after = [value.clone() for value in variables]
        self._plays[form] = None
        self._numbers = Numbers(self._model)
        try:
            self._plays[form] = self._checked(
                step, data, tensors, variables, before, tensors_of(answer)
            )
        except Exception as error:
            _log.info("a step of %s is not traced: %s", self._model.name, line_of(error))
        finally:
            restore(variables, after)
        return answer

    def _checked(
        self,
        step: Callable[[Any], Any],
        data: Any,
        tensors: list[torch.Tensor],
        variables: list[torch.Tensor],
        before: list[torch.Tensor],
        answers: list[torch.Tensor],
    ) -> Play:
        """A trace of the next step that has taken this one once more, to the same numbers.

        A number that it holds for constant, and that changes from step to step, shows that way.
        """
        objection = why_not(self._model)  # settings may have changed since the model was sent here
        if objection:
            raise ValueError(objection)
        expected = [value.clone() for value in [*variables, *answers]]
        with _tracing:
            trace = Trace(step, data)

        def played() -> list[torch.Tensor]:
            restore(variables, before)
            return [value.clone() for value in [*variables, *tensors_of(trace(tensors))]]

        began = [*before, *map(torch.zeros_like, answers)]
        once, most = played(), None
        off = distance(once, expected, began)
        if Graphs.are_for(tensors[0].device):
            most = tolerance(distance(played(), once, began), _precision(self._model))
        if not (all(map(torch.equal, once, expected)) if most is None else off <= most):
            raise ArithmeticError(f"a played step is off by {off:.1e} of its way")
        return Play(trace, most)


def form_of(kind: str, data: Any) -> Form:
    """What batches have in common that take the same play.

    Args:
        kind: `"train"`, `"test"` or `"predict"`.
        data: nested tensors and Nones.
    """
    return kind, *(
        None if part is None else (part.shape, part.dtype, part.device)
        for part in keras.tree.flatten(data)
    )


def _precision(model: Any) -> str:
    """In which products of the model's step are computed, at their coarsest."""
    if any(layer.compute_dtype in ("bfloat16", "float16") for layer in flat_layers(model)):
        return "bfloat16"
    cuda = torch.backends
    return "tf32" if cuda.cuda.matmul.allow_tf32 or cuda.cudnn.allow_tf32 else "float32"


def why_not(model: Any) -> str | None:
    """Why a model's steps cannot be traced, None if they can.

    Args:
        model: a built model; one that is not compiled only predicts.
    """
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
