"""k-reciprocal re-ranking: images that have each other among their nearest are near.

Source: Zhong et al., "Re-ranking person re-identification with k-reciprocal encoding", CVPR 2017,
and its authors' code, of which nothing of the size of all distances is kept: for N = q + g images
the k1 + 1 nearest of each, and encodings with some dozens of numbers an image.
"""

import numpy as np
from scipy import sparse

from kgraft.retrieval.distances import DECIMALS, EPSILON, ROUNDINGS, checked_features
from kgraft.settings import argument

_CHUNK = 256  # images


class Reranked:
    """Distances that are re-ranked: a mean of Jaccard's and the squared Euclidean one.

    The latter is that of features of unit length, over the largest one of the query.

    Args:
        queries: Features of the queries, `(q, d)`.
        gallery: Features of what is searched, `(g, d)`.
        k1: How many nearest are looked at for each other.
        k2: Over how many of the nearest encodings are averaged; 1 for none.
        share: The weight of the squared distance, lambda in the paper, in 0..1.

    Raises:
        UserError: features do not fit, or a number is out of range.
    """

    def __init__(
        self,
        queries: np.ndarray,
        gallery: np.ndarray,
        *,
        k1: int = 20,
        k2: int = 6,
        share: float = 0.3,
    ) -> None:
        queries = checked_features(queries, "queries")
        gallery = checked_features(gallery, "gallery", queries.shape[1])
        argument("k1", k1, int, low=1)
        argument("k2", k2, int, low=1)
        self._share = argument("share", share, float, low=0, high=1)
        self._count = len(queries)
        lengths = [np.linalg.norm(own, axis=1, keepdims=True) for own in (queries, gallery)]
        self._all = np.concatenate(
            [
                own / np.maximum(long, np.finfo(np.float32).tiny)
                for own, long in zip((queries, gallery), lengths, strict=True)
            ]
        )
        nearest, self._largest = self._neighbours(max(k1 + 1, k2))
        codes = self._codes(nearest[:, : k1 + 1], k1)
        if k2 > 1:
            codes = _mean_of(codes, nearest[:, :k2])
        self._codes_of_queries = codes[: self._count].tocsr()
        self._by_column = codes[self._count :].tocsc()

    @property
    def queries(self) -> int:
        """See `Distances`."""
        return self._count

    @property
    def gallery(self) -> int:
        """See `Distances`."""
        return len(self._all) - self._count

    def chunk(self, start: int, stop: int) -> np.ndarray:
        """See `Distances`."""
        found = self._squares(start, stop)[:, self._count :]
        found *= np.float32(self._share) / self._largest[start:stop, None]
        for row, query in zip(found, range(start, stop), strict=True):
            row += ((1 - self._share) * self._jaccard(query)).astype(np.float32)
        return found

    def error(self, query: int) -> float:
        """See `Distances`."""
        rounding = EPSILON * (np.sqrt(self._all.shape[1]) + ROUNDINGS)
        return float(rounding * (1 + 4 * self._share / self._largest[query]))

    def exact(self, query: int, rows: np.ndarray) -> np.ndarray:
        """See `Distances`."""
        own = self._all[query].astype(np.float64)
        others = self._all[self._count + rows].astype(np.float64)
        squares = np.square(others - own).sum(axis=1) / float(self._largest[query])
        found = self._share * squares + (1 - self._share) * self._jaccard(query)[rows]
        return np.round(found, DECIMALS)

    def _squares(self, start: int, stop: int) -> np.ndarray:
        """Squared distances of some images to all, float32."""
        found = self._all[start:stop] @ self._all.T
        np.multiply(found, -2, out=found)
        found += 2
        return np.maximum(found, 0, out=found)

    def _neighbours(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The nearest of every image, itself first, and the largest squared distance it has."""
        whole = len(self._all)
        count = min(count, whole)
        nearest, largest = np.empty((whole, count), np.int64), np.empty(whole, np.float32)
        for start in range(0, whole, _CHUNK):
            squares = self._squares(start, min(start + _CHUNK, whole))
            rows = np.arange(len(squares))
            largest[start : start + len(rows)] = squares.max(axis=1)
            squares[rows, start + rows] = -1
            some = np.argpartition(squares, count - 1, axis=1)[:, :count]
            some.sort(axis=1)  # of equal distances that of the lower number
            order = np.argsort(np.take_along_axis(squares, some, 1), axis=1, kind="stable")
            nearest[start : start + len(rows)] = np.take_along_axis(some, order, 1)
        return nearest, np.maximum(largest, np.finfo(np.float32).tiny)

    def _codes(self, nearest: np.ndarray, k1: int) -> sparse.csr_array:
        """Every image as weights of those that are near it and that it is near to."""
        mutual = _reciprocal(nearest)
        half = _reciprocal(nearest[:, : round(k1 / 2) + 1])
        columns, weights = [], []
        for image, own in enumerate(mutual):
            known, added = set(own.tolist()), [own]
            for other in own.tolist():
                theirs = half[other]
                if sum(one in known for one in theirs.tolist()) > 2 / 3 * len(theirs):
                    added.append(theirs)
            found = np.unique(np.concatenate(added))
            squares = np.maximum(2 - 2 * (self._all[found] @ self._all[image]), 0)
            weight = np.exp(-squares / self._largest[image])
            columns.append(found)
            weights.append(weight / weight.sum())
        starts = np.cumsum([0, *map(len, columns)])
        whole = len(self._all)
        return sparse.csr_array(
            (np.concatenate(weights), np.concatenate(columns), starts), shape=(whole, whole)
        )

    def _jaccard(self, query: int) -> np.ndarray:
        """1 less the overlap of a query's code with every one of the gallery, over their union."""
        own, theirs = self._codes_of_queries, self._by_column
        shared = np.zeros(self.gallery)
        for place in range(own.indptr[query], own.indptr[query + 1]):
            column, weight = own.indices[place], own.data[place]
            start, stop = theirs.indptr[column], theirs.indptr[column + 1]
            shared[theirs.indices[start:stop]] += np.minimum(weight, theirs.data[start:stop])
        return 1 - shared / (2 - shared)


def _reciprocal(nearest: np.ndarray) -> list[np.ndarray]:
    """Of each image's nearest those that have it among theirs."""
    images = np.arange(len(nearest))[:, None, None]
    found = []
    for start in range(0, len(nearest), _CHUNK):
        part = nearest[start : start + _CHUNK]
        has = (nearest[part] == images[start : start + _CHUNK]).any(axis=2)
        found += [own[which] for own, which in zip(part, has, strict=True)]
    return found


def _mean_of(codes: sparse.csr_array, nearest: np.ndarray) -> sparse.csr_array:
    """The mean code of each image's nearest."""
    count, many = nearest.shape
    which = sparse.csr_array(
        (np.full(count * many, 1 / many), nearest.ravel(), np.arange(0, count * many + 1, many)),
        shape=(count, count),
    )
    return which @ codes
