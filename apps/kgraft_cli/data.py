"""`kgraft data`: which sets there are, and how one is made ready."""

import click

from kgraft_cli.main import Commands


@click.group("data", cls=Commands)
def command() -> None:
    """List data sets, or prepare one."""


@command.command("list")
@click.option("--data-dir", metavar="DIR", help="Where prepared data sets are.")
def list_sets(data_dir: str | None) -> None:
    """List kgraft's own data sets and those that TFDS has prepared."""
    from rich.console import Console
    from rich.table import Table

    from kgraft import data

    table = Table(title="data sets", title_justify="left", caption_justify="left")
    table.add_column("name")
    table.add_column("train", justify="right")
    table.add_column("test", justify="right")
    table.add_column("image")
    table.add_column("classes", justify="right")
    table.add_column("ready")
    table.add_column("licence", overflow="fold")
    for entry in data.describe(data_dir):
        table.add_row(
            entry.name,
            f"{entry.train:,}",
            f"{entry.test:,}",
            "x".join("?" if side is None else str(side) for side in entry.shape),
            str(entry.classes),
            "no" if entry.prepared is None else "yes",
            entry.licence,
        )
    console = Console(markup=False, emoji=False)
    console.print(table)
    console.print(f"prepared sets are kept in {data.data_directory(data_dir)}", highlight=False)


@command.command("prepare")
@click.argument("name")
@click.option("--archive", metavar="PATH", help="The published archive, instead of a download.")
@click.option("--data-dir", metavar="DIR", help="Where prepared data sets are kept.")
def prepare(name: str, archive: str | None, data_dir: str | None) -> None:
    """Make data set NAME ready to train on."""
    from kgraft import data

    path = data.prepare(name, archive=archive, data_dir=data_dir)
    click.echo(f"{name} is ready in {path}")
