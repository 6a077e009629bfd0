"""`kgraft data`: which sets there are, and how one is made ready."""

import click

from kgraft_cli.main import Commands
from kgraft_cli.parameters import PLACE


@click.group("data", cls=Commands)
def command() -> None:
    """List data sets, or prepare one."""


@command.command("list")
@click.option("--data-dir", type=PLACE, metavar="DIR", help="Where prepared data sets are.")
def list_sets(data_dir: str | None) -> None:
    """List kgraft's own data sets and those that TFDS has prepared."""
    from rich.console import Console

    from kgraft import data
    from kgraft_cli.figures import Figures

    table = Figures(
        "data sets",
        ("name", "train", "test", "image", "classes", "ready", "licence"),
        left=("image", "ready", "licence"),
    )
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
@click.option(
    "--archive", type=PLACE, metavar="PATH", help="The published archive, instead of a download."
)
@click.option("--data-dir", type=PLACE, metavar="DIR", help="Where prepared data sets are kept.")
def prepare(name: str, archive: str | None, data_dir: str | None) -> None:
    """Make data set NAME ready to train on."""
    from kgraft import data

    path = data.prepare(name, archive=archive, data_dir=data_dir)
    click.echo(f"{name} is ready in {path}")
