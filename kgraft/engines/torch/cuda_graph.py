"""The last of a step's ways: a trace as one CUDA graph, the whole step as one launch.

`traced_steps` asks for it on a GPU, once it has a `trace`. A graph is a list of addresses: what it
reads and writes has to stay where it is for as long as the graph lives, so it keeps its inputs,
what it answers, and the trace with its constants. The variables are the model's, which keeps them.
"""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import torch

from kgraft.engines.steps import Logs
from kgraft.engines.torch.closeness import distance
from kgraft.engines.torch.trace import Trace

_log = logging.getLogger("kgraft")


class Graphs:
    """The graphs of one engine's models, which share memory: they are played one after the other.

    Attributes:
        failed: why this process makes none any more, empty where it does. A capture that has failed
            once is not tried again: what is left of it is the driver's to know.
    """

    failed = ""

    def __init__(self) -> None:
        self._pool: Any = None

    def captured(
        self,
        trace: Trace,
        tensors: list[torch.Tensor],
        variables: list[torch.Tensor],
        start: list[torch.Tensor],
        expected: list[torch.Tensor],
        most: float,
    ) -> "CudaGraph | None":
        """A trace as one graph, None where the device cannot, or comes to other numbers.

        Takes a few steps and takes them back: whatever happens, random numbers and the current
        stream are as before, and the variables as at the start.

        Args:
            trace: of a step.
            tensors: a batch on the device.
            variables: everything that the step changes.
            start: their values before the step.
            expected: and after it.
            most: how far from that the graph's step may end, see `tolerance`.
        """
        if Graphs.failed:
            return None
        try:
            with _as_before(variables, start):
                objection = trace.objection(tensors)
            if objection:  # of this model alone
                _log.info("no CUDA graph of the steps: %s", objection)
                return None
            with _as_before(variables, start):
                self._pool = self._pool or torch.cuda.graph_pool_handle()
                graph = CudaGraph(trace, tensors, self._pool)
            with _as_before(variables, start):
                graph(tensors)
                off = distance(variables, expected, start)
            if not off <= most:
                raise ArithmeticError(f"the graph's step is off by {off:.1e} of its way")
        except Exception as error:
            Graphs.failed = line_of(error)
            _log.info("no CUDA graph of the steps: %s", Graphs.failed)
            return None
        return graph


class CudaGraph:
    """A trace as one launch.

    Args:
        trace: of a step; is taken twice, once to warm up and once into the graph.
        tensors: a batch on the device.
        pool: the memory of this graph and others, see `Graphs`.
    """

    def __init__(self, trace: Trace, tensors: list[torch.Tensor], pool: Any) -> None:
        self._trace = trace  # owns the constants that the graph reads
        self._inputs = [tensor.clone() for tensor in tensors]
        self._graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            trace(self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        # other threads (prefetching, callbacks) go on with what they do on the device meanwhile
        with torch.cuda.graph(
            self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"
        ):
            self._logs = trace(self._inputs)

    def __call__(self, tensors: list[torch.Tensor]) -> Logs:
        """Take the next step."""
        for own, given in zip(self._inputs, tensors, strict=True):
            own.copy_(given, non_blocking=True)
        self._graph.replay()
        return {name: value.clone() for name, value in self._logs.items()}


@contextlib.contextmanager
def _as_before(variables: list[torch.Tensor], values: list[torch.Tensor]) -> Iterator[None]:
    """Begin at some values; put them, random numbers and the current stream back at the end.

    `torch.cuda.graph` leaves its own stream the current one when the end of a capture fails.
    """
    stream, random = torch.cuda.current_stream(), torch.cuda.get_rng_state()
    restore(variables, values)
    try:
        yield
    finally:
        torch.cuda.set_stream(stream)
        torch.cuda.set_rng_state(random)
        restore(variables, values)


def restore(variables: list[torch.Tensor], values: list[torch.Tensor]) -> None:
    """Give variables the values that they had."""
    for variable, value in zip(variables, values, strict=True):
        variable.copy_(value)


def line_of(error: Exception) -> str:
    """The first line of what an error says."""
    return str(error).partition("\n")[0] or type(error).__name__
