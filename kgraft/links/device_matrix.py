"""Same process, on an accelerator: the weights of K peers as one tensor there, a row a peer.

What a launch costs does not depend on how much it computes, and what a wait costs is all that the
device could have done meanwhile: weight by weight, a grafting takes thousands of launches and
hundreds of waits. Here all weights are ranged, counted and blended at once, in tiles of equal
length, none of which holds parts of two weights. Only ranges and counts reach the host.
"""

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import keras
import numpy as np
from numpy.typing import NDArray

from kgraft.engines.backends import BACKEND
from kgraft.links.columns import Columns, blocks, ids, is_float

_FLOATS = ("float32", "float64")
_TILE = 256  # columns: few enough that small weights waste little, many enough to be worth a sum
_AT_ONCE = 1 << 25  # weights that one launch takes: several times their memory is in use meanwhile
_BLOCK = 1 << 22  # columns that a mixer sees at once


class DeviceMatrix:
    """All floating-point weights of K peers on their device, read and written in a few launches.

    It holds none of them: rows are made by `read`, and are gone when nobody holds them.

    Attributes:
        columns: where each weight lies in a row.
    """

    def __init__(self, peers: Sequence[Sequence[Any]]) -> None:
        self._peers = peers
        self._at = BACKEND.place(peers[0][0].value)
        self.columns = Columns(peers[0])
        floats = [[weight for weight in peer if is_float(weight)] for peer in peers]
        self.dtype = np.dtype(floats[0][0].dtype)
        self._transfer = BACKEND.device_transfer(floats)
        self._place = {
            index: place
            for place, index in enumerate(i for i, own in enumerate(self.columns.of) if own)
        }
        self._tiles = _Tiles([own for own in self.columns.of if own])

    @classmethod
    def of(cls, models: Sequence[Any]) -> "DeviceMatrix | None":
        """The matrix of some models, the same one while they have the same weights.

        Args:
            models: what has `weights` of equal shapes, built models usually.

        Returns:
            None where the weights are on several devices, or not all float32 or all float64, or
            where one is empty.
        """
        peers = [model.weights for model in models]
        known, place = _KNOWN.get(models[0]), BACKEND.place(peers[0][0].value)
        if known is None or known._at != place or ids(known._peers) != ids(peers):
            floats = [weight for peer in peers for weight in peer if is_float(weight)]
            dtypes = {weight.dtype for weight in floats}
            places = {BACKEND.place(weight.value) for weight in floats}
            alike = len(dtypes) == 1 and dtypes <= set(_FLOATS)
            together = len(places) == 1 and None not in places
            if not (alike and together and all(0 not in weight.shape for weight in floats)):
                return None
            known = _KNOWN[models[0]] = cls(peers)
        return known

    def read(self) -> Any:
        """The weights as they are now, a tensor of shape `(K, columns)`."""
        return self._transfer.read()

    def write(self, rows: Any) -> None:
        """Give the peers the weights of some rows."""
        self._transfer.write(rows)

    def put(self, rows: Any, k: int, columns: slice, values: Any) -> Any:
        """Rows with other values in some columns of peer k; the given ones may be written over."""
        values = keras.ops.reshape(keras.ops.convert_to_tensor(values, self.dtype.name), (-1,))
        return self._transfer.put(rows, k, columns, values)

    def runs(self, members: Sequence[int]) -> list[slice]:
        """Columns of some weights, neighbours joined, in large blocks.

        Args:
            members: ascending indices of `model.weights`.
        """
        return self.columns.runs(members, _BLOCK)

    def ranges(self, rows: Any) -> NDArray[Any]:
        """Smallest and largest value of every weight; NaN throughout for a peer that is not finite.

        Args:
            rows: what `read` gave.

        Returns:
            Shape `(2, K, floating-point weights)`, of the weights' dtype. One transfer.
        """
        found = [_RANGES(part, *self._tiles.of_ranges) for part in self._by_peers(rows)]
        return keras.ops.convert_to_numpy(_joined(found, axis=1))

    def counts(
        self, rows: Any, ranges: NDArray[Any], members: Sequence[int], edges: "Edges"
    ) -> NDArray[np.int64]:
        """How many values of some weights lie between which edges, for all peers.

        Args:
            rows: what `read` gave.
            ranges: what `ranges` gave.
            members: indices of `model.weights`, floating-point ones.
            edges: range of a weight and its dtype -> the bins' edges, as many for each.

        Returns:
            Shape `(K, len(members), bins)`: values x with `edges[i] <= x < edges[i + 1]`; what it
            says of a peer that is not finite means nothing. One transfer.
        """
        places = [self._place[index] for index in members]
        low, high = np.nan_to_num(ranges)[:, :, places]
        own = np.array(
            [
                [edges(*pair, self.dtype) for pair in zip(*of, strict=True)]
                for of in zip(low, high, strict=True)
            ]
        )
        # of a weight that is not asked for every value lies below the first edge
        laid = np.full((*ranges.shape[1:], own.shape[-1]), np.inf, own.dtype)
        laid[:, places] = own
        parts = zip(self._by_peers(rows), self._by_peers(BACKEND.upload(laid)), strict=True)
        found = [_COUNTS(part, of, *self._tiles.of_counts) for part, of in parts]
        up_to = keras.ops.convert_to_numpy(_joined(found, axis=0)).astype(np.int64)
        return np.diff(up_to, axis=1, prepend=0)[:, places]

    def blended(
        self,
        rows: Any,
        groups: Sequence[Sequence[int]],
        alphas: NDArray[np.float64],
        ring: Sequence[int | None],
    ) -> Any:
        """Rows after a grafting: each weight blended with the donor's (eq. 2), all at once.

        Args:
            rows: what `read` gave.
            groups: for each coefficient the indices of `model.weights` that share it.
            alphas: share of its own weights that every peer keeps, shape `(K, groups)`.
            ring: each peer's donor, None for a peer that keeps what it has.

        Returns:
            New rows; the same numbers as `equations.blend` gives weight by weight.
        """
        kept = np.ones((len(alphas), len(self._place)))
        for members, shares in zip(groups, alphas.T, strict=True):
            kept[:, [self._place[i] for i in members if i in self._place]] = shares[:, None]
        kept[[donor is None for donor in ring]] = 1.0
        nearer_own = kept >= 0.5
        steps = np.where(nearer_own, 1.0 - kept, -kept)
        shares = np.stack([nearer_own, steps]).astype(self.dtype)
        donors = tuple(k if donor is None else donor for k, donor in enumerate(ring))
        parts = blocks(slice(0, self.columns.size), max(_AT_ONCE // len(alphas), 1))
        told = BACKEND.upload(shares)
        found = [
            _BLENDED(rows, told, self._tiles.ends, donors=donors, part=(own.start, own.stop))
            for own in parts
        ]
        return _joined(found, axis=1)

    def _by_peers(self, values: Any) -> list[Any]:
        """Values of all peers, cut so that a launch gets no more than is good for it."""
        most = max(_AT_ONCE // self.columns.size, 1)
        cut = blocks(slice(0, len(self._peers)), most)
        return [values] if len(cut) == 1 else [values[own] for own in cut]


Edges = Callable[[float, float, Any], NDArray[Any]]


class _Tiles:
    """Which columns each tile covers, and which tiles each weight has; on the device.

    Attributes:
        ends: one past the last column of every weight.
        of_ranges: what `_ranges` asks for.
        of_counts: what `_counts` asks for.
    """

    def __init__(self, weights: Sequence[slice]) -> None:
        starts: list[int] = []
        lasts: list[int] = []
        owners: list[int] = []
        tiles_of: list[range] = []
        for place, own in enumerate(weights):
            cut = blocks(own, _TILE)
            tiles_of.append(range(len(starts), len(starts) + len(cut)))
            starts += [tile.start for tile in cut]
            lasts += [tile.stop - 1 for tile in cut]
            owners += [place] * len(cut)
        most = max(map(len, tiles_of))
        # a weight with fewer tiles has its last one several times: that moves no minimum
        padded = [[*own, *[own[-1]] * (most - len(own))] for own in tiles_of]
        self.ends = _ints([own.stop for own in weights])
        lanes = _ints(starts), _ints(lasts)
        self.of_ranges = (*lanes, _ints(padded), _scalar(np.nan))
        last_tiles = _ints([own[-1] for own in tiles_of])
        self.of_counts = (*lanes, _ints(owners), last_tiles, _scalar(np.inf))  # beyond all bins


def _tiled(rows: Any, starts: Any, lasts: Any) -> tuple[Any, Any]:
    """Rows in tiles, shape `(K, tiles, _TILE)`, and which entries are a tile's own.

    A tile that is cut short has its last value several times.
    """
    ops = keras.ops
    columns = ops.expand_dims(starts, 1) + ops.arange(_TILE, dtype="int32")
    within = ops.expand_dims(lasts, 1)
    flat = ops.reshape(ops.minimum(columns, within), (-1,))
    return ops.reshape(ops.take(rows, flat, axis=1), (rows.shape[0], -1, _TILE)), columns <= within


def _ranges(rows: Any, starts: Any, lasts: Any, tiles_of: Any, no_number: Any) -> Any:
    """Smallest and largest value of every weight; compilers may lose a NaN in these alone."""
    ops = keras.ops
    tiles, _ = _tiled(rows, starts, lasts)
    low = ops.min(ops.take(ops.min(tiles, axis=-1), tiles_of, axis=1), axis=-1)
    high = ops.max(ops.take(ops.max(tiles, axis=-1), tiles_of, axis=1), axis=-1)
    finite = ops.all(ops.isfinite(rows), axis=1, keepdims=True)
    return ops.where(finite, ops.stack([low, high]), no_number)


def _counts(
    rows: Any, edges: Any, starts: Any, lasts: Any, owners: Any, last_tiles: Any, beyond: Any
) -> Any:
    """Counts of every weight and all before it, shape `(K, weights, bins)`."""
    ops = keras.ops
    tiles, own = _tiled(ops.cast(rows, edges.dtype), starts, lasts)
    tiles = ops.where(own, tiles, beyond)
    edges = ops.take(edges, owners, axis=1)
    shape = rows.shape[0], -1, edges.shape[-1] - 1
    counts = BACKEND.bin_counts(
        ops.reshape(tiles, (-1, _TILE)), ops.reshape(edges, (-1, edges.shape[-1]))
    )
    return ops.take(ops.cumsum(ops.reshape(counts, shape), axis=1), last_tiles, axis=1)


def _blended(
    rows: Any, shares: Any, ends: Any, *, donors: tuple[int, ...], part: tuple[int, int]
) -> Any:
    """Some columns of rows after a grafting, in the steps of `equations.blend`."""
    ops = keras.ops
    own = rows[:, slice(*part)]
    theirs = ops.stack([own[donor] for donor in donors])
    weights = ops.searchsorted(ends, ops.arange(*part, dtype="int32"), side="right")
    nearer_own, shares = ops.unstack(ops.take(shares, weights, axis=2))
    base = ops.where(nearer_own > 0, own, theirs)
    # the step between finite weights may be infinite: where nothing is taken it must not count
    return ops.where(shares == 0, base, base + (theirs - own) * shares)


_RANGES, _COUNTS, _BLENDED = (BACKEND.program(own) for own in (_ranges, _counts, _blended))


def _joined(parts: list[Any], axis: int) -> Any:
    return parts[0] if len(parts) == 1 else keras.ops.concatenate(parts, axis=axis)


def _ints(values: Any) -> Any:
    return keras.ops.convert_to_tensor(np.array(values, np.int32))


def _scalar(value: float) -> Any:
    return keras.ops.convert_to_tensor(np.array(value, np.float32))


_KNOWN: WeakKeyDictionary[Any, DeviceMatrix] = WeakKeyDictionary()
