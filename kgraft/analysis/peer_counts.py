"""Runs that are alike but for their number of peers and their seed -> a line of points."""

from collections.abc import Iterable
from dataclasses import dataclass

from kgraft.analysis.statistics import Spread

WEIGHTS, RECORDS = "weights", "last grafting"


@dataclass(frozen=True)
class Outcome:
    """What one run came to.

    Attributes:
        line: the method, and what else sets it apart.
        count: of the peers, K.
        seed: the run's.
        best: of the peer that validation prefers, on the test images, 0..1.
        mean_peer: mean of the peers' own, 0..1.
        ensemble: of all peers together, 0..1.
        entropy: of all layers of a network, mean over the peers, nats; None where it is not known.
        source: where the entropy comes from: `WEIGHTS` after the last epoch, or `RECORDS`, before
            the last grafting; `""` without one.
        method: what the run did; of one network that begins another method's line its own.
    """

    line: str
    count: int
    seed: int
    best: float
    mean_peer: float
    ensemble: float
    entropy: float | None = None
    source: str = ""
    method: str = ""


@dataclass(frozen=True)
class Point:
    """Runs of one line with as many peers, over their seeds.

    Attributes:
        line: see `Outcome`.
        count: see `Outcome`.
        best: see `Outcome`.
        mean_peer: see `Outcome`.
        ensemble: see `Outcome`.
        entropy: over the seeds of which it is known from the same source; None for none.
        source: see `Outcome`; where some seeds have weights, and others records alone, the weights.
        method: see `Outcome`.
    """

    line: str
    count: int
    best: Spread
    mean_peer: Spread
    ensemble: Spread
    entropy: Spread | None
    source: str
    method: str = ""


def points(outcomes: Iterable[Outcome]) -> tuple[Point, ...]:
    """Means over seeds, of lines that have more than one number of peers.

    Args:
        outcomes: of runs; of two with the same line, number of peers and seed the first counts.

    Returns:
        Line by line in their order, each by rising number of peers.

    Example:
        >>> runs = [Outcome("graft", k, s, k / 10 + s / 100, 0, 0) for k in (2, 1) for s in (0, 1)]
        >>> [(point.count, round(point.best.mean, 3)) for point in points(runs)]
        [(1, 0.105), (2, 0.205)]
    """
    lines: dict[str, dict[int, dict[int, Outcome]]] = {}
    for own in outcomes:
        lines.setdefault(own.line, {}).setdefault(own.count, {}).setdefault(own.seed, own)
    return tuple(
        _point([*counts[count].values()])
        for counts in lines.values()
        if len(counts) > 1
        for count in sorted(counts)
    )


def _point(seeds: list[Outcome]) -> Point:
    sources = {own.source for own in seeds}
    source = next((own for own in (WEIGHTS, RECORDS) if own in sources), "")
    entropies = [own.entropy for own in seeds if own.entropy is not None and own.source == source]
    return Point(
        line=seeds[0].line,
        count=seeds[0].count,
        best=Spread.of([own.best for own in seeds]),
        mean_peer=Spread.of([own.mean_peer for own in seeds]),
        ensemble=Spread.of([own.ensemble for own in seeds]),
        entropy=Spread.of(entropies) if entropies else None,
        source=source,
        method=seeds[0].method,
    )
