"""Runs of a paper's table -> one line an entry, beside what was published of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kgraft.analysis.comparison_table import in_markdown, percent, points
from kgraft.analysis.statistics import Difference, Spread, paired_difference

Row = Mapping[str, Any]
_NOT_RUN = "not run"
_NORMS = ("valid", "invalid")


@dataclass(frozen=True)
class Wanted:
    """An entry that a table has, trained or not.

    Attributes:
        images: the set.
        network: the paper's network.
        model: the one that is trained.
        entry: its name.
        part: the part of the table, whose entries share a schedule.
        baseline: the entry of the same part that gains are on.
        published: what was published: `accuracy`, percent, and figures by threshold.
        published_baseline: accuracy of the entry that published gains are on, percent; None for
            that entry itself, or where it is not known.
        seeds: how many are wanted.
    """

    images: str
    network: str
    model: str
    entry: str
    part: str
    baseline: str
    published: Mapping[str, Any]
    published_baseline: float | None
    seeds: int


@dataclass(frozen=True)
class PaperLine:
    """One entry over its seeds; accuracies are shares of the test images.

    Attributes:
        wanted: which.
        trainings: what it cost, in trainings of one network; None where it was not run.
        last: accuracy after the last epoch; None where it was not run.
        gain: on the baseline of the same schedule, seed by seed; None for itself.
    """

    wanted: Wanted
    trainings: float | None
    last: Spread | None
    gain: Difference | None

    @property
    def published_gain(self) -> float | None:
        """In points, on the published baseline."""
        own, base = self.wanted.published.get("accuracy"), self.wanted.published_baseline
        return None if own is None or base is None else float(own - base)


def lines(wanted: Sequence[Wanted], rows: Sequence[Row]) -> list[PaperLine]:
    """One line an entry.

    Args:
        wanted: the entries, in their order.
        rows: one a run, with `set`, `network`, `part`, `entry`, `seed`, `last` and `trainings`.
    """
    found = []
    for own in wanted:
        mine = _by_seed(rows, own, own.entry)
        theirs = _by_seed(rows, own, own.baseline)
        both = [seed for seed in mine if seed in theirs]
        gain = None
        if both and own.entry != own.baseline:
            gain = paired_difference(
                [mine[seed]["last"] for seed in both], [theirs[seed]["last"] for seed in both]
            )
        found.append(
            PaperLine(
                own,
                next((row["trainings"] for row in mine.values()), None),
                Spread.of([row["last"] for row in mine.values()]) if mine else None,
                gain,
            )
        )
    return found


ACCURACY = (
    *("network", "trained", "method", "trainings", "seeds", "ours, %", "gain (95 % CI)"),
    *("published", "published gain", "gain less published"),
)


def accuracy_cells(line: PaperLine, *, same: bool) -> list[str]:
    """An accuracy line as text, in the order of `ACCURACY`.

    Args:
        line: of `lines`.
        same: whether ours was trained as the published one was: only then it has what lies between
            the two, beside ours.
    """
    own, ours = line.wanted, line.last
    published = own.published.get("accuracy")
    gain, theirs = line.gain, line.published_gain
    apart = None if gain is None or theirs is None else 100 * gain.mean - theirs
    told = _NOT_RUN if ours is None else percent(ours)
    if same and ours is not None and published is not None:
        told += f" ({100 * ours.mean - published:+.2f})"
    return [
        own.network,
        own.model,
        own.entry,
        "" if line.trainings is None else f"{round(line.trainings, 2):g}",
        "" if ours is None else _of(ours.count, own.seeds),
        told,
        "" if gain is None else points(gain),
        "" if published is None else f"{published:.2f}",
        "" if theirs is None else f"{theirs:+.2f}",
        "" if apart is None else f"{apart:+.2f}",
    ]


def filter_columns(show: str, thresholds: Sequence[str]) -> list[str]:
    """The columns of a table on filters.

    Args:
        show: `"invalid"`, `"norms"` or `"entropy"`.
        thresholds: of the l1 norm, as text.
    """
    first = ["network", "trained", "method", "seeds"]
    if show == "entropy":
        return [*first, "entropy in all, nats"]
    if show == "invalid":
        told = [f"invalid at {bound}, %" for bound in thresholds]
    else:
        told = [f"mean l1 norm of {word} at {bound}" for bound in thresholds for word in _NORMS]
    return [*first, *(word for own in told for word in (own, f"published: {own}"))]


def filter_cells(
    show: str, wanted: Wanted, rows: Sequence[Row], thresholds: Sequence[str]
) -> list[str]:
    """An entry's filters as text, in the order of `filter_columns`.

    Args:
        show: see `filter_columns`.
        wanted: the entry.
        rows: of all runs; those of the entry have `filters`, see `kgraft.runs.tables`.
        thresholds: see `filter_columns`.
    """
    own = [row["filters"] for row in _by_seed(rows, wanted, wanted.entry).values()]
    first = [
        wanted.network,
        wanted.model,
        wanted.entry,
        _of(len(own), wanted.seeds) if own else _NOT_RUN,
    ]
    if show == "entropy":
        return [*first, _figure([row["entropy"] for row in own], 1)]
    cells = []
    for bound in thresholds:
        published = wanted.published.get(bound)
        if show == "invalid":
            cells += [
                _figure([row["invalid"][bound] for row in own], 2, 100),
                "" if published is None else f"{100 * published[0] / published[1]:.2f}",
            ]
            continue
        for place, word in enumerate(_NORMS):
            cells += [
                _figure([row["norms"][bound][word] for row in own], 3),
                "" if published is None else f"{published[place]:.3f}",
            ]
    return [*first, *cells]


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells as a Markdown table, without the columns that nothing stands in."""
    kept = [k for k in range(len(columns)) if k < 1 or any(row[k] for row in rows)]
    told = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(in_markdown(row[k]) for k in kept)} |\n" for row in told)


def by_network(
    found: Sequence[PaperLine], cell: Callable[[PaperLine], str]
) -> tuple[list[str], list[list[str]]]:
    """Lines as a small table: a row an entry, a column a network.

    Args:
        found: of one set.
        cell: what stands in it.
    """
    networks = list(dict.fromkeys(line.wanted.network for line in found))
    entries = list(dict.fromkeys(line.wanted.entry for line in found))
    cells = {(line.wanted.entry, line.wanted.network): cell(line) for line in found}
    return ["", *networks], [
        [entry, *(cells.get((entry, network), "") for network in networks)] for entry in entries
    ]


def _of(count: int, wanted: int) -> str:
    """How many seeds there are, and of how many where some are missing."""
    return str(count) if count >= wanted else f"{count} of {wanted}"


def _by_seed(rows: Sequence[Row], own: Wanted, entry: str) -> dict[int, Row]:
    place = (own.images, own.network, own.part, entry)
    return {
        row["seed"]: row
        for row in rows
        if (row["set"], row["network"], row["part"], row["entry"]) == place
    }


def _figure(values: Sequence[float | None], digits: int, scale: float = 1.0) -> str:
    """The mean and deviation of what is known."""
    known = [scale * value for value in values if value is not None]
    if not known:
        return ""
    own = Spread.of(known)
    spread = "" if own.std is None else f" ± {own.std:.{digits}f}"
    return f"{own.mean:.{digits}f}{spread}"
