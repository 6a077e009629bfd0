"""K peers' weights as a mixer reads and writes them, wherever they are."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import keras
import numpy as np
from numpy.typing import NDArray

from kgraft import equations
from kgraft.engines.backends import BACKEND
from kgraft.equations import Float64
from kgraft.grafting.arrays import host_array, parted
from kgraft.grafting.ring import ring_mix
from kgraft.links.columns import is_float
from kgraft.links.device_matrix import DeviceMatrix, Edges
from kgraft.links.host_matrix import HostMatrix
from kgraft.links.link import running_mean

Mix = Callable[[list[Any]], list[Any]]


class Weighted(Protocol):
    """What has weights: a model, or what stands in its place."""

    @property
    def weights(self) -> list[Any]:
        """Keras variables, in the order that is a model's."""
        ...


class Population(Protocol):
    """The floating-point weights of K peers: read once, mixed piece by piece, written once.

    Peers are counted from 0 in ring order. Whatever process they are in, all are mixed; the weights
    of those here can be read and replaced.
    """

    def is_finite(self, k: int) -> bool:
        """Whether all weights of peer k, here or elsewhere, are finite; False for a lost one."""
        ...

    def weights(self, k: int, indices: Sequence[int]) -> list[Any]:
        """Some weights of peer k, who is here, as arrays, indices as in `model.weights`.

        They may be views of what `mix` and `replace` write to: copy what is to be kept.
        """
        ...

    def on_host(self, k: int, indices: Sequence[int]) -> list[NDArray[Any]]:
        """The same as NumPy arrays, not to be written to; half precision as float32."""
        ...

    def of_donors(
        self, indices: Sequence[int], ring: Sequence[int | None]
    ) -> dict[int, list[NDArray[Any]]]:
        """The donors' weights, as `on_host` gives them, for every peer here that has a donor.

        Args:
            indices: as in `model.weights`.
            ring: each peer's donor.
        """
        ...

    def mix(self, members: Sequence[int], mix: Mix) -> None:
        """Replace some weights of all peers, elementwise.

        Args:
            members: ascending indices as in `model.weights`; others than floating-point are left.
            mix: K arrays, one a peer, of equal shapes -> K new ones, or some of the same objects,
                which may change places. May be called for parts of weights and for several at once.
                For a lost peer it gets the array of the one before it.
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

    def pull(self, members: Sequence[int], kept: Sequence[float], healthy: Sequence[bool]) -> None:
        """Move peers towards the mean of all that are healthy.

        Args:
            members: see `mix`.
            kept: share of its own weights that every peer keeps.
            healthy: which ones count, and are moved.
        """
        ...

    def counts(
        self, peers: Sequence[int], indices: Sequence[int], edges: Edges
    ) -> NDArray[np.int64] | None:
        """Bin counts of some weights, where all are counted at once.

        Args:
            peers: which ones, here, with finite weights.
            indices: as in `model.weights`.
            edges: smallest and largest value of a weight, and its dtype -> its bins' edges, of the
                dtype in which they are compared.

        Returns:
            Shape `(len(peers), len(indices), bins)`; None where it is as well to take `weights`.
        """
        ...

    def replace(self, k: int, index: int, value: Any) -> None:
        """Give peer k, who is here, a new array for one weight."""
        ...

    def commit(self) -> None:
        """Put what was mixed into the peers."""
        ...


class Local(Population, Protocol):
    """All peers are here; some more may be guests, that are read and not written.

    Attributes:
        is_uniform: whether all weights are float32, or all float64, which `flat` keeps.
    """

    is_uniform: bool

    def flat(self, k: int, members: Sequence[int]) -> NDArray[Any]:
        """Some weights of peer k one after the other, on the host; half precision as float32."""
        ...

    def admit(self, members: Sequence[int], rows: Sequence[NDArray[Any]]) -> None:
        """Take guests in, behind the peers, and let those go that were there.

        Args:
            members: the weights that they have.
            rows: of each what `flat` gives of them.
        """
        ...


def population(models: Sequence[Weighted]) -> Local:
    """The weights of K peers of this process as they are now.

    Args:
        models: built models of one architecture.
    """
    matrix = HostMatrix.of(models)
    if matrix is not None:
        return _OnHost(models, matrix)
    joined = DeviceMatrix.of(models)
    return _ByWeight(models) if joined is None else _OnDevice(models, joined)


class _Here:
    """What follows from `mix` and `on_host` where all peers are here."""

    is_uniform = True
    mix: Callable[[Sequence[int], Mix], None]
    on_host: Callable[[int, Sequence[int]], list[NDArray[Any]]]

    def of_donors(
        self, indices: Sequence[int], ring: Sequence[int | None]
    ) -> dict[int, list[NDArray[Any]]]:
        return {k: self.on_host(own, indices) for k, own in enumerate(ring) if own is not None}

    def pull(self, members: Sequence[int], kept: Sequence[float], healthy: Sequence[bool]) -> None:
        self.mix(members, partial(towards_mean, kept=kept, healthy=healthy))

    def flat(self, k: int, members: Sequence[int]) -> NDArray[Any]:
        parts = [own.reshape(-1) for own in self.on_host(k, members)]
        return np.concatenate(parts) if parts else np.empty(0, np.float32)


class _ByGroup(_Here):
    """Groups are mixed one after another."""

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
    def __init__(self, models: Sequence[Weighted], matrix: HostMatrix) -> None:
        self._matrix, self._rows = matrix, matrix.read()
        self._guests: list[NDArray[Any]] = []
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
            before = [*self._rows[:, run], *(row[run] for row in self._guests)]
            for old, new in _changed(before, mix(before), np.copy):
                old[...] = new

    def flat(self, k: int, members: Sequence[int]) -> NDArray[Any]:
        parts = [self._rows[k, run] for run in self._matrix.runs(members)]
        return np.concatenate(parts) if parts else self._rows[k, :0]

    def admit(self, members: Sequence[int], rows: Sequence[NDArray[Any]]) -> None:
        self._guests = [_laid(row, self._matrix.runs(members), self._rows[0]) for row in rows]

    def replace(self, k: int, index: int, value: Any) -> None:
        host = value if isinstance(value, np.ndarray) else keras.ops.convert_to_numpy(value)
        self._rows[k, self._matrix.columns[index]] = host.reshape(-1)

    def commit(self) -> None:
        self._matrix.write()


class _OnDevice(_Here):
    def __init__(self, models: Sequence[Weighted], matrix: DeviceMatrix) -> None:
        self._matrix, self._rows = matrix, matrix.read()
        self._count, self._guests = len(models), 0
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
            before = [self._cut(k, run) for k in range(self._count + self._guests)]
            of = {id(value): k for k, value in enumerate(before)}
            for old, new in _changed(before, mix(before), keras.ops.copy):
                if (k := of[id(old)]) < self._count:
                    self._put(k, run, new)

    def admit(self, members: Sequence[int], rows: Sequence[NDArray[Any]]) -> None:
        own, like = (
            self._rows[: self._count],
            np.empty(self._matrix.columns.size, self._matrix.dtype),
        )
        self._guests, self._rows = len(rows), own
        if rows:
            laid = [_laid(row, self._matrix.runs(members), like) for row in rows]
            self._rows = keras.ops.concatenate([own, BACKEND.upload(np.stack(laid))])

    def graft(
        self, groups: Sequence[Sequence[int]], alphas: Float64, ring: Sequence[int | None]
    ) -> None:
        self._rows = self._matrix.blended(self._rows, groups, alphas, ring)
        self._known = None

    def counts(
        self, peers: Sequence[int], indices: Sequence[int], edges: Edges
    ) -> NDArray[np.int64] | None:
        rows = self._rows[: self._count] if self._guests else self._rows
        return self._matrix.counts(rows, self._ranges(), indices, edges)[list(peers)]

    def replace(self, k: int, index: int, value: Any) -> None:
        self._put(k, self._matrix.columns.of[index], value)

    def commit(self) -> None:
        self._matrix.write(self._rows[: self._count] if self._guests else self._rows)

    def _ranges(self) -> NDArray[Any]:
        """One transfer tells whether weights are finite, and how far they go."""
        if self._known is None:
            rows = self._rows[: self._count] if self._guests else self._rows
            self._known = self._matrix.ranges(rows)
        return self._known

    def _cut(self, k: int, columns: Any) -> Any:
        size = columns.stop - columns.start
        return keras.ops.slice(self._rows, (k, columns.start), (1, size))[0]

    def _put(self, k: int, columns: Any, value: Any) -> None:
        self._rows = self._matrix.put(self._rows, k, columns, value)
        self._known = None


class _ByWeight(_ByGroup):
    """Half-precision weights, or weights of several dtypes or on several devices."""

    is_uniform = False

    def __init__(self, models: Sequence[Weighted]) -> None:
        self._weights = [model.weights for model in models]
        self._new: dict[tuple[int, int], Any] = {}  # by peer and index, until they are assigned
        self._guests: list[dict[int, Any]] = []

    def is_finite(self, k: int) -> bool:
        return all(
            bool(keras.ops.all(keras.ops.isfinite(self._value(k, index))))
            for index, weight in enumerate(self._weights[k])
            if is_float(weight)
        )

    def weights(self, k: int, indices: Sequence[int]) -> list[Any]:
        return [self._value(k, index) for index in indices]

    def on_host(self, k: int, indices: Sequence[int]) -> list[NDArray[Any]]:
        return [host_array(value) for value in self.weights(k, indices)]

    def mix(self, members: Sequence[int], mix: Mix) -> None:
        for index in self._floats(members):
            before = [self._value(k, index) for k in range(len(self._weights))]
            before += [guest[index] for guest in self._guests]
            of = {id(value): k for k, value in enumerate(before)}
            for old, new in _changed(before, mix(before), keras.ops.copy):
                if (k := of[id(old)]) < len(self._weights):
                    self._new[k, index] = new

    def flat(self, k: int, members: Sequence[int]) -> NDArray[Any]:
        return super().flat(k, self._floats(members))

    def admit(self, members: Sequence[int], rows: Sequence[NDArray[Any]]) -> None:
        floats = self._floats(members)
        weights = [self._weights[0][index] for index in floats]
        shapes = [tuple(own.shape) for own in weights]
        self._guests = [
            {
                index: keras.ops.convert_to_tensor(part, own.dtype)
                for index, own, part in zip(floats, weights, parted(row, shapes), strict=True)
            }
            for row in rows
        ]

    def replace(self, k: int, index: int, value: Any) -> None:
        self._new[k, index] = value

    def commit(self) -> None:
        for (k, index), value in self._new.items():
            self._weights[k][index].assign(value)
        self._new.clear()

    def _floats(self, members: Sequence[int]) -> list[int]:
        return [index for index in members if is_float(self._weights[0][index])]

    def _value(self, k: int, index: int) -> Any:
        if (k, index) in self._new:
            return keras.ops.convert_to_tensor(self._new[k, index])
        return _value(self._weights[k][index])


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


def _laid(row: NDArray[Any], runs: Sequence[slice], like: NDArray[Any]) -> NDArray[Any]:
    """What `flat` gave in a whole row; the other columns mean nothing."""
    laid, start = np.zeros_like(like), 0
    for run in runs:
        stop = start + run.stop - run.start
        laid[run], start = row[start:stop], stop
    return laid


def towards_mean(values: list[Any], *, kept: Sequence[float], healthy: Sequence[bool]) -> list[Any]:
    """One weight of all peers after a pull, see `Population.pull`."""
    counted = [value for value, well in zip(values, healthy, strict=True) if well]
    if not counted:
        return values
    mean = running_mean(counted)
    return [
        equations.blend(value, mean, share) if well else value
        for value, share, well in zip(values, kept, healthy, strict=True)
    ]
