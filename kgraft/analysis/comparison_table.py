"""Runs of several methods and seeds -> one line a method, and the same at equal compute."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kgraft.analysis.statistics import Difference, Spread, paired_difference

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
        against: by entry, the baseline first: the difference to it, seed by seed; None for itself.
    """

    name: str
    networks: int
    trainings: float
    given_teachers: int
    last: Spread
    best: Spread | None
    others: tuple[Spread, Spread, Spread]
    against: dict[str, Difference | None]

    def cells(self) -> list[str]:
        """The line as text, in the order of `header`."""
        return [
            self.name,
            str(self.networks),
            self._cost(),
            str(self.last.count),
            percent(self.last),
            *("" if own is None else points(own) for own in self.against.values()),
            "" if self.best is None else percent(self.best),
            *map(percent, self.others),
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
            "against": {
                name: None if own is None else {"mean": own.mean, "ci95": [own.low, own.high]}
                for name, own in self.against.items()
            },
        }


def lines(rows: Sequence[dict[str, Any]], references: Sequence[str]) -> list[Line]:
    """One line an entry, in the order of the rows.

    Args:
        rows: one an entry and seed, with `entry`, `seed`, `networks`, `trainings`,
            `given_teachers`, `last`, `best`, `mean_peer`, `uniform_soup`, `ensemble`.
        references: the entries that the others are compared with, each on the seeds that both
            have; the baseline first.
    """
    accuracies: dict[str, dict[int, float]] = {}
    for row in rows:
        accuracies.setdefault(row["entry"], {})[row["seed"]] = row["last"]
    found = []
    for name, mine in accuracies.items():
        own = [row for row in rows if row["entry"] == name]
        bests = [row["best"] for row in own if row["best"] is not None]
        mean_peer, soup, ensemble = (Spread.of([row[key] for row in own]) for key in _NEXT)
        found.append(
            Line(
                name=name,
                networks=own[0]["networks"],
                trainings=own[0]["trainings"],
                given_teachers=own[0]["given_teachers"],
                last=Spread.of(list(mine.values())),
                best=Spread.of(bests) if bests else None,
                others=(mean_peer, soup, ensemble),
                against={
                    other: None if other == name else _against(mine, accuracies.get(other, {}))
                    for other in references
                },
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


def header(references: Sequence[str], selected_on: str) -> list[str]:
    """The columns' names.

    Args:
        references: see `lines`.
        selected_on: `"validation"` or `"test"`.
    """
    return [
        *("method", "networks", "trainings", "seeds", "last epoch"),
        *(f"against {name} (95 % CI)" for name in references),
        *(f"best epoch on {selected_on}", "mean of the peers", "uniform soup", "ensemble"),
    ]


def notes(found: Sequence[Line], references: Sequence[str]) -> list[str]:
    """What has to be said once beside the lines: what a cost is, and how many intervals there are.

    Args:
        found: what `lines` gave.
        references: see `lines`.
    """
    baseline = references[0]
    said = [
        f"trainings: FLOPs x images of all networks that were trained for a line, teachers "
        f"included, over those of one network of {baseline}"
    ]
    if any(line.given_teachers for line in found):
        said[0] += "; a given teacher's training, a file's, is not known"
    intervals = [own for line in found for own in line.against.values() if own]
    count = sum(own.low is not None for own in intervals)
    if count > 1:
        said.append(
            f"{count} comparisons with {', '.join(references)} stand beside each other, and their "
            "intervals are not corrected for that: by chance alone one in twenty leaves out zero"
        )
    return [f"{text}." for text in said]


def markdown(
    found: Sequence[Line], references: Sequence[str], selected_on: str, title: str = ""
) -> str:
    """The lines as a Markdown table, with the notes below it.

    Args:
        found: what `lines` gave.
        references: see `lines`.
        selected_on: `"validation"` or `"test"`.
        title: What stands over the column of the last epoch, where that is not the accuracy.
    """
    names = header(references, selected_on)
    if title:
        names = [f"{title}, {name}" if name == "last epoch" else name for name in names]
    rows = [names, ["---"] * len(names), *(line.cells() for line in found)]
    table = "".join(f"| {' | '.join(map(in_markdown, row))} |\n" for row in rows)
    return table + "".join(f"\n{note}\n" for note in notes(found, references))


def _against(mine: dict[int, float], theirs: dict[int, float]) -> Difference | None:
    """The difference over the seeds that both have."""
    both = [seed for seed in mine if seed in theirs]
    if not both:
        return None
    return paired_difference([mine[seed] for seed in both], [theirs[seed] for seed in both])


def in_markdown(text: str) -> str:
    """A text as it stands in a Markdown table: an entry may be called anything."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")


def percent(own: Spread) -> str:
    """A mean with its standard deviation, percent."""
    spread = "" if own.std is None else f" ± {100 * own.std:.2f}"
    return f"{100 * own.mean:.2f}{spread}"


def points(own: Difference) -> str:
    """A difference with its 95 % interval, in points."""
    if own.low is None or own.high is None:
        return f"{100 * own.mean:+.2f}"
    return f"{100 * own.mean:+.2f} ({100 * own.low:+.2f} to {100 * own.high:+.2f})"
