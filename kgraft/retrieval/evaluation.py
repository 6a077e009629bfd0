"""How well images of the same identity are found: CMC, mAP and mINP, single query.

For each query, gallery images of the same identity *and* the same camera are left out, and so are
junk images, whose identity is -1: neither hits nor misses. Distractors stay. With r_i the rank,
counted from 1, of the i-th of the m images that are to be found:

| figure | of a query |
|---|---|
| rank-k | 1 where r_1 <= k, else 0 |
| mAP | mean of i / r_i |
| official mAP | mean of (i / r_i + (i - 1) / (r_i - 1)) / 2, the second being 1 where r_i = 1 |
| mINP | m / r_m |

The first two as torchreid has them, and with it most papers; the official mAP is that of the code
which comes with Market-1501 (Zheng et al., ICCV 2015; trapezoids, as for Oxford's buildings); mINP
is Ye et al.'s (TPAMI 2021).

Queries of which nothing is to be found do not count.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from kgraft.errors import UserError
from kgraft.retrieval.distances import (
    Distances,
    FeatureDistances,
    MatrixDistances,
    Metric,
    checked_features,
)
from kgraft.settings import argument

Ties = Literal["pessimistic", "optimistic", "stable"]
JUNK = -1
"""The identity of images that count neither as hits nor as misses."""
_CHUNK = 256  # queries
_AT_ONCE = 1 << 22  # of hits with rivals


@dataclass(frozen=True, eq=False)
class RetrievalResult:
    """What was found.

    Attributes:
        first: Rank of the first image that was to be found, counted from 1, int64 `(q,)`; 0 for a
            query that does not count.
        precision: Average precision of each query, 0..1, float64 `(q,)`; nan likewise.
        official_precision: The same by the trapezoids of Market-1501's code.
        inverse_penalty: How early the last one comes: their number by its rank, likewise.
        found: How many were to be found, int64 `(q,)`.
    """

    first: np.ndarray
    precision: np.ndarray
    official_precision: np.ndarray
    inverse_penalty: np.ndarray
    found: np.ndarray

    @property
    def counted(self) -> int:
        """How many queries count."""
        return int((self.found > 0).sum())

    @property
    def unmatched(self) -> int:
        """How many queries do not count, for nothing is to be found."""
        return len(self.found) - self.counted

    def rank(self, k: int) -> float:
        """Share of the queries of which one is among the k nearest (the CMC curve at k).

        Args:
            k: How many of the nearest are looked at.
        """
        argument("k", k, int, low=1)
        return float((self.first[self.found > 0] <= k).mean())

    @property
    def mean_precision(self) -> float:
        """MAP, the mean of i / r_i."""
        return float(np.nanmean(self.precision))

    @property
    def official_mean_precision(self) -> float:
        """MAP by trapezoids, as Market-1501's own code has it; usually lower by half a point."""
        return float(np.nanmean(self.official_precision))

    @property
    def mean_inverse_penalty(self) -> float:
        """MINP."""
        return float(np.nanmean(self.inverse_penalty))

    def figures(self) -> dict[str, float]:
        """What is usually told, by name, all in 0..1."""
        ranks = {f"rank{k}": self.rank(k) for k in (1, 5, 10)}
        return {
            "mAP": self.mean_precision,
            **ranks,
            "mAP_official": self.official_mean_precision,
            "mINP": self.mean_inverse_penalty,
        }


def evaluate(
    queries: np.ndarray,
    gallery: np.ndarray,
    query_identities: np.ndarray,
    gallery_identities: np.ndarray,
    query_cameras: np.ndarray | None = None,
    gallery_cameras: np.ndarray | None = None,
    *,
    metric: Metric = "cosine",
    ties: Ties = "pessimistic",
) -> RetrievalResult:
    """How well features find images of the same identity, see the module's table.

    Exact: ranks are those of distances in float64 of float32 features. Nothing of the size of all
    distances is held: 256 queries at a time.

    Args:
        queries: Features of the queries, `(q, d)`.
        gallery: Features of what is searched, `(g, d)`.
        query_identities: Integers `(q,)`.
        gallery_identities: Integers `(g,)`; -1 for junk.
        query_cameras: Integers `(q,)`; None where there are no cameras: then nothing of the same
            identity is left out, so a query that is in the gallery too finds itself.
        gallery_cameras: Integers `(g,)`, None likewise.
        metric: `"cosine"` or `"euclidean"`.
        ties: What of others that are as near as an image to be found. `"pessimistic"`: they come
            before it, so that features that are all alike find nothing; `"optimistic"`: behind it;
            `"stable"`: in the gallery's order, as a stable sort has it.

    Raises:
        UserError: shapes do not fit, features are not finite, only one side has cameras, or of no
            query is anything to be found.

    Example:
        >>> q, g = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0], [0.9, 0.1], [0.8, 0.6]])
        >>> found = evaluate(q, g, np.array([7]), np.array([7, 3, 7]))
        >>> found.rank(1), found.rank(5), found.precision  # ranks 2 and 3: (1 / 2 + 2 / 3) / 2
        (0.0, 1.0, array([0.58333333]))
    """
    queries = checked_features(queries, "queries")
    gallery = checked_features(gallery, "gallery", queries.shape[1])
    argument("metric", metric, Metric)
    return ranked(
        FeatureDistances(queries, gallery, metric),
        query_identities,
        gallery_identities,
        query_cameras,
        gallery_cameras,
        ties=ties,
    )


def ranked(
    distances: Distances | np.ndarray,
    query_identities: np.ndarray,
    gallery_identities: np.ndarray,
    query_cameras: np.ndarray | None = None,
    gallery_cameras: np.ndarray | None = None,
    *,
    ties: Ties = "pessimistic",
) -> RetrievalResult:
    """See `evaluate`; of distances that come from elsewhere.

    Args:
        distances: Of every query to all of the gallery, numbers `(q, g)`, which are taken as they
            are; or e.g. `Reranked`.
        query_identities: See `evaluate`.
        gallery_identities: See `evaluate`.
        query_cameras: See `evaluate`.
        gallery_cameras: See `evaluate`.
        ties: See `evaluate`.

    Raises:
        UserError: see `evaluate`.
    """
    argument("ties", ties, Ties)
    if not isinstance(distances, Distances):
        distances = MatrixDistances(distances)
    count, searched = distances.queries, distances.gallery
    identities = _numbers(query_identities, "query_identities", count)
    sought = _Sought(
        _numbers(gallery_identities, "gallery_identities", searched),
        None if gallery_cameras is None else _numbers(gallery_cameras, "gallery_cameras", searched),
    )
    if (query_cameras is None) != (gallery_cameras is None):
        raise UserError("cameras: only one of queries and gallery has any; expected both or none.")
    cameras = None if query_cameras is None else _numbers(query_cameras, "query_cameras", count)
    found = RetrievalResult(
        first=np.zeros(count, np.int64),
        precision=np.full(count, np.nan),
        official_precision=np.full(count, np.nan),
        inverse_penalty=np.full(count, np.nan),
        found=np.zeros(count, np.int64),
    )
    for start in range(0, count, _CHUNK):
        rows = distances.chunk(start, min(start + _CHUNK, count))
        for query, row in enumerate(rows, start):
            camera = None if cameras is None else cameras[query]
            hits, left_out = sought.of(identities[query], camera)
            if len(hits):
                before = _before(distances, query, row, hits, left_out, ties)
                _write(found, query, before + np.arange(1, len(hits) + 1))
    if not found.counted:
        raise UserError(
            "of no query is anything to be found: no image of the gallery has its identity"
            + (" and another camera." if cameras is not None else ".")
        )
    return found


class _Sought:
    """Which images of a gallery are to be found."""

    def __init__(self, identities: np.ndarray, cameras: np.ndarray | None) -> None:
        self._order = np.argsort(identities, kind="stable")
        self._sorted, self._cameras = identities[self._order], cameras
        self._junk = np.flatnonzero(identities == JUNK)

    def of(self, identity: int, camera: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Those of a query's, and those that are neither hits nor misses.

        Args:
            identity: The query's.
            camera: The query's.
        """
        if identity == JUNK:
            return self._order[:0], self._junk
        start, stop = np.searchsorted(self._sorted, [identity, identity + 1])
        own = self._order[start:stop]
        if camera is None or self._cameras is None:
            return own, self._junk
        same = self._cameras[own] == camera
        return own[~same], np.concatenate([own[same], self._junk])


def _before(
    distances: Distances,
    query: int,
    row: np.ndarray,
    hits: np.ndarray,
    left_out: np.ndarray,
    ties: Ties,
) -> np.ndarray:
    """How many others come before each of the images that are to be found, ascending."""
    error, near = distances.error(query), row[hits]
    row[hits], row[left_out] = np.inf, np.inf
    others = np.flatnonzero(row <= near.max() + error)
    values = row[others]
    low, high = near - error, near + error
    ascending = np.sort(values)
    before = np.searchsorted(ascending, low, "left")
    unsure = np.flatnonzero(np.searchsorted(ascending, high, "right") > before)
    at_once = max(_AT_ONCE // len(values), 1) if len(unsure) else 1
    for start in range(0, len(unsure), at_once):
        part = unsure[start : start + at_once]
        inside = (values >= low[part, None]) & (values <= high[part, None])
        which, place = np.divmod(np.flatnonzero(inside), len(values))  # nonzero is slow in 2-D
        before[part] += _measured(distances, query, hits[part], which, others[place], ties)
    return np.sort(before)


def _measured(
    distances: Distances,
    query: int,
    hits: np.ndarray,
    which: np.ndarray,
    rivals: np.ndarray,
    ties: Ties,
) -> np.ndarray:
    """How many rivals come before each hit, of those that rounding cannot tell from it.

    Args:
        distances: Of all.
        query: Whose.
        hits: Images.
        which: Places of hits, `(n,)`.
        rivals: A rival of each of these.
        ties: See `evaluate`.
    """
    known, place = np.unique(np.concatenate([hits, rivals]), return_inverse=True)
    exact = distances.exact(query, known)[place]
    own, theirs = exact[: len(hits)][which], exact[len(hits) :]
    ahead = theirs < own
    if ties == "pessimistic":
        ahead |= theirs == own
    elif ties == "stable":
        ahead |= (theirs == own) & (rivals < hits[which])
    return np.bincount(which[ahead], minlength=len(hits))


def _write(found: RetrievalResult, query: int, ranks: np.ndarray) -> None:
    """Note the figures of a query, from the ranks of all that is to be found, ascending."""
    i = np.arange(1, len(ranks) + 1)
    precision = i / ranks
    before = np.divide(i - 1, ranks - 1, out=np.ones(len(ranks)), where=ranks > 1)
    found.first[query], found.found[query] = ranks[0], len(ranks)
    found.precision[query] = precision.mean()
    found.official_precision[query] = (precision + before).mean() / 2
    found.inverse_penalty[query] = len(ranks) / ranks[-1]


def _numbers(values: np.ndarray, name: str, count: int) -> np.ndarray:
    found = np.asarray(values)
    if found.shape != (count,) or found.dtype.kind not in "iu":
        raise UserError(
            f"{name}: {found.dtype} of shape {found.shape}; expected integers of shape ({count},)."
        )
    return found.astype(np.int64)
