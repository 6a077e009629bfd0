"""Single-query retrieval, a query and an image at a time: what `kgraft.retrieval` must say."""

import numpy as np


def distance(a, b, metric):
    a, b = a.astype(np.float64), b.astype(np.float64)
    if metric == "euclidean":
        return float(np.sqrt(np.sum((a - b) ** 2)))
    lengths = np.sqrt(np.sum(a * a)) * np.sqrt(np.sum(b * b))
    return 1 - (float(np.sum(a * b)) / lengths if lengths else 0.0)


def of_query(q, identity, camera, gallery, identities, cameras, metric, ties):
    """First rank, AP, AP by trapezoids, m / r_m and m; None where nothing is to be found."""
    rows = []
    for number, image in enumerate(gallery):
        own = identities[number] == identity
        same_camera = cameras is not None and cameras[number] == camera
        if identities[number] != -1 and not (own and same_camera):
            second = {"pessimistic": own, "optimistic": not own, "stable": number}[ties]
            rows.append((round(distance(q, image, metric), 12), second, number, own))
    hits = [own for *_, own in sorted(rows)]
    ranks = [rank for rank, own in enumerate(hits, 1) if own]
    if not ranks or identity == -1:
        return None
    plain = [i / r for i, r in enumerate(ranks, 1)]
    before = [(i - 1) / (r - 1) if r > 1 else 1.0 for i, r in enumerate(ranks, 1)]
    m = len(ranks)
    official = sum(plain) / m / 2 + sum(before) / m / 2
    return ranks[0], sum(plain) / m, official, m / ranks[-1], m


def reranked(q, g, k1, k2, share):
    """Zhong et al., CVPR 2017: distances `(q, g)`, by the paper's sets, with whole matrices."""
    every = np.concatenate([q, g]).astype(np.float64)
    every /= np.linalg.norm(every, axis=1)[:, None]
    n = len(every)
    square = np.array([[np.sum((a - b) ** 2) for b in every] for a in every])
    square /= square.max(axis=1)[:, None]
    order = np.array(
        [np.lexsort((np.arange(n), row, np.arange(n) != i)) for i, row in enumerate(square)]
    )

    def reciprocal(i, k):
        return {int(j) for j in order[i, : k + 1] if i in order[j, : k + 1]}

    code = np.zeros((n, n))
    for i in range(n):
        near = reciprocal(i, k1)
        wide = set(near)
        for j in near:
            theirs = reciprocal(j, round(k1 / 2))
            if len(theirs & near) > 2 / 3 * len(theirs):
                wide |= theirs
        for j in wide:
            code[i, j] = np.exp(-square[i, j])
        code[i] /= code[i].sum()
    code = np.array([code[order[i, :k2]].mean(axis=0) for i in range(n)])
    out = np.zeros((len(q), len(g)))
    for i in range(len(q)):
        for j in range(len(g)):
            both = np.minimum(code[i], code[len(q) + j]).sum()
            either = np.maximum(code[i], code[len(q) + j]).sum()
            out[i, j] = (1 - share) * (1 - both / either) + share * square[i, len(q) + j]
    return out
