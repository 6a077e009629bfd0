"""`kgraft reproduce`: a table of the papers, trained anew."""

import difflib
import tomllib
from typing import TYPE_CHECKING, Any

import click

from kgraft_cli.parameters import DATA_DIR, HERE, JOBS, PLACE
from kgraft_cli.shipped import RunFile, path_of, run_files

if TYPE_CHECKING:
    from rich.console import Console

    from kgraft.runs.tables.file import PaperTable

_TABLES = "tables/"


@click.command("reproduce")
@click.argument("table", required=False, type=PLACE)
@click.option(
    "--budget",
    type=click.Choice(["full", "small"]),
    default="small",
    show_default=True,
    help="As in the paper (GPUs, days), or a stand-in for two CPU cores.",
)
@click.option(
    "--seeds", type=click.IntRange(1, 1000), metavar="N", help="How many; the table's by default."
)
@click.option(
    "--only",
    multiple=True,
    metavar="NAME",
    help="Only this image set or network of the table, e.g. CIFAR-100; may be repeated.",
)
@click.option(
    "--out",
    type=PLACE,
    default="runs/reproduce",
    show_default=True,
    metavar="DIR",
    help="Directory of all tables' runs; what two of them need is trained once.",
)
@DATA_DIR
@JOBS
@click.option("--only-read", is_flag=True, help="Train nothing; read what is finished.")
@HERE
def command(
    table: str | None,
    budget: str,
    seeds: int | None,
    only: tuple[str, ...],
    out: str,
    data_dir: str | None,
    jobs: int,
    only_read: bool,
    here: bool,
) -> None:
    """Train what TABLE of the papers needs, and show it beside what was published.

    Without TABLE they are listed. TABLE is one of them, e.g. fg-table-5, or a TOML file. Runs that
    are finished are kept, and one that was broken off goes on: interrupt it and call it again. What
    was asked for goes to the terminal, with every seed that there is; all that was ever trained for
    the table goes, with its pictures, as TABLE.BUDGET.md and TABLE.BUDGET.results.jsonl, a line a
    run, into DIR. A run's line stays when its directory is removed.

    A small budget is no reproduction: fewer and smaller images, fewer epochs, smaller networks. It
    says which, and compares gains, not accuracies, with the published ones.
    """
    if table is None:
        _list()
        return
    import json
    from pathlib import Path

    from rich.console import Console

    from kgraft.errors import UserError
    from kgraft.files import storing, write_text
    from kgraft.runs.tables import results
    from kgraft.runs.tables.file import read_table
    from kgraft.runs.tables.pictures import draw
    from kgraft.runs.tables.show import title, to_markdown
    from kgraft_cli.many_runs import train_shown
    from kgraft_cli.messages import say

    whole = read_table(path_of(_known(table), "reproduce"), budget).of((), seeds, data_dir)
    wanted, path = whole.of(only), Path(out)
    console = Console(markup=False, emoji=False)
    if not console.is_terminal:
        console = Console(width=200, markup=False, emoji=False)
    with storing(path):
        path.mkdir(parents=True, exist_ok=True)
    missing: dict[str, str] = {}
    if not only_read:
        there = results.ready(wanted)
        missing = there.missing
        say(console, f"{title(wanted)}")
        train_shown(
            console,
            jobs,
            lambda *told: results.train(there.table, path, *told),
            lambda *told: results.train_beside(there.table, path, jobs, *told),
        )
    kept = results.with_all_seeds(whole, path)
    name = f"{wanted.name}.{budget}"
    files = [path / f"{name}.results.jsonl", path / f"{name}.md"]
    rows = results.with_kept(results.read_rows(kept, path), kept, files[0])
    _print(console, kept.of(only), rows)
    for images, how in missing.items():
        say(console, f"not run: {images} is not prepared ({how}).")
    write_text(files[0], "".join(f"{json.dumps(row)}\n" for row in rows))
    try:
        drawn = draw(kept, path, path / name)
    except UserError as error:  # the table does without matplotlib
        drawn = []
        say(console, f"no pictures: {error}")
    links = [file.relative_to(path).as_posix() for file in drawn]
    write_text(files[1], to_markdown(kept, rows, links))
    for file in (*files, *drawn):
        console.print(str(file), highlight=False, soft_wrap=True)


def _print(console: "Console", table: "PaperTable", rows: list[dict[str, Any]]) -> None:
    from kgraft.runs.tables.show import notes, shown
    from kgraft_cli.figures import Figures
    from kgraft_cli.messages import say

    for heading, columns, sections in shown(table, rows):
        figures = Figures(heading, columns, left=("trained", "method"))
        for cells_of_network in sections:
            for cells in cells_of_network:
                figures.add_row(*cells)
            figures.add_section()
        console.print(figures)
    for note in notes(table, rows):
        say(console, note)


def _list() -> None:
    import shutil

    width = shutil.get_terminal_size().columns
    for own, others in _shipped().items():
        head = own.head()
        click.secho(", ".join([own.last, *others]), bold=True)
        for text in (head.what, head.parts.get("Cost", "")):
            click.echo(click.wrap_text(text, width, "    ", "    "))


def _known(given: str) -> str:
    """The full name of a table that comes with kgraft, whatever it is called; else as given."""
    from pathlib import Path

    if Path(given).exists():
        return given
    names = {word: own.name for own, others in _shipped().items() for word in (own.last, *others)}
    if given not in names and "/" not in given and not given.endswith(".toml"):
        close = difflib.get_close_matches(given, names, n=1)
        hint = f"Did you mean {close[0]!r}?" if close else "kgraft reproduce lists them."
        raise click.UsageError(f"no table is called {given!r}. {hint}")
    return names.get(given, given)


def _shipped() -> dict[RunFile, list[str]]:
    """The tables that come with kgraft, and what else each one is called."""
    found = {}
    for name, own in run_files().items():
        if name.startswith(_TABLES):
            head = tomllib.loads(own.path.read_text(encoding="utf-8"))["table"]
            found[own] = head.get("also", [])
    return found
