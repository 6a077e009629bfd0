"""A page's tables, out of what runs have written down."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kgraft.analysis.comparison_table import header, lines, notes
from kgraft.analysis.filters import THRESHOLDS, LayerFilters, invalid_ratio
from kgraft.analysis.records import Grafts, Metrics

_SHOWN = {
    "test_mAP": "mAP, %",
    "test_accuracy": "accuracy, %",
    "test_top5": "top 5, %",
    "test_rank5": "rank-5, %",
    "test_rank10": "rank-10, %",
    "test_mAP_official": "mAP by trapezoids, %",
    "test_mINP": "mINP, %",
    "validation_accuracy": "validation, %",
}
_BEST = {
    "best_test_mAP": "best epoch: mAP, %",
    "best_test_accuracy": "best epoch: accuracy, %",
    "best_validation_accuracy": "best epoch: validation, %",
    "best_epoch": "best epoch",
}


@dataclass(frozen=True)
class Table:
    """Text in rows and columns; the first cell of a row names it.

    Attributes:
        title: what it is of.
        header: the columns' names.
        rows: as many cells each.
        words: whether the cells are words, and not numbers.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: bool = False


@dataclass(frozen=True)
class Interval:
    """A difference in points, and between which numbers it lies with 95 % probability.

    Attributes:
        name: whose.
        mean: the difference.
        low: None where there are too few seeds.
        high: likewise.
    """

    name: str
    mean: float
    low: float | None
    high: float | None

    @property
    def holds_zero(self) -> bool:
        """Whether zero lies between the two."""
        return self.low is not None and self.high is not None and self.low <= 0 <= self.high

    @property
    def text(self) -> str:
        """The numbers in words."""
        if self.low is None or self.high is None:
            return f"{self.mean:+.2f}"
        return f"{self.mean:+.2f} ({self.low:+.2f} to {self.high:+.2f})"


@dataclass(frozen=True)
class Forest:
    """Differences to a reference beside each other, to be drawn.

    Attributes:
        reference: whose.
        rows: the others.
    """

    reference: str
    rows: tuple[Interval, ...]

    def at(self, value: float) -> str:
        """Where on a line of 240 units a number is, with zero and all intervals on it."""
        ends = [own for row in self.rows for own in (row.mean, row.low, row.high)]
        known = [0.0, *(own for own in ends if own is not None)]
        return f"{8 + 224 * (value - min(known)) / (max(known) - min(known) or 1.0):.1f}"


def measured(summary: Mapping[str, Any]) -> Table:
    """The networks of a finished run on the test images.

    Args:
        summary: what `summary.json` holds.
    """
    peers, teachers, together = summary["peers"], summary["teachers"], summary["ensemble"]
    rows = [(f"peer {row.get('peer', k)}", row) for k, row in enumerate(peers, start=1)]
    rows += [(f"ensemble of {len(peers)}", together)] if len(peers) > 1 else []
    rows += [(f"teacher {m}", row) for m, row in enumerate(teachers, start=1)]
    if "committee" in summary:
        rows.append((f"{len(teachers)} teachers together", summary["committee"]))
    return _figures("On the test images, after the last epoch", rows, {**_SHOWN, **_BEST})


def selected(found: Mapping[str, Any]) -> Table:
    """One network or one answer out of a run's peers.

    Args:
        found: what `select.json` holds.
    """
    rows = [(f"{name} ({_listed(own.get('peers'))})", own) for name, own in found.items()]
    table = _figures("One answer out of the peers (kgraft select)", rows, _SHOWN)
    return table


def last_epochs(runs: Mapping[str, Metrics]) -> Table:
    """What was measured in the last epoch, and the best one on held-out images.

    Args:
        runs: by phase.
    """
    names = dict.fromkeys(name for own in runs.values() for name in own.values)
    rows = []
    for phase, own in runs.items():
        best = own.values.get("val_accuracy")
        for k, number in enumerate(own.models.tolist()):
            cells = [
                _number(own.values[name][-1, k], "accuracy" in name) if name in own.values else ""
                for name in names
            ]
            highest = ""
            if best is not None and np.isfinite(best[:, k]).any():
                place = int(np.nanargmax(best[:, k]))
                highest = f"{_number(best[place, k], True)} (epoch {own.epochs[place]})"
            rows.append(
                (network(phase, number, len(own.models)), str(own.epochs[-1]), *cells, highest)
            )
    header = [f"{name}, %" if "accuracy" in name else name for name in names]
    return Table(
        "As recorded, in the last epoch",
        ("network", "epoch", *header, "highest val_accuracy, %"),
        tuple(rows),
    )


def network(phase: str, number: int, count: int) -> str:
    """What a network of a phase is called.

    Args:
        phase: `"peers"`, `"teacher 1"`, `"teachers"`.
        number: which, counted from 1.
        count: how many the phase has.
    """
    if phase in ("peers", "teachers"):
        return f"{phase[:-1]} {number}"
    return phase if count == 1 else f"{phase}, {number}"


def over_epochs(title: str, names: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> Table:
    """The numbers of a plot.

    Args:
        title: what is measured.
        names: of the lines.
        rows: the epoch, and each line's value, nan where there is none.
    """
    cells = tuple(
        (str(epoch), *("" if np.isnan(own) else f"{own:.4g}" for own in values))
        for epoch, *values in rows
    )
    return Table(title, ("epoch", *names), cells)


def last_grafting(grafts: Grafts) -> Table:
    """Every layer's coefficient and information in the last grafting.

    Args:
        grafts: with one epoch at least.
    """
    rows = []
    for g, layer in enumerate(grafts.groups):
        own = [layer.removesuffix("/kernel")]
        for k in range(len(grafts.peers)):
            own += [
                _number(grafts.coefficients[-1, k, g]),
                _number(grafts.information[-1, k, g]),
            ]
        rows.append(tuple(own))
    columns = [
        f"peer {number}: {what}"
        for number in grafts.peers.tolist()
        for what in ("coefficient", "information")
    ]
    return Table(f"In epoch {grafts.epochs[-1]}", ("layer", *columns), tuple(rows))


def filters(networks: Mapping[str, Sequence[LayerFilters]], threshold: float = 0.1) -> Table:
    """Shares of invalid filters by threshold, of those that are finite.

    Args:
        networks: by name.
        threshold: one more l1 norm below which a filter is invalid, and that of folded ones.
    """
    rows = []
    bounds = sorted({*THRESHOLDS, threshold})
    for name, layers in networks.items():
        norms = np.concatenate([own.norms for own in layers])
        folded = [own.folded for own in layers if own.folded is not None]
        behind = np.concatenate(folded) if folded else np.array([])
        behind, known = behind[np.isfinite(behind)], norms[np.isfinite(norms)]
        sick = len(norms) - len(known)
        rows.append(
            (
                name,
                f"{len(norms)} ({sick} not finite)" if sick else str(len(norms)),
                *(_number(share, True) for share in invalid_ratio(layers, bounds).tolist()),
                _number(float((behind < threshold).mean()), True) if len(behind) else "",
                _number(float(known.mean()) if len(known) else np.nan),
                _number(sum(own.entropy for own in layers)),
            )
        )
    return Table(
        "Invalid filters after the last epoch",
        (
            *("network", "filters", *(f"l1 norm below {bound:g}, %" for bound in bounds)),
            *(f"folded below {threshold:g}, %", "mean l1 norm", "entropy of all layers, nats"),
        ),
        tuple(rows),
    )


def invalid_by_layer(networks: Mapping[str, Sequence[LayerFilters]], threshold: float) -> Table:
    """How many filters of each layer are invalid.

    Args:
        networks: by name, of one architecture.
        threshold: the l1 norm below which a filter is invalid.
    """
    layers = next(iter(networks.values()))
    rows = [
        (
            layer.name.removesuffix("/kernel"),
            str(len(layer.norms)),
            *(str(int(own[g].invalid(threshold).sum())) for own in networks.values()),
        )
        for g, layer in enumerate(layers)
    ]
    return Table(
        f"Invalid filters by layer: l1 norm below {threshold:g}",
        ("layer", "filters", *networks),
        tuple(rows),
    )


def changes(runs: Mapping[str, Mapping[str, Any]], title: str) -> Table | None:
    """Settings that are not the same in all of several runs.

    Args:
        runs: by name the settings of each, by key, as text; None for one that is not given.
        title: what the table is called.

    Returns:
        None where there are none.
    """
    keys = dict.fromkeys(key for own in runs.values() for key in own)
    rows = []
    for key in keys:
        told = tuple("" if own.get(key) is None else str(own[key]) for own in runs.values())
        if len(set(told)) > 1:
            rows.append((key, *told))
    return Table(title, ("", *runs), tuple(rows), words=True) if rows else None


def flat(found: Any, key: str = "") -> dict[str, str]:
    """JSON as text by dotted keys.

    Args:
        found: an object.
        key: its place.
    """
    if isinstance(found, Mapping):
        whole: dict[str, str] = {}
        for name, own in found.items():
            whole |= flat(own, f"{key}.{name}" if key else str(name))
        return whole
    if isinstance(found, list) and not any(isinstance(own, Mapping | list) for own in found):
        return {key: ", ".join(map(str, found))}
    if isinstance(found, list):
        return flat({str(k): own for k, own in enumerate(found, start=1)}, key)
    return {key: "" if found is None else str(found)}


def compared(
    told: Mapping[str, Any], title: str, selected_on: str
) -> tuple[Table, list[Forest], list[str]]:
    """A comparison's lines, as `kgraft compare` shows them.

    Args:
        told: of `comparison.json` its `"runs"` and `"entries"`.
        title: what is compared.
        selected_on: see `header`.

    Returns:
        The table; the differences to each reference, in points; and what has to be said beside.
    """
    references = list(dict.fromkeys(name for row in told["entries"] for name in row["against"]))
    found = lines(told["runs"], references)
    table = Table(
        f"{title}, %",
        tuple(header(references, selected_on)),
        tuple(tuple(own.cells()) for own in found),
    )
    forests = [
        Forest(
            reference,
            tuple(
                Interval(own.name, 100 * gap.mean, _points(gap.low), _points(gap.high))
                for own in found
                if (gap := own.against[reference]) is not None
            ),
        )
        for reference in references
    ]
    return (
        table,
        [own for own in forests if own.rows],
        notes(found, references) if references else [],
    )


def _figures(title: str, rows: Sequence[tuple[str, Any]], shown: Mapping[str, str]) -> Table:
    """The figures that one row at least has."""
    there = {
        key: name
        for key, name in shown.items()
        if any(isinstance(row.get(key), float | int) for _, row in rows)
    }
    cells = tuple((name, *(_cell(key, row.get(key)) for key in there)) for name, row in rows)
    return Table(title, ("", *there.values()), cells)


def _cell(key: str, value: Any) -> str:
    if not isinstance(value, float | int):
        return ""
    return str(value) if key == "best_epoch" else _number(value, True)


def _points(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _number(value: float, percent: bool = False) -> str:
    """A number as text; nan is said, since something went wrong."""
    if not np.isfinite(value):
        return str(float(value))
    return f"{100 * value:.2f}" if percent else f"{value:.4f}"


def _listed(peers: Any) -> str:
    if not isinstance(peers, list) or not peers:
        return "peers"
    word = "peer" if len(peers) == 1 else "peers"
    return f"{word} {', '.join(map(str, peers))}"
