"""The last of a step's ways: a trace as one CUDA graph, the whole step as one launch.

`traced_steps` asks for it on a GPU, once it has a `trace`, and `one_launch` for the traces of all
peers. A graph is a list of addresses: what it reads and writes has to stay where it is for as long
as the graph lives, so it keeps its inputs, what it answers, and the trace with its constants. The
variables are the model's, which keeps them.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from keras import tree

from kgraft.engines.torch.closeness import distance
from kgraft.engines.torch.trace import Trace, tensors_of
from kgraft.errors import line_of

_log = logging.getLogger("kgraft")

Tensors = list[torch.Tensor]


class Graphs:
    """The graphs of one engine's models, which share memory: they are played one after the other.

    Attributes:
        failed: why this process makes none any more, empty where it does. A capture that has failed
            once is not tried again: what is left of it is the driver's to know.
        each: whether every model's training step gets one of its own; not where all models'
            together may get one.
    """

    failed = ""

    def __init__(self) -> None:
        self.each = True
        self._pool: Any = None

    @staticmethod
    def are_for(device: torch.device) -> bool:
        """Whether steps there are launches that wait for Python."""
        return device.type == "cuda"

    def pool(self) -> Any:
        """The memory that they share."""
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        return self._pool

    def captured(
        self,
        trace: Trace,
        tensors: Tensors,
        variables: Tensors,
        start: Tensors,
        expected: Tensors,
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
            expected: and after it, and then what the step answers.
            most: how far from that the graph's step may end, see `tolerance`.
        """
        if Graphs.failed:
            return None
        try:
            with as_before(variables, start):
                objection = trace.objection(tensors)
            if objection:  # of this model alone
                _log.info("no CUDA graph of the steps: %s", objection)
                return None
            with as_before(variables, start):
                graph = CudaGraph(trace, tensors, self.pool())
            check(lambda: graph(tensors), variables, start, expected, most)
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

    def __init__(self, trace: Trace, tensors: Tensors, pool: Any) -> None:
        self._trace = trace  # owns the constants that the graph reads
        self._inputs = [tensor.clone() for tensor in tensors]
        self._graph, self._answers = captured(lambda stream: trace(self._inputs), pool)

    def __call__(self, tensors: Tensors) -> Any:
        """Take the next step."""
        for own, given in zip(self._inputs, tensors, strict=True):
            own.copy_(given, non_blocking=True)
        self._graph.replay()
        return tree.map_structure(
            lambda answer: None if answer is None else answer.clone(), self._answers
        )


def captured(step: Callable[[Any], Any], pool: Any) -> tuple[Any, Any]:
    """What a function does on the device as one graph.

    Args:
        step: given the stream to work on; is called twice, once to warm up.
        pool: memory.

    Returns:
        The graph, and what the function gave, which every replay writes to.
    """
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step(stream)
    torch.cuda.current_stream().wait_stream(stream)
    # other threads (prefetching, callbacks) go on with what they do on the device meanwhile
    with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
        answers = step(stream)
    return graph, answers


def check(
    step: Callable[[], Any], variables: Tensors, start: Tensors, expected: Tensors, most: float
) -> None:
    """Hold a graph's step against the step that it stands for, and take it back.

    Args:
        step: takes it.
        variables: see `Graphs.captured`.
        start: see there.
        expected: see there.
        most: see there.

    Raises:
        ArithmeticError: it ends elsewhere.
    """
    with as_before(variables, start):
        ends = [*variables, *tensors_of(step())]
        began = [*start, *map(torch.zeros_like, ends[len(start) :])]
        off = distance(ends, expected, began)
    if not off <= most:
        raise ArithmeticError(f"the graph's step is off by {off:.1e} of its way")


@contextlib.contextmanager
def as_before(variables: Tensors, values: Tensors) -> Iterator[None]:
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


def restore(variables: Tensors, values: Tensors) -> None:
    """Give variables the values that they had."""
    for variable, value in zip(variables, values, strict=True):
        variable.copy_(value)
