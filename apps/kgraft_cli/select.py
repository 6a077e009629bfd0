"""`kgraft select`: one network out of a finished run's peers."""

import click


@click.command("select")
@click.argument("run")
@click.option("--data-dir", metavar="DIR", help="Where prepared data sets are.")
def command(run: str, data_dir: str | None) -> None:
    """Best peer, uniform and greedy soup, and ensemble of RUN, a run's directory.

    Soups average the peers' weights and estimate their batch statistics anew; they are saved in the
    run's directory. Peers are chosen on the validation images, everything is tested on the same
    test images.
    """
    from pathlib import Path

    from rich.console import Console
    from rich.table import Table

    from kgraft.runs.selection import select

    found = select(Path(run), data_dir=data_dir)
    table = Table(title=run, title_justify="left")
    table.add_column("what")
    for name in ("networks", "validation", "test"):
        table.add_column(name, justify="right")
    table.add_column("peers")
    for name, row in found.items():
        table.add_row(
            name,
            str(row["networks"]),
            "-" if row["validation_accuracy"] is None else f"{row['validation_accuracy']:.2%}",
            f"{row['test_accuracy']:.2%}",
            " ".join(map(str, row["peers"])),
        )
    console = Console(markup=False, emoji=False)
    console.print(table)
    console.print(f"soups and select.json are in {run}", highlight=False, soft_wrap=True)
