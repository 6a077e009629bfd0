"""A paper's table as text: for a terminal, and as Markdown."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from kgraft.analysis.comparison_table import in_markdown, percent, points
from kgraft.analysis.paper_table import (
    ACCURACY,
    PaperLine,
    accuracy_cells,
    by_network,
    filter_cells,
    filter_columns,
    lines,
    markdown,
)
from kgraft.runs.tables.file import THRESHOLDS, PaperTable
from kgraft.runs.tables.results import INVALID, wanted

Section = list[list[str]]
_BOUNDS = {"invalid": INVALID, "norms": THRESHOLDS, "entropy": ()}
_WHAT = {
    "accuracy": "accuracy on the test images",
    "invalid": "invalid filters",
    "norms": "mean l1 norms of filters that are valid and invalid in the baseline",
    "entropy": "entropy of the layers",
}


def title(table: PaperTable) -> str:
    """What a table is, and that a small one is none of the paper's."""
    small = "" if table.budget == "full" else "SMALL BUDGET, not the paper's experiment: "
    return f"{table.title} ({table.source}). {small}{table.about}."


def shown(
    table: PaperTable, rows: Sequence[dict[str, Any]]
) -> Iterator[tuple[str, list[str], list[Section]]]:
    """Tables, one an image set and figure: a heading, columns, and rows, a section a network.

    Args:
        table: what was wanted.
        rows: what `read_rows` gave.
    """
    own = wanted(table)
    for images in dict.fromkeys(one.images for one in own):
        here = [one for one in own if one.images == images]
        for show in table.shows:
            heading = f"{images}, {_WHAT[show]}, {table.budget} budget"
            if show == "accuracy":
                told = [
                    (line.wanted.network, accuracy_cells(line, same=table.budget == "full"))
                    for line in lines(here, rows)
                ]
                columns = list(ACCURACY)
            else:
                bounds = _BOUNDS[show]
                told = [(one.network, filter_cells(show, one, rows, bounds)) for one in here]
                columns = filter_columns(show, bounds)
            kept = [k for k in range(len(columns)) if not k or any(cells[k] for _, cells in told)]
            sections = [
                [[cells[k] for k in kept] for _, cells in group]
                for _, group in itertools.groupby(told, lambda pair: pair[0])
            ]
            yield heading, [columns[k] for k in kept], sections


def notes(table: PaperTable, rows: Sequence[dict[str, Any]]) -> list[str]:
    """What has to be said once beside a table.

    Args:
        table: what was wanted.
        rows: what `read_rows` gave.
    """
    said = [title(table)]
    if "accuracy" in table.shows:
        said.append(
            "Ours: the peer that is best on the held-out images, at the last epoch, mean and "
            "standard deviation over the seeds; a gain is on the baseline under the same schedule, "
            "seed by seed, with its 95 % interval. Published gains are on the published baseline."
        )
    if table.budget == "small":
        beside = ": compare the gains, and with care" if "accuracy" in table.shows else ""
        said.append(f"A small budget's figures say nothing of the published ones{beside}.")
    if rows and {*table.pictures} & {"thresholds", "filters", "coefficients"}:
        said.append("Pictures of filters, thresholds and coefficients are of the first seed.")
    if table.note:
        said.append(f"{table.note[0].upper()}{table.note[1:]}.")
    done = {(row["set"], row["network"], row["part"], row["entry"]) for row in rows}
    count = sum((own.images, own.network, own.part, own.entry) not in done for own in wanted(table))
    if count:
        said.append(f"{count} of {len(wanted(table))} lines were not run.")
    return said


def to_markdown(
    table: PaperTable, rows: Sequence[dict[str, Any]], pictures: Sequence[str] = ()
) -> str:
    """A table with its notes and pictures as Markdown.

    Args:
        table: what was wanted.
        rows: what `read_rows` gave.
        pictures: their files, as the text links them.
    """
    parts = [f"# {table.name}: {in_markdown(table.title)}\n"]
    for heading, columns, sections in shown(table, rows):
        parts.append(f"## {heading}\n\n{markdown(columns, list(itertools.chain(*sections)))}")
    told = [in_markdown(note) for note in notes(table, rows)]
    told += [f"![{Path(file).stem}]({quote(file)})" for file in pictures]
    return "\n".join(parts) + "".join(f"\n{text}\n" for text in told)


def gains_markdown(table: PaperTable, rows: Sequence[dict[str, Any]], images: str) -> str:
    """Gains alone, ours and the published one, a column a network.

    Args:
        table: what was wanted.
        rows: what `read_rows` gave.
        images: the set.
    """
    own = [one for one in wanted(table) if one.images == images]

    def cell(line: PaperLine) -> str:
        if line.last is None:
            return "not run"
        if line.gain is None:
            return f"{percent(line.last)} %"
        theirs = line.published_gain
        beside = "" if theirs is None else f" / {theirs:+.2f}"
        return f"{points(line.gain)}{beside}"

    columns, cells = by_network(lines(own, rows), cell)
    models = dict.fromkeys((one.network, one.model) for one in own)
    trained = [f"{network} ({model})" for network, model in models]
    return markdown([columns[0], *trained], cells)
