"""Runs of several methods and seeds -> one line a method, and the same at equal compute."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kgraft.analysis.statistics import Difference, Spread, paired_difference

HEADER = (
    "method",
    "networks",
    "trainings",
    "seeds",
    "last epoch",
    "against {baseline} (95 % CI)",
    "best epoch on {selected_on}",
    "mean of the peers",
    "uniform soup",
    "ensemble",
)
_NEXT = ("mean_peer", "uniform_soup", "ensemble")


@dataclass(frozen=True)
class Line:
    """One entry over its seeds; accuracies are shares of the test images.

    Attributes:
        name: the entry's name.
        networks: how many networks answer a question after training.
        trainings: what it cost, in trainings of one network of the baseline's: the sum of FLOPs an
            image x images seen over all networks that were trained for it, its teachers in full.
        given_teachers: how many teachers came from files: their trainings are not counted.
        last: accuracy after the last epoch.
        best: accuracy of the best epoch on the images that select; None for soups and ensembles.
        others: mean of the peers, uniform soup and ensemble, whatever the entry's own result is.
        against: difference to the baseline, seed by seed; None for the baseline itself.
    """

    name: str
    networks: int
    trainings: float
    given_teachers: int
    last: Spread
    best: Spread | None
    others: tuple[Spread, Spread, Spread]
    against: Difference | None

    def cells(self) -> list[str]:
        """The line as text, in the order of `HEADER`."""
        return [
            self.name,
            str(self.networks),
            self._cost(),
            str(self.last.count),
            _percent(self.last),
            "" if self.against is None else _points(self.against),
            "" if self.best is None else _percent(self.best),
            *map(_percent, self.others),
        ]

    def _cost(self) -> str:
        given = f" + {self.given_teachers} given" if self.given_teachers else ""
        return f"{round(self.trainings, 2):g}{given}"

    def to_json(self) -> dict[str, Any]:
        """The line as JSON-able figures."""

        def spread(own: Spread | None) -> dict[str, Any] | None:
            return None if own is None else {"mean": own.mean, "std": own.std, "seeds": own.count}

        return {
            "entry": self.name,
            "networks": self.networks,
            "trainings": self.trainings,
            "given_teachers": self.given_teachers,
            "last": spread(self.last),
            "best": spread(self.best),
            **{name: spread(own) for name, own in zip(_NEXT, self.others, strict=True)},
            "against_baseline": None
            if self.against is None
            else {"mean": self.against.mean, "ci95": [self.against.low, self.against.high]},
        }


def lines(rows: Sequence[dict[str, Any]], baseline: str) -> list[Line]:
    """One line an entry, in the order of the rows.

    Args:
        rows: one an entry and seed, with `entry`, `seed`, `networks`, `trainings`,
            `given_teachers`, `last`, `best`, `mean_peer`, `uniform_soup`, `ensemble`.
        baseline: the entry that the others are compared with, on the seeds that both have.
    """
    reference = {row["seed"]: row["last"] for row in rows if row["entry"] == baseline}
    found = []
    for name in dict.fromkeys(row["entry"] for row in rows):
        own = [row for row in rows if row["entry"] == name]
        pairs = [(row["last"], reference[row["seed"]]) for row in own if row["seed"] in reference]
        bests = [row["best"] for row in own if row["best"] is not None]
        mean_peer, soup, ensemble = (Spread.of([row[key] for row in own]) for key in _NEXT)
        found.append(
            Line(
                name=name,
                networks=own[0]["networks"],
                trainings=own[0]["trainings"],
                given_teachers=own[0]["given_teachers"],
                last=Spread.of([row["last"] for row in own]),
                best=Spread.of(bests) if bests else None,
                others=(mean_peer, soup, ensemble),
                against=None
                if name == baseline or not pairs
                else paired_difference([mine for mine, _ in pairs], [plain for _, plain in pairs]),
            )
        )
    return found


def by_compute(found: Sequence[Line]) -> list[list[Line]]:
    """The lines of equal cost together, the cheapest first, the best of equals first.

    What given teachers have cost is not known: only lines with as many of them are equal.
    """

    def cost(line: Line) -> tuple[int, float]:
        return line.given_teachers, round(line.trainings, 6)

    ordered = sorted(found, key=lambda line: (*cost(line), -line.last.mean))
    return [list(equals) for _, equals in itertools.groupby(ordered, cost)]


def header(baseline: str, selected_on: str) -> list[str]:
    """The columns' names.

    Args:
        baseline: the baseline's name.
        selected_on: `"validation"` or `"test"`.
    """
    return [name.format(baseline=baseline, selected_on=selected_on) for name in HEADER]


def notes(found: Sequence[Line], baseline: str) -> list[str]:
    """What has to be said once beside the lines: what a cost is, and how many intervals there are.

    Args:
        found: what `lines` gave.
        baseline: the baseline's name.
    """
    said = [
        f"trainings: FLOPs x images of all networks that were trained for a line, teachers "
        f"included, over those of one network of {baseline}"
    ]
    if any(line.given_teachers for line in found):
        said[0] += "; a given teacher's training, a file's, is not known"
    intervals = [line.against for line in found if line.against and line.against.low is not None]
    count = len(intervals)
    if count > 1:
        said.append(
            f"{count} comparisons with {baseline} stand beside each other, and their intervals are "
            "not corrected for that: by chance alone one in twenty leaves out zero"
        )
    return [f"{text}." for text in said]


def markdown(found: Sequence[Line], baseline: str, selected_on: str) -> str:
    """The lines as a Markdown table, with the notes below it.

    Args:
        found: what `lines` gave.
        baseline: the baseline's name.
        selected_on: `"validation"` or `"test"`.
    """
    names = header(baseline, selected_on)
    rows = [names, ["---"] * len(names), *(line.cells() for line in found)]
    table = "".join(f"| {' | '.join(map(_cell, row))} |\n" for row in rows)
    return table + "".join(f"\n{note}\n" for note in notes(found, baseline))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")  # an entry may be called so


def _percent(own: Spread) -> str:
    spread = "" if own.std is None else f" ± {100 * own.std:.2f}"
    return f"{100 * own.mean:.2f}{spread}"


def _points(own: Difference) -> str:
    if own.low is None or own.high is None:
        return f"{100 * own.mean:+.2f}"
    return f"{100 * own.mean:+.2f} ({100 * own.low:+.2f} to {100 * own.high:+.2f})"
