"""Same process, on the CPU: the weights of K peers as one NumPy matrix, a row a peer."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import keras
import numpy as np
from numpy.typing import NDArray

_FLOATS = ("float32", "float64")
_BLOCK = 1 << 16  # columns that a mixer sees at once


class HostMatrix:
    """All floating-point weights of K peers, copied to the host and back in a few calls.

    A loop over a backend's weights costs tens of microseconds a weight in Python and dispatch,
    many times what the arithmetic costs. The matrix' memory stays for the next time.

    Attributes:
        values: the weights that `read` found, shape `(K, number of weights)`, to be changed.
        columns: for each index of `model.weights` where it lies in a row; None for a weight that
            is not floating-point.
    """

    def __init__(self, peers: Sequence[Sequence[Any]]) -> None:
        first = peers[0]
        self._peers = [list(weights) for weights in peers]
        self.columns: list[slice | None] = []
        end = 0
        for weight in first:
            size = int(np.prod(weight.shape)) if _is_float(weight) else None
            self.columns.append(None if size is None else slice(end, end + size))
            end += size or 0
        floats = [[weight for weight in peer if _is_float(weight)] for peer in peers]
        self.values: NDArray[Any] = np.empty((len(peers), end), floats[0][0].dtype)
        self._transfer = _TRANSFERS[keras.config.backend()](floats)

    @classmethod
    def of(cls, models: Sequence[keras.Model]) -> "HostMatrix | None":
        """The matrix of some models, the same one while they have the same weights.

        Args:
            models: built models with weights of equal shapes.

        Returns:
            None where the weights are on an accelerator, or not all float32 or all float64.
        """
        peers = [model.weights for model in models]
        known = _KNOWN.get(models[0])
        if known is None or not known._is_of(peers):
            dtypes = {weight.dtype for peer in peers for weight in peer if _is_float(weight)}
            on_host = all(_on_host(weight) for peer in peers for weight in peer)
            if not on_host or len(dtypes) != 1 or not dtypes <= set(_FLOATS):
                return None
            known = _KNOWN[models[0]] = cls(peers)
        return known

    def read(self) -> NDArray[Any]:
        """`values` as the weights are now."""
        self._transfer.read(self.values)
        return self.values

    def write(self) -> None:
        """Give the peers the weights that `values` holds."""
        self._transfer.write(self.values)

    def runs(self, members: Sequence[int]) -> list[slice]:
        """Columns of some weights, neighbours joined, in blocks that stay in the cache.

        Args:
            members: ascending indices of `model.weights`.
        """
        joined: list[slice] = []
        for index in members:
            own = self.columns[index]
            if own is None:
                continue
            if joined and joined[-1].stop == own.start:
                own = slice(joined.pop().start, own.stop)
            joined.append(own)
        return [
            slice(start, min(start + _BLOCK, run.stop))
            for run in joined
            for start in range(run.start, run.stop, _BLOCK)
        ]

    def _is_of(self, peers: Sequence[Sequence[Any]]) -> bool:
        return len(peers) == len(self._peers) and all(
            a is b
            for own, theirs in zip(self._peers, peers, strict=True)
            for a, b in itertools.zip_longest(own, theirs)
        )


class _Transfer(Protocol):
    """The floating-point weights of K peers to the rows of a matrix, and back."""

    def __init__(self, peers: Sequence[Sequence[Any]]) -> None: ...

    def read(self, out: NDArray[Any]) -> None: ...

    def write(self, rows: NDArray[Any]) -> None: ...


class _Torch:
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


class _Jax:
    def __init__(self, peers: Sequence[Sequence[Any]]) -> None:
        self._peers = peers
        self._split = _jax_split(tuple(tuple(variable.shape) for variable in peers[0]))

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
def _jax_split(shapes: tuple[tuple[int, ...], ...]) -> Callable[[Any], list[Any]]:
    """One program that cuts a vector into arrays, instead of a transfer for each."""
    import jax

    cuts = np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1].tolist()

    def split(row: Any) -> list[Any]:
        parts = jax.numpy.split(row, cuts)
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    return jax.jit(split)


class _TensorFlow:
    def __init__(self, peers: Sequence[Sequence[Any]]) -> None:
        import tensorflow as tf

        values = [[variable.value for variable in peer] for peer in peers]
        sizes = [int(np.prod(value.shape)) for value in values[0]]

        @tf.function(autograph=False)
        def joined() -> list[Any]:
            return [tf.concat([tf.reshape(value, [-1]) for value in own], 0) for own in values]

        @tf.function(autograph=False)
        def assign(*rows: Any) -> None:
            for own, row in zip(values, rows, strict=True):
                for value, part in zip(own, tf.split(row, sizes), strict=True):
                    value.assign(tf.reshape(part, value.shape), read_value=False)

        self._joined, self._assign = joined, assign

    def read(self, out: NDArray[Any]) -> None:
        for joined, row in zip(self._joined(), out, strict=True):
            np.copyto(row, memoryview(joined))

    def write(self, rows: NDArray[Any]) -> None:
        self._assign(*(keras.ops.convert_to_tensor(row) for row in rows))


_TRANSFERS: dict[str, type[_Transfer]] = {
    "torch": _Torch,
    "jax": _Jax,
    "tensorflow": _TensorFlow,
}
_KNOWN: WeakKeyDictionary[keras.Model, HostMatrix] = WeakKeyDictionary()


def _is_float(weight: Any) -> bool:
    return keras.backend.is_float_dtype(weight.dtype)


def _on_host(weight: Any) -> bool:
    match keras.config.backend():
        case "torch":
            return weight.value.device.type == "cpu"
        case "jax":
            return all(device.platform == "cpu" for device in weight.value.devices())
        case _:
            return "CPU" in weight.value.device
