"""The last of a step's ways: a trace as one CUDA graph, the whole step as one launch.

`traced_steps` asks for it on a GPU, once it has a `trace`.
"""

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch

from kgraft.engines.steps import Logs
from kgraft.engines.torch.trace import Trace

_log = logging.getLogger("kgraft")


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
        restore(variables, start)
        graph = CudaGraph(trace, tensors)
        restore(variables, start)
        graph(tensors)
        off = farthest(variables, expected)
        if not off <= 1e-3:
            raise ArithmeticError(f"the graph's step is off by {off:.1e} of a variable's largest")
    except Exception as error:
        _log.info("no CUDA graph of the steps: %s", line_of(error))
        return None
    finally:
        restore(variables, start)
    return graph


class CudaGraph:
    """A trace as one launch. All graphs share memory: they are played one after the other.

    Args:
        trace: of a step; is taken twice, once to warm up and once into the graph.
        tensors: a batch on the device.
    """

    _pool: Any = None

    def __init__(self, trace: Trace, tensors: list[torch.Tensor]) -> None:
        self._trace = trace  # owns the constants that the graph reads
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


def restore(variables: list[torch.Tensor], values: list[torch.Tensor]) -> None:
    """Give variables the values that they had."""
    for variable, value in zip(variables, values, strict=True):
        variable.copy_(value)


def farthest(values: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> float:
    """How far some tensors are from others, relative to each one's largest value.

    Args:
        values: tensors.
        expected: one a tensor, of its shape.

    Returns:
        The largest of their distances; infinity where a number is none, or infinite.
    """
    return max(map(_distance, values, expected), default=0.0)


def _distance(own: torch.Tensor, other: torch.Tensor) -> float:
    if not own.numel():
        return 0.0
    own, other = own.double(), other.double()
    if not (own.isfinite().all() and other.isfinite().all()):
        return math.inf
    return float((own - other).abs().max() / other.abs().max().clamp(min=1e-12))


def line_of(error: Exception) -> str:
    """The first line of what an error says."""
    return str(error).partition("\n")[0] or type(error).__name__
