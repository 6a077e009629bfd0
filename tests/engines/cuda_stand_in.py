"""A stand-in on the CPU for what a CUDA graph is: a list of addresses.

It writes down what is done while it captures and holds what lies outside of it as a graph does: by
its address, which keeps nobody alive. A replay does the same to the same memory, and fails where
that has been freed.
"""

import contextlib
import gc

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode


class Freed(AssertionError):
    """A replay reads memory that nobody owns any more."""


class Address:
    """Where a tensor lies, without holding it."""

    def __init__(self, tensor):
        self._storage = StorageWeakRef(tensor.untyped_storage())
        self._shape = tensor.size(), tensor.stride(), tensor.storage_offset(), tensor.dtype

    def tensor(self):
        if self._storage.expired():
            raise Freed("a graph reads memory that was freed")
        storage = torch.UntypedStorage._new_with_weak_ptr(self._storage.cdata)
        size, stride, offset, dtype = self._shape
        return torch.empty(0, dtype=dtype).set_(storage, offset, size, stride)


class Recorder(TorchDispatchMode):
    def __init__(self, steps):
        super().__init__()
        self._steps, self._own = steps, {}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        given = torch.utils._pytree.tree_map_only(torch.Tensor, self._address, (args, kwargs or {}))
        before = {own.untyped_storage()._cdata for own in _tensors((args, kwargs))}
        result = operation(*args, **(kwargs or {}))
        for made in _tensors(result):
            storage = made.untyped_storage()
            if storage._cdata not in before:  # a graph's pool owns what it makes
                self._own[storage._cdata] = storage
        kept = torch.utils._pytree.tree_map_only(torch.Tensor, self._address, result)
        self._steps.append((operation, given, kept))
        return result

    def _address(self, tensor):
        return tensor if tensor.untyped_storage()._cdata in self._own else Address(tensor)


def _tensors(value):
    leaves = torch.utils._pytree.tree_leaves(value)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


class Graph:
    """For `torch.cuda.CUDAGraph`."""

    def __init__(self):
        self.steps, self._replays = [], 0

    @torch.no_grad()
    def replay(self):
        self._replays += 1
        if self._replays <= 2:  # what nobody holds is gone by then; it takes longer than the steps
            gc.collect()
        for operation, given, result in self.steps:
            args, kwargs = torch.utils._pytree.tree_map_only(Address, Address.tensor, given)
            fresh = operation(*args, **kwargs)
            result = torch.utils._pytree.tree_map_only(Address, Address.tensor, result)
            for old, new in zip(_tensors(result), _tensors(fresh), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Cuda:
    """What `kgraft.engines.torch.cuda_graph` asks of `torch.cuda`, and where it may fail.

    Attributes:
        fails_at: a name of `PLACES`, or None.
        stream: the current one.
        modes: capture modes that were asked for.
        pools: those that were captured into.
        order: in which streams wait for others and get work, since the last capture began.
    """

    PLACES = (
        *("graph_pool_handle", "Stream", "CUDAGraph", "warm-up", "begin", "capture", "end"),
        "replay",
    )

    def __init__(self, fails_at=None):
        self.fails_at, self.stream, self.random = fails_at, "main", torch.arange(4)
        self.capturing, self.captures, self.modes, self.pools = False, 0, [], []
        self.order = []

    def _note(self, what, *streams):
        self.order.append((what, *(own.number for own in streams)))

    def _at(self, place):
        if place == self.fails_at:
            raise RuntimeError(f"CUDA error at {place}\nCompile with TORCH_USE_CUDA_DSA")

    def current_stream(self):
        return self.stream

    def set_stream(self, stream):
        assert not self.capturing, "the current stream is changed while a graph is captured"
        self.stream = stream

    def Stream(self):
        self._at("Stream")
        return _Stream(self)

    @contextlib.contextmanager
    def stream_of(self, stream):
        before, self.stream = self.stream, stream
        self._note("work", stream)
        self._at("warm-up")
        yield
        self.stream = before  # not in a `finally`: an error leaves it, as a driver's may

    def get_rng_state(self):
        return self.random.clone()

    def set_rng_state(self, state):
        self.random = state.clone()

    def graph_pool_handle(self):
        self._at("graph_pool_handle")
        return object()

    def CUDAGraph(self):
        self._at("CUDAGraph")
        graph = Graph()
        replay = graph.replay

        def watched():
            self._at("replay")
            replay()

        graph.replay = watched
        return graph

    @contextlib.contextmanager
    def graph(self, graph, pool, stream, capture_error_mode):
        self._at("begin")
        self.captures += 1
        self.modes.append(capture_error_mode)
        self.pools.append(pool)
        before, self.stream, self.capturing = self.stream, stream, True
        self.order = []
        self.random += 1
        try:
            with Recorder(graph.steps):
                yield
                self._at("capture")
        finally:
            self.capturing = False
        self._at("end")
        self.stream = before


class _Stream:
    def __init__(self, cuda):
        cuda.streams = getattr(cuda, "streams", 0) + 1
        self._cuda, self.number = cuda, cuda.streams

    def wait_stream(self, other):
        self._cuda._note("wait", self, other)


def install(monkeypatch, fails_at=None):
    """Put it in the place of `torch.cuda` in kgraft, whose tensors then count as a GPU's."""
    from kgraft.engines.torch.cuda_graph import Graphs
    from kgraft.engines.torch.one_launch import OneLaunch

    cuda = Cuda(fails_at)
    main = _Stream(cuda)
    cuda.stream = cuda.main = main
    for name in ("current_stream", "set_stream", "Stream", "get_rng_state", "set_rng_state",
                 "graph_pool_handle", "CUDAGraph", "graph"):  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, getattr(cuda, name))
    monkeypatch.setattr(torch.cuda, "stream", cuda.stream_of)
    monkeypatch.setattr(Graphs, "are_for", staticmethod(lambda device: True))
    monkeypatch.setattr(Graphs, "failed", "")
    monkeypatch.setattr(OneLaunch, "failed", "")
    return cuda
