"""K peers' weights as a mixer reads and writes them, wherever they are."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import keras
import numpy as np
from numpy.typing import NDArray

from kgraft.equations import Float64
from kgraft.grafting.arrays import host_array
from kgraft.grafting.ring import ring_mix
from kgraft.links.columns import is_float
from kgraft.links.device_matrix import DeviceMatrix, Edges
from kgraft.links.host_matrix import HostMatrix

Mix = Callable[[list[Any]], list[Any]]


class Population(Protocol):
    """The floating-point weights of K peers: read once, mixed piece by piece, written once."""

    def is_finite(self, k: int) -> bool:
        """Whether all weights of peer k, counted from 0, are finite."""
        ...

    def weights(self, k: int, indices: Sequence[int]) -> list[Any]:
        """Some weights of peer k as arrays, indices as in `model.weights`.

        They may be views of what `mix` and `replace` write to: copy what is to be kept.
        """
        ...

    def on_host(self, k: int, indices: Sequence[int]) -> list[NDArray[Any]]:
        """The same as NumPy arrays, not to be written to; half precision as float32."""
        ...

    def mix(self, members: Sequence[int], mix: Mix) -> None:
        """Replace some weights of all peers, elementwise.

        Args:
            members: ascending indices as in `model.weights`; others than floating-point are left.
            mix: K arrays, one a peer, of equal shapes -> K new ones, or some of the same objects,
                which may change places. May be called for parts of weights and for several at once.
        """
        ...

    def graft(
        self, groups: Sequence[Sequence[int]], alphas: Float64, ring: Sequence[int | None]
    ) -> None:
        """Mix by `ring_mix`, a coefficient a group.

        Args:
            groups: for each the ascending indices of its weights; no weight is in two.
            alphas: share of its own weights that every peer keeps, shape `(K, groups)`.
            ring: each peer's donor, None for a peer that keeps what it has.
        """
        ...

    def counts(
        self, peers: Sequence[int], indices: Sequence[int], edges: Edges
    ) -> NDArray[np.int64] | None:
        """Bin counts of some weights, where all are counted at once.

        Args:
            peers: which ones, counted from 0, with finite weights.
            indices: as in `model.weights`.
            edges: smallest and largest value of a weight, and its dtype -> its bins' edges, of the
                dtype in which they are compared.

        Returns:
            Shape `(len(peers), len(indices), bins)`; None where it is as well to take `weights`.
        """
        ...

    def replace(self, k: int, index: int, value: Any) -> None:
        """Give peer k a new array for one weight."""
        ...

    def commit(self) -> None:
        """Put what was mixed into the peers."""
        ...


def population(models: Sequence[keras.Model]) -> Population:
    """The weights of K peers as they are now.

    Args:
        models: built models of one architecture.
    """
    matrix = HostMatrix.of(models)
    if matrix is not None:
        return _OnHost(models, matrix)
    joined = DeviceMatrix.of(models)
    return _ByWeight(models) if joined is None else _OnDevice(models, joined)


class _ByGroup:
    """Groups are mixed one after another."""

    mix: Callable[[Sequence[int], Mix], None]

    def graft(
        self, groups: Sequence[Sequence[int]], alphas: Float64, ring: Sequence[int | None]
    ) -> None:
        for members, shares in zip(groups, alphas.T.tolist(), strict=True):
            self.mix(members, partial(ring_mix, alphas=shares, ring=ring))

    def counts(
        self, peers: Sequence[int], indices: Sequence[int], edges: Edges
    ) -> NDArray[np.int64] | None:
        return None


class _OnHost(_ByGroup):
    def __init__(self, models: Sequence[keras.Model], matrix: HostMatrix) -> None:
        self._matrix, self._rows = matrix, matrix.read()
        self._shapes = [tuple(weight.shape) for weight in models[0].weights]

    def is_finite(self, k: int) -> bool:
        with np.errstate(over="ignore", invalid="ignore"):
            total = self._rows[k].sum()  # one sum answers for all weights, unless it overflows
        return bool(np.isfinite(total) or np.isfinite(self._rows[k]).all())

    def weights(self, k: int, indices: Sequence[int]) -> list[Any]:
        columns = self._matrix.columns
        return [self._rows[k, columns[i]].reshape(self._shapes[i]) for i in indices]

    def on_host(self, k: int, indices: Sequence[int]) -> list[NDArray[Any]]:
        return self.weights(k, indices)

    def mix(self, members: Sequence[int], mix: Mix) -> None:
        for run in self._matrix.runs(members):
            before = list(self._rows[:, run])
            for old, new in _changed(before, mix(before), np.copy):
                old[...] = new

    def replace(self, k: int, index: int, value: Any) -> None:
        host = value if isinstance(value, np.ndarray) else keras.ops.convert_to_numpy(value)
        self._rows[k, self._matrix.columns[index]] = host.reshape(-1)

    def commit(self) -> None:
        self._matrix.write()


class _OnDevice:
    def __init__(self, models: Sequence[keras.Model], matrix: DeviceMatrix) -> None:
        self._matrix, self._rows = matrix, matrix.read()
        self._count = len(models)
        self._shapes = [tuple(weight.shape) for weight in models[0].weights]
        self._known: NDArray[Any] | None = None

    def is_finite(self, k: int) -> bool:
        return bool(np.isfinite(self._ranges()[:, k]).all())

    def weights(self, k: int, indices: Sequence[int]) -> list[Any]:
        columns = self._matrix.columns.of
        return [keras.ops.reshape(self._cut(k, columns[i]), self._shapes[i]) for i in indices]

    def on_host(self, k: int, indices: Sequence[int]) -> list[NDArray[Any]]:
        columns = self._matrix.columns
        row = keras.ops.convert_to_numpy(self._cut(k, slice(0, columns.size)))  # one transfer
        return [row[columns.of[i]].reshape(self._shapes[i]) for i in indices]

    def mix(self, members: Sequence[int], mix: Mix) -> None:
        for run in self._matrix.runs(members):
            before = [self._cut(k, run) for k in range(self._count)]
            of = {id(value): k for k, value in enumerate(before)}
            for old, new in _changed(before, mix(before), keras.ops.copy):
                self._put(of[id(old)], run, new)

    def graft(
        self, groups: Sequence[Sequence[int]], alphas: Float64, ring: Sequence[int | None]
    ) -> None:
        self._rows = self._matrix.blended(self._rows, groups, alphas, ring)
        self._known = None

    def counts(
        self, peers: Sequence[int], indices: Sequence[int], edges: Edges
    ) -> NDArray[np.int64] | None:
        return self._matrix.counts(self._rows, self._ranges(), indices, edges)[list(peers)]

    def replace(self, k: int, index: int, value: Any) -> None:
        self._put(k, self._matrix.columns.of[index], value)

    def commit(self) -> None:
        self._matrix.write(self._rows)

    def _ranges(self) -> NDArray[Any]:
        """One transfer tells whether weights are finite, and how far they go."""
        if self._known is None:
            self._known = self._matrix.ranges(self._rows)
        return self._known

    def _cut(self, k: int, columns: Any) -> Any:
        size = columns.stop - columns.start
        return keras.ops.slice(self._rows, (k, columns.start), (1, size))[0]

    def _put(self, k: int, columns: Any, value: Any) -> None:
        self._rows = self._matrix.put(self._rows, k, columns, value)
        self._known = None


class _ByWeight(_ByGroup):
    """Half-precision weights, or weights of several dtypes or on several devices."""

    def __init__(self, models: Sequence[keras.Model]) -> None:
        self._weights = [model.weights for model in models]

    def is_finite(self, k: int) -> bool:
        return all(
            bool(keras.ops.all(keras.ops.isfinite(weight.value)))
            for weight in self._weights[k]
            if is_float(weight)
        )

    def weights(self, k: int, indices: Sequence[int]) -> list[Any]:
        return [_value(self._weights[k][i]) for i in indices]

    def on_host(self, k: int, indices: Sequence[int]) -> list[NDArray[Any]]:
        return [host_array(value) for value in self.weights(k, indices)]

    def mix(self, members: Sequence[int], mix: Mix) -> None:
        for index in members:
            variables = [weights[index] for weights in self._weights]
            if not is_float(variables[0]):
                continue
            before = [_value(variable) for variable in variables]
            of = {id(value): variable for value, variable in zip(before, variables, strict=True)}
            for old, new in _changed(before, mix(before), keras.ops.copy):
                of[id(old)].assign(new)

    def replace(self, k: int, index: int, value: Any) -> None:
        self._weights[k][index].assign(value)

    def commit(self) -> None:
        """Everything is in place already."""


def _changed(
    before: list[Any], after: list[Any], copy: Callable[[Any], Any]
) -> list[tuple[Any, Any]]:
    """The values that change, each with its new one, which no other's change can reach."""
    given = {id(value) for value in before}
    return [
        (old, copy(new) if id(new) in given else new)
        for old, new in zip(before, after, strict=True)
        if new is not old
    ]


def _value(variable: Any) -> Any:
    return keras.ops.stop_gradient(keras.ops.convert_to_tensor(variable.value))
