"""jax, imported where it is in use and nowhere else: it need not be installed."""

import functools
import inspect
import os
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kgraft.engines import jax_depthwise, jax_steps
from kgraft.engines.backends.base import Backend, Call, Fed, pull
from kgraft.engines.interrupts import InterruptHeld
from kgraft.engines.steps import Steps


class _Transfer:
    def __init__(self, peers: Sequence[Sequence[Any]]) -> None:
        self._peers = peers
        self._split = _split(tuple(tuple(variable.shape) for variable in peers[0]))

    def read(self, out: NDArray[Any]) -> None:
        for peer, row in zip(self._peers, out, strict=True):
            np.concatenate([np.asarray(v.value).reshape(-1) for v in peer], out=row)

    def write(self, rows: NDArray[Any]) -> None:
        import jax

        arrays = [self._split(row) for row in rows]
        jax.block_until_ready(arrays)  # jax reads the rows themselves: they may change from now on
        for peer, parts in zip(self._peers, arrays, strict=True):
            for variable, part in zip(peer, parts, strict=True):
                variable._direct_assign(part)  # its shape and dtype are right: no `assign`


@functools.lru_cache(maxsize=8)
def _split(shapes: tuple[tuple[int, ...], ...]) -> Callable[[Any], list[Any]]:
    """One program that cuts a vector into arrays, instead of a transfer for each."""
    import jax

    cuts = np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1].tolist()

    def split(row: Any) -> list[Any]:
        parts = jax.numpy.split(row, cuts)
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    return jax.jit(split)


class _DeviceTransfer:
    def __init__(self, peers: Sequence[Sequence[Any]]) -> None:
        import jax

        self._peers = peers
        self._split = _split(tuple(tuple(variable.shape) for variable in peers[0]))
        self._join = jax.jit(lambda parts: jax.numpy.concatenate([p.reshape(-1) for p in parts]))
        self._stack = jax.jit(jax.numpy.stack)
        self._unstack = jax.jit(jax.numpy.unstack)
        self._put = jax.jit(_put, donate_argnums=0)

    def read(self) -> Any:
        return self._stack([self._join([v.value for v in peer]) for peer in self._peers])

    def write(self, rows: Any) -> None:
        for peer, row in zip(self._peers, self._unstack(rows), strict=True):
            for variable, part in zip(peer, self._split(row), strict=True):
                variable._direct_assign(part)  # its shape and dtype are right: no `assign`

    def put(self, rows: Any, k: int, columns: slice, values: Any) -> Any:
        return self._put(rows, values, k, columns.start)


def _put(rows: Any, values: Any, k: int, start: int) -> Any:
    import jax

    return jax.lax.dynamic_update_slice(rows, values[None], (k, start))


class Jax(Backend):
    """See `Backend`."""

    how = "one program with donated state for all peers, peers beside each other"
    empties = True
    eager_steps = jax_steps.JaxSteps
    transfer = _Transfer
    device_transfer = _DeviceTransfer

    def __init__(self) -> None:
        import jax

        self._jax = jax

    def compiled_steps(self, model: Any, shared: dict[str, Any]) -> Steps | str:
        reason = jax_steps.why_not(model)
        if reason:
            return reason
        if not model.compiled:
            return jax_steps.JaxSteps(model)
        programs = shared.setdefault("programs", jax_steps.Programs())
        on_host = all(device.platform == "cpu" for device in self._jax.devices())
        tracing = jax_depthwise.shifted_products if on_host else jax_steps.as_it_is
        return jax_steps.DonatedSteps(model, programs, tracing)

    def fed(self, model: Any, function: Call, *arguments: Any, remembered: dict[str, Any]) -> Fed:
        """See `Backend`; however it ends, Keras finds the latest valid values when `fit` is left.

        The state is valid until it is donated, the new one from then on; data are drawn before,
        because an interrupt inside the data set must not come between two of
        `steps_per_execution` steps.
        """
        state, iterator = arguments
        parts = ["trainable_variables", "non_trainable_variables"]
        parts += ["optimizer_variables", "metrics_variables"] if len(state) == 4 else []
        parts += ["metrics_variables"] if len(state) == 3 else []

        def attach(values: tuple[Any, ...]) -> None:
            model._jax_state = dict(zip(parts, values, strict=True))
            model._jax_state_synced = False

        attach(state)
        batches = pull(iterator, model.steps_per_execution)
        with InterruptHeld():
            logs, new_state = function(state, iter(batches))
            attach(new_state)
        return batches, (logs, new_state)

    def devices(self) -> list[str]:
        return [f"{d.platform}:{d.id} {d.device_kind}" for d in self._jax.devices()]

    def fits(self, count: int) -> bool:
        told = self._jax.devices()[0].memory_stats() or {}
        free = told.get("bytes_limit", 0) - told.get("bytes_in_use", 0)
        return not told or count <= free / 2

    def allow_tf32(self, allowed: bool) -> None:
        wanted = "tensorfloat32" if allowed else "highest"
        self._jax.config.update("jax_default_matmul_precision", wanted)

    def keep_compiled(self) -> Path | None:
        """See `Backend`; in `kgraft/jax` of `XDG_CACHE_HOME` or `~/.cache`.

        A directory that the user has chosen (`JAX_COMPILATION_CACHE_DIR`, or in jax' own settings)
        is left as it is.
        """
        chosen = self._jax.config.jax_compilation_cache_dir
        if chosen is not None:
            return Path(chosen)
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        directory = Path(root) / "kgraft" / "jax"
        self._jax.config.update("jax_compilation_cache_dir", str(directory))
        return directory

    def is_on_host(self, value: Any) -> bool:
        return all(device.platform == "cpu" for device in value.devices())

    def place(self, value: Any) -> Hashable | None:
        devices = value.devices()
        return next(iter(devices)) if len(devices) == 1 else None

    def program(self, function: Call) -> Call:
        own = inspect.signature(function).parameters.values()
        constants = [
            parameter.name for parameter in own if parameter.kind is parameter.KEYWORD_ONLY
        ]
        return self._jax.jit(function, static_argnames=constants)

    def bin_counts(self, values: Any, edges: Any) -> Any:
        is_at_least = values[:, None, :] >= edges[:, :, None]  # summed without being written down
        at_least = self._jax.numpy.sum(is_at_least, axis=2, dtype="int32")
        return at_least[:, :-1] - at_least[:, 1:]

    def view(self, value: Any) -> NDArray[Any]:
        return np.asarray(value)
