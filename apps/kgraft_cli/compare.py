"""`kgraft compare`: methods x seeds under one schedule, one split and one budget."""

from typing import TYPE_CHECKING

import click

from kgraft_cli.parameters import DATA_DIR, HERE, JOBS, PLACE
from kgraft_cli.shipped import path_of

if TYPE_CHECKING:
    from kgraft.analysis.comparison_table import Line
    from kgraft_cli.figures import Figures


@click.command("compare")
@click.argument("comparison", type=PLACE)
@click.option(
    "--out", type=PLACE, metavar="DIR", help="Directory of the runs; runs/COMPARISON by default."
)
@DATA_DIR
@click.option("--seeds", metavar="N,N", help="Other seeds than the file's.")
@JOBS
@click.option("--only-read", is_flag=True, help="Train nothing; compare what is finished.")
@HERE
def command(
    comparison: str,
    out: str | None,
    data_dir: str | None,
    seeds: str | None,
    jobs: int,
    only_read: bool,
    here: bool,
) -> None:
    """Train what COMPARISON asks for, and compare it with its baseline.

    COMPARISON is a TOML file, or the name of one that comes with kgraft, see kgraft configs. Runs
    that are finished are kept, and one that was broken off goes on: interrupt it and call it again.
    The table goes to the terminal, and as comparison.md and comparison.json into the directory of
    the runs.
    """
    import dataclasses
    import json
    from pathlib import Path

    from rich.console import Console

    from kgraft.analysis.comparison_table import by_compute, header, lines, markdown, notes
    from kgraft.errors import UserError
    from kgraft.files import write_text
    from kgraft.runs.comparisons.file import in_directory, read_comparison
    from kgraft.runs.comparisons.runs import (
        figures_in,
        read_results,
        train_missing,
        train_missing_beside,
    )
    from kgraft.runs.finished import told_lost
    from kgraft_cli.many_runs import train_shown
    from kgraft_cli.messages import say

    file = path_of(comparison, "compare")
    wanted = read_comparison(file)
    if seeds is not None:
        parts = [part.strip() for part in seeds.split(",")]
        numbers = tuple(int(part) for part in parts if part.isascii() and part.isdecimal())
        if len(set(numbers)) < len(parts):
            raise UserError(f"--seeds {seeds}: expected different whole numbers, e.g. 0,1,2.")
        wanted = dataclasses.replace(wanted, seeds=numbers)
    if data_dir is not None:
        wanted = in_directory(wanted, data_dir)
    path = Path("runs") / file.stem if out is None else Path(out)
    console = Console(markup=False, emoji=False)
    if not console.is_terminal:
        console = Console(width=200, markup=False, emoji=False)
    if not only_read:
        train_shown(
            console,
            jobs,
            lambda *told: train_missing(wanted, path, *told),
            lambda *told: train_missing_beside(wanted, path, jobs, *told),
        )
    references = (wanted.baseline, *wanted.against)
    selected_on = wanted.entry(wanted.baseline).config.run.select
    columns = header(references, selected_on)
    text, content = [], {}
    figures = figures_in(wanted, path)
    for figure, title in figures.items():
        rows = read_results(wanted, path, figure)
        found = lines(rows, references)
        console.print(_table(f"{title}, %", columns, [found]))
        console.print(_table("by compute", columns, by_compute(found)))
        text.append(markdown(found, references, selected_on, title * (len(figures) > 1)))
        content[figure] = {"runs": rows, "entries": [line.to_json() for line in found]}
    for note in notes(found, references):
        say(console, note)
    for row in rows:
        for sentence in told_lost(row):
            say(console, f"{row['entry']}, seed {row['seed']}: {sentence}")
    write_text(path / "comparison.md", "\n".join(text))
    told = content.pop("accuracy")  # where others stand beside it, rank-1
    write_text(path / "comparison.json", json.dumps({**told, **content}, indent=2) + "\n")
    console.print(f"comparison.md and comparison.json are in {path}", highlight=False)


def _table(title: str, columns: list[str], sections: list[list["Line"]]) -> "Figures":
    from kgraft_cli.figures import Figures

    table = Figures(title, columns)
    for section in sections:
        for line in section:
            table.add_row(*line.cells())
        table.add_section()
    return table
