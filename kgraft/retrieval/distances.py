"""How far every query is from every image of the gallery, a chunk of queries at a time.

Products are taken in float32, where they are fast. They say which of two images is nearer unless
both are as near as rounding allows; those few are measured again, in float64. So the ranks are
those of float64, and images whose features are equal are equally near, whatever the order in which
a matrix product adds.
"""

from typing import Any, Literal, Protocol, runtime_checkable

import keras
import numpy as np

from kgraft.errors import UserError

Metric = Literal["cosine", "euclidean"]
EPSILON = float(np.finfo(np.float32).eps)
_MOST = 1e15  # of a feature
_NOTHING = 1e-30  # a length that float32 has no inverse of
DECIMALS = 12  # beyond which float64 has other digits for features that point the same way
ROUNDINGS = 4  # of a product, beside those of its sum, which err like sqrt(d) where independent


@runtime_checkable
class Distances(Protocol):
    """Distances of queries to a gallery, the nearer the smaller; of one query they are compared."""

    @property
    def queries(self) -> int:
        """How many queries there are."""
        ...

    @property
    def gallery(self) -> int:
        """How many images they are compared with."""
        ...

    def chunk(self, start: int, stop: int) -> np.ndarray:
        """Those of some queries.

        Args:
            start: The first query.
            stop: The one after the last.

        Returns:
            float32 `(stop - start, gallery)`, whose caller may write to it.
        """
        ...

    def error(self, query: int) -> float:
        """By how much those of a query may be wrong; 0 where they are exact."""
        ...

    def exact(self, query: int, rows: np.ndarray) -> np.ndarray:
        """Some of them, in float64, equal ones being equal to the last bit.

        Args:
            query: Its number.
            rows: Numbers of images of the gallery, `(n,)`.
        """
        ...


class FeatureDistances:
    """Cosine or Euclidean distances of features.

    Args:
        queries: Their features, float32 `(q, d)`.
        gallery: Those of the gallery, float32 `(g, d)`.
        metric: `"cosine"`: 1 less the cosine, an image without any feature being at 1 from all;
            `"euclidean"`.
    """

    def __init__(self, queries: np.ndarray, gallery: np.ndarray, metric: Metric) -> None:
        self._metric, self._queries, self._gallery = metric, queries, gallery
        rounding = EPSILON * (np.sqrt(gallery.shape[1]) + ROUNDINGS)
        if metric == "cosine":
            self._own = _inverse(np.sqrt(_products(queries)))
            self._theirs = _inverse(np.sqrt(_products(gallery)))
            self._columns = self._theirs.astype(np.float32)
            self._error = np.full(len(queries), rounding)
        else:
            # from the gallery's mean products are smaller, and so are their errors
            self._centre = gallery.mean(axis=0)
            squares = _products(gallery)
            along = _products(gallery, self._centre)
            columns = squares - 2 * along
            self._columns = (columns - columns.mean()).astype(np.float32)  # small, so errs less
            own = np.sqrt(_products(queries - self._centre))
            reach = 2 * own * np.sqrt(squares.max()) + float(np.abs(self._columns).max())
            self._error = rounding * reach

    @property
    def queries(self) -> int:
        """See `Distances`."""
        return len(self._queries)

    @property
    def gallery(self) -> int:
        """See `Distances`."""
        return len(self._gallery)

    def chunk(self, start: int, stop: int) -> np.ndarray:
        """See `Distances`: without what is the same for all images of the gallery."""
        own = self._queries[start:stop]
        if self._metric == "cosine":
            found = (-own * self._own[start:stop, None].astype(np.float32)) @ self._gallery.T
            found *= self._columns
        else:
            found = (-2 * (own - self._centre)) @ self._gallery.T
            found += self._columns
        return found

    def error(self, query: int) -> float:
        """See `Distances`."""
        return float(self._error[query])

    def exact(self, query: int, rows: np.ndarray) -> np.ndarray:
        """See `Distances`."""
        own = self._queries[query].astype(np.float64)
        if self._metric == "cosine":
            others = self._gallery[rows].astype(np.float64)
            cosines = self._own[query] * self._theirs[rows] * np.einsum("nd,d->n", others, own)
            return np.round(-cosines, DECIMALS)
        apart = self._gallery[rows] - own
        mantissa, exponent = np.frexp(np.einsum("nd,nd->n", apart, apart))
        return np.ldexp(np.round(mantissa, DECIMALS), exponent)


class MatrixDistances:
    """Distances that somebody has measured.

    Args:
        values: `(q, g)`.

    Raises:
        UserError: they are no numbers of that shape, or one is not finite.
    """

    def __init__(self, values: Any) -> None:
        found = _numbers(values, "distances", "(q, g)")
        self._values = found if found.dtype.kind == "f" else found.astype(np.float64)

    @property
    def queries(self) -> int:
        """See `Distances`."""
        return len(self._values)

    @property
    def gallery(self) -> int:
        """See `Distances`."""
        return self._values.shape[1]

    def chunk(self, start: int, stop: int) -> np.ndarray:
        """See `Distances`; in their own precision."""
        return self._values[start:stop].copy()

    def error(self, query: int) -> float:
        """See `Distances`."""
        return 0.0

    def exact(self, query: int, rows: np.ndarray) -> np.ndarray:
        """See `Distances`."""
        return self._values[query, rows].astype(np.float64)


def _products(features: np.ndarray, other: np.ndarray | None = None) -> np.ndarray:
    """Products of features with another, or with themselves, float64 `(n,)`; a chunk at a time."""
    found = np.empty(len(features))
    for start in range(0, len(features), 256):
        part = features[start : start + 256].astype(np.float64)
        found[start : start + 256] = (
            np.einsum("nd,nd->n", part, part)
            if other is None
            else np.einsum("nd,d->n", part, other)
        )
    return found


def _inverse(lengths: np.ndarray) -> np.ndarray:
    """1 / length, 0 for what is as good as 0."""
    return np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > _NOTHING)


def checked_features(features: np.ndarray, name: str, width: int | None = None) -> np.ndarray:
    """Features as float32, or a refusal.

    Args:
        features: What somebody gave.
        name: What it is called in errors.
        width: How many numbers an image must have.

    Returns:
        float32 `(n, d)`.

    Raises:
        UserError: they are no numbers of that shape, there are none, or one is not finite.
    """
    found = _numbers(features, name, "(n, d)")
    if width is not None and found.shape[1] != width:
        raise UserError(
            f"{name}: {found.shape[1]} numbers an image; expected {width}, as many as the queries'."
        )
    found = np.ascontiguousarray(found, np.float32)
    if (largest := max(float(found.max()), -float(found.min()))) > _MOST:
        raise UserError(
            f"{name}: numbers up to {largest:.3g}, whose squares float32 does not hold; expected "
            f"{_MOST:g} at most: divide all features, of queries and gallery, by one number."
        )
    return found


def _numbers(values: Any, name: str, shape: str) -> np.ndarray:
    """Finite numbers of two dimensions, of anybody's arrays."""
    if keras.ops.is_tensor(values):
        values = keras.ops.convert_to_numpy(values)
    found = np.asarray(values)
    if found.dtype.name == "bfloat16":  # NumPy knows no such numbers
        found = found.astype(np.float32)
    if found.ndim != 2 or not found.size or found.dtype.kind not in "fiub":
        raise UserError(
            f"{name}: {found.dtype} of shape {found.shape}; expected numbers of shape {shape}, not "
            "empty."
        )
    if not np.isfinite([found.min(), found.max()]).all():  # nothing as large as they are is held
        sick = np.flatnonzero(~np.isfinite(found).all(axis=1))
        raise UserError(f"{name}: row {sick[0]} is not finite ({len(sick)} such rows).")
    return found
