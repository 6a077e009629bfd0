"""`kgraft bench`: kgraft beside the loops that people write today, one process a contender."""

from typing import Any

import click

SUITES = ("speed", "graft", "startup", "scaling")


@click.command("bench")
@click.option("--suite", type=click.Choice(SUITES), default="speed", show_default=True)
@click.option("--model", metavar="NAME", help="Architecture; scaling takes a comma list.")
@click.option("--peers", metavar="K,...", help="Numbers of peers, e.g. 1,4.")
@click.option(
    "--batch-size", default="128", metavar="N", show_default=True, help="scaling takes a list."
)
@click.option("--dataset", default="digits", metavar="NAME", show_default=True)
@click.option("--data-dir", metavar="DIR", help="Where prepared data sets are.")
@click.option("--repeats", default=5, metavar="N", show_default=True)
@click.option("--steps", type=int, metavar="N", help="Steps in a measured block: 4; graft: 1.")
@click.option("--contender", "contenders", multiple=True, metavar="NAME", help="Only this; again.")
@click.option("--json", "file", metavar="FILE", help="Write everything that was measured.")
def command(suite: str, file: str | None, **options: Any) -> None:
    """Time kgraft beside other loops that train the same peers.

    Suite speed is whole training: images x peers a second, the grafting of every epoch included.
    Suite graft is one grafting against a loop over the layers, startup the time from nothing to the
    end of the first step, scaling kgraft alone over numbers of peers, models and batch sizes.

    Every contender is a process of its own, and one of them works at a time: a repeat is one block
    of every contender in turn, ratios are formed within a repeat. On a GPU take --steps 50.
    """
    from rich.console import Console

    from kgraft_cli.bench.plan import plan_of
    from kgraft_cli.bench.suites import run
    from kgraft_cli.bench.tables import table_of

    plan = plan_of(suite, **options)
    target = writable(file) if file is not None else None
    console = Console()
    report = run(plan, Console(stderr=True))
    console.print(table_of(report))
    for note in report["notes"]:
        console.print(note, highlight=False, soft_wrap=True)
    if target is not None:
        import json

        target.write_text(json.dumps(report, indent=1) + "\n")


def writable(file: str) -> Any:
    """The path of the JSON file, refused before an hour of measuring where it cannot be written.

    Args:
        file: what the user gave.

    Raises:
        click.UsageError: it is a directory, or lies in none.
    """
    from pathlib import Path

    path = Path(file)
    if not file or path.is_dir() or not path.parent.is_dir():
        raise click.UsageError(f"--json {file!r}: expected a file in a directory that exists.")
    return path
