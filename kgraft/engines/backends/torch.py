"""torch."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import keras
import numpy as np
import torch
from numpy.typing import NDArray

from kgraft.engines.backends.base import Backend, Call, Fed
from kgraft.engines.steps import Around, Logs, Steps
from kgraft.engines.torch import fused_sgd
from kgraft.engines.torch.alone import alone
from kgraft.engines.torch.eager_steps import TorchSteps


def device_of_new_tensors() -> torch.device:
    """Where Keras makes tensors now."""
    return torch.device(keras.ops.arange(0).device)


class _Transfer:
    def __init__(self, peers: Sequence[Sequence[Any]]) -> None:
        self._peers = peers

    def read(self, out: NDArray[Any]) -> None:
        for peer, row in zip(self._peers, out, strict=True):
            np.concatenate([view.reshape(-1) for view in _views(peer)], out=row)

    def write(self, rows: NDArray[Any]) -> None:
        for peer, row in zip(self._peers, rows, strict=True):
            start = 0
            for view in _views(peer):
                np.copyto(view, row[start : start + view.size].reshape(view.shape))
                start += view.size


def _views(peer: Sequence[Any]) -> list[NDArray[Any]]:
    return [variable.value.detach().numpy() for variable in peer]


class _DeviceTransfer:
    def __init__(self, peers: Sequence[Sequence[Any]]) -> None:
        self._peers = peers
        self._sizes = [int(np.prod(variable.shape)) for variable in peers[0]]

    def read(self) -> Any:
        with torch.no_grad():
            rows = [torch.cat([variable.value.reshape(-1) for variable in p]) for p in self._peers]
            return torch.stack(rows)

    def write(self, rows: Any) -> None:
        own = [variable.value for peer in self._peers for variable in peer]
        parts = [part for row in rows for part in row.split(self._sizes)]
        with torch.no_grad():
            torch._foreach_copy_(own, [p.view(w.shape) for p, w in zip(parts, own, strict=True)])

    def put(self, rows: Any, k: int, columns: slice, values: Any) -> Any:
        rows[k, columns] = values.detach()
        return rows


class Torch(Backend):
    """See `Backend`."""

    how = "fused operations on channels-last memory, traced where that pays"
    averaging = (
        "fused operations on channels-last memory, not traced: its replicas' gradients are "
        "averaged between backward and update"
    )
    compiles = False
    eager_steps = TorchSteps
    transfer = _Transfer
    device_transfer = _DeviceTransfer

    def compiled_steps(self, model: Any, shared: dict[str, Any]) -> Steps | str:
        from kgraft.engines.torch import cuda_graph, native_steps, traced_steps

        if traced_steps.why_not(model) is None:
            graphs = shared.setdefault("graphs", cuda_graph.Graphs())
            return traced_steps.TracedSteps(model, graphs)
        return native_steps.why_not(model) or native_steps.NativeSteps(model)

    def eager_steps_in(self, around: Around, model: Any) -> Steps:
        return TorchSteps(model, around)

    def compiled_steps_in(self, around: Around, model: Any) -> Steps | str:
        from kgraft.engines.torch import native_steps

        return native_steps.why_not(model) or native_steps.NativeSteps(model, around)

    def launches(self) -> bool:
        from kgraft.engines.torch.cuda_graph import Graphs

        return Graphs.are_for(device_of_new_tensors())

    def as_one(
        self, steps: Sequence[Steps], batches: Sequence[Any], shared: dict[str, Any]
    ) -> list[Logs] | None:
        from kgraft.engines.torch import cuda_graph, one_launch

        graphs = shared.setdefault("graphs", cuda_graph.Graphs())
        launch = shared.setdefault("launch", one_launch.OneLaunch(graphs))
        taken: list[Logs] | None = launch.take(steps, batches)
        return taken

    def fed(self, model: Any, function: Call, *arguments: Any, remembered: dict[str, Any]) -> Fed:
        (data,) = arguments  # all batches of a call, in a list
        return list(data), function(data)

    def devices(self) -> list[str]:
        found = range(torch.cuda.device_count())
        return [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in found] or ["cpu"]

    def draws_elsewhere(self, layer: Any) -> bool:
        return any(own._initial_seed is None for own in layer._seed_generators)

    def use_device(self, number: int) -> None:
        if torch.cuda.is_available():
            torch.cuda.set_device(number % torch.cuda.device_count())

    def fits(self, count: int) -> bool:
        return not torch.cuda.is_available() or count <= torch.cuda.mem_get_info()[0] / 2

    def allow_tf32(self, allowed: bool) -> None:
        torch.set_float32_matmul_precision("high" if allowed else "highest")
        torch.backends.cudnn.allow_tf32 = allowed

    def without_gradients(self) -> AbstractContextManager[object]:
        return torch.no_grad()

    def fused_sgd(self, variables: Sequence[Any]) -> Call | None:
        return fused_sgd.sgd if fused_sgd.moves(variables) else None

    def cores(self) -> int:
        return torch.get_num_threads()

    def use_cores(self, count: int) -> None:
        torch.set_num_threads(count)

    def has_room(self, times: int) -> bool:
        from kgraft.engines.torch import host_memory

        held, free = host_memory.most_held(), host_memory.free()
        return free is None or (times - 1) * held <= free / 2

    def keep_memory(self) -> None:
        from kgraft.engines.torch import host_memory

        host_memory.keep_freed()

    def give_memory_back(self) -> None:
        from kgraft.engines.torch import host_memory

        host_memory.give_back()

    def upload(self, array: NDArray[Any]) -> Any:
        device, own = device_of_new_tensors(), torch.from_numpy(np.ascontiguousarray(array))
        own = own.pin_memory() if device.type == "cuda" else own
        return own.to(device, non_blocking=True)

    def pieces(self, array: NDArray[Any], size: int) -> Iterator[Any]:
        return iter(self.upload(array).split(size, dim=-1))

    def alone(self, model: Any) -> AbstractContextManager[object]:
        return alone(model)

    def averages_in_fit(self) -> str:
        distributed = torch.distributed
        if not (distributed.is_available() and distributed.is_initialized()):
            return ""
        return (
            "torch.distributed is initialised, and Keras, from 3.16 on, averages gradients and "
            "metrics over it; leave out init_process_group"
        )

    def random_state(self) -> dict[str, NDArray[Any]]:
        states = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            states |= {f"cuda:{k}": own for k, own in enumerate(torch.cuda.get_rng_state_all())}
        return {name: state.numpy() for name, state in states.items()}

    def set_random_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        torch.set_rng_state(torch.from_numpy(np.array(state["cpu"])))
        for k in range(torch.cuda.device_count()):
            if f"cuda:{k}" in state:
                torch.cuda.set_rng_state(torch.from_numpy(np.array(state[f"cuda:{k}"])), k)

    def is_on_host(self, value: Any) -> bool:
        return value.device.type == "cpu"

    def place(self, value: Any) -> Hashable | None:
        return value.device

    def program(self, function: Call) -> Call:
        return torch.no_grad()(function)

    def bin_counts(self, values: Any, edges: Any) -> Any:
        places = torch.searchsorted(edges, values, right=True)  # how many edges are not above
        counts = edges.new_zeros((len(edges), edges.shape[1] + 1), dtype=torch.int32)
        counts.scatter_add_(1, places, counts.new_ones(()).expand(places.shape))
        return counts[:, 1:-1]

    def view(self, value: Any) -> NDArray[Any]:
        value = value.detach()
        if keras.backend.standardize_dtype(value.dtype) == "bfloat16":
            value = value.float()
        return value.numpy()
