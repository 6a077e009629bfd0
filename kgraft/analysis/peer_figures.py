"""Pictures of what a method comes to with more peers."""

from collections.abc import Iterator, Sequence
from itertools import cycle
from math import nan
from typing import TYPE_CHECKING, Any

from kgraft.analysis.figures import COLOURS, MARKERS, beside, empty
from kgraft.analysis.peer_counts import RECORDS, Point
from kgraft.analysis.statistics import Spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_APART = 0.03


def accuracy_by_peers(points: Sequence[Point], *, what: str) -> "Figure":
    """The best peer against the number of peers, solid; all of them together, dashed and open.

    Means over seeds, with their standard deviation.

    Args:
        points: what `kgraft.analysis.peer_counts.points` gave.
        what: what their accuracy is.

    Raises:
        UserError: matplotlib is missing.
    """
    figure, axes = empty(7.2, 4.4)
    lines = _lines(points)
    shifts = _shifts(2 * len(lines))
    for (line, own), (colour, marker) in zip(lines, _looks(), strict=False):
        look = {"color": colour, "marker": marker}
        shift = next(shifts)
        counts = [point.count + shift for point in own]
        _draw(axes, counts, [p.best for p in own], 100, look, label=f"{line}: best peer")
        several = [point for point in own if point.count > 1]
        shift = next(shifts)
        _draw(
            axes,
            [point.count + shift for point in several],
            [point.ensemble for point in several],
            100,
            {**look, "ls": "--", "mfc": "white"},
            label=f"{line}: ensemble",
        )
    axes.set_ylabel(f"{what}, %")
    return _ended(figure, axes, points)


def entropy_by_peers(points: Sequence[Point]) -> "Figure":
    """Entropy of a network against the number of peers (figure 7 of Meng et al., CVPR 2020).

    Of all its layers, mean over the peers; over seeds, with their standard deviation. Open where it
    is what the last grafting measured, before it blended.

    Args:
        points: what `kgraft.analysis.peer_counts.points` gave; those without entropy are left out.

    Raises:
        UserError: matplotlib is missing.
    """
    figure, axes = empty(7.2, 4.4)
    before, lines = False, _lines(points)
    shifts = _shifts(len(lines))
    for (line, own), (colour, marker), shift in zip(lines, _looks(), shifts, strict=False):
        known = [(point, point.entropy) for point in own if point.entropy is not None]
        if not known:
            continue
        look = {"color": colour, "marker": marker}
        counts = [point.count + shift for point, _ in known]
        _draw(axes, counts, [entropy for _, entropy in known], 1, look, label=line)
        open_ones = [(p.count + shift, e.mean) for p, e in known if p.source == RECORDS]
        if open_ones:
            before = True
            axes.plot(*zip(*open_ones, strict=True), ls="", mfc="white", zorder=4, **look)
    told = "\nopen: before the last grafting" if before else ""
    axes.set_ylabel(f"entropy of all layers, nats{told}")
    return _ended(figure, axes, points)


def _lines(points: Sequence[Point]) -> list[tuple[str, list[Point]]]:
    names = dict.fromkeys(point.line for point in points)
    return [(name, [point for point in points if point.line == name]) for name in names]


def _shifts(lines: int) -> Iterator[float]:
    """How far beside its number of peers each line is drawn, so that no bar hides another."""
    return iter([_APART * (k - (lines - 1) / 2) for k in range(lines)])


def _looks() -> Any:
    return zip(cycle(COLOURS), cycle(MARKERS), strict=False)


def _draw(
    axes: Any,
    counts: Sequence[float],
    values: Sequence[Spread],
    scale: float,
    look: dict[str, Any],
    *,
    label: str,
) -> None:
    axes.errorbar(
        counts,
        [scale * own.mean for own in values],
        yerr=[scale * (nan if own.std is None else own.std) for own in values],
        capsize=3,
        label=label,
        **look,
    )


def _ended(figure: "Figure", axes: Any, points: Sequence[Point]) -> "Figure":
    axes.set_xticks(sorted({point.count for point in points}))
    axes.set_xlabel("peers (mean over seeds, with their standard deviation)")
    axes.grid(alpha=0.3)
    beside(axes)
    return figure
