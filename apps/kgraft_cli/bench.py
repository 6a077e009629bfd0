"""`kgraft bench`: kgraft against Keras, a hand-written PyTorch loop, and K processes."""

import itertools
from typing import Any

import click

from kgraft_cli.parameters import DATA_DIR, PLACE


@click.command("bench")
@click.argument(
    "what",
    type=click.Choice(
        ["speed", "graft", "methods", "checkpoint", "ring", "profile", "photographs"]
    ),
    default="speed",
)
@click.option("--model", "models", default="resnet20", metavar="NAME,...", show_default=True)
@click.option("--peers", default="4", metavar="K,...", show_default=True)
@click.option("--batch-size", "batch_sizes", default="128", metavar="N,...", show_default=True)
@click.option("--precision", default="float32", metavar="NAME,...", show_default=True)
@click.option("--dataset", default="digits", metavar="NAME", show_default=True)
@DATA_DIR
@click.option("--size", default=224, metavar="N", show_default=True, help="Of photographs.")
@click.option("--contender", "chosen", multiple=True, metavar="NAME", help="All by default.")
@click.option("--steps", default=4, metavar="N", show_default=True, help="Steps a round.")
@click.option("--repeats", default=5, metavar="N", show_default=True, help="Rounds.")
@click.option("--together", is_flag=True, help="Start all at once: start-up is not measured.")
@click.option("--json", "file", type=PLACE, metavar="FILE", help="Also write the numbers there.")
def command(
    what: str,
    models: str,
    peers: str,
    batch_sizes: str,
    precision: str,
    dataset: str,
    data_dir: str | None,
    size: int,
    chosen: tuple[str, ...],
    steps: int,
    repeats: int,
    together: bool,
    file: str | None,
) -> None:
    """Measure speed (against other ways to train K peers), the grafting alone, or all methods.

    checkpoint shows what the saving of an epoch costs beside it.

    ring holds two processes with a thread each against one with two, over epochs of --steps.

    photographs reads a folder of them (--dataset DIR, --size N) for K peers, and trains nothing.

    methods are the contenders of methods, each beside the baseline.

    profile shows what a step of one contender, kgraft by default, spends its time on (torch).

    Every contender of speed works in a process of its own; they take turns, and ratios are formed
    within a round. Lists of models, K and batch sizes give one comparison for each combination.
    """
    import json
    from pathlib import Path

    from rich.console import Console

    import kgraft  # isort: skip  # chooses the backend
    import keras

    from kgraft.engines import precision as precisions
    from kgraft.errors import UserError, suggest
    from kgraft.files import check_place, write_text
    from kgraft_cli.benchmarks import contenders
    from kgraft_cli.benchmarks.tables import table
    from kgraft_cli.benchmarks.tasks import Task

    assert kgraft.__name__
    for name, value in (("--steps", steps), ("--repeats", repeats)):
        if value < 1:
            raise UserError(f"{name} {value}: expected 1 or more.")
    if file is not None:
        check_place(Path(file))
    known = contenders.names(keras.config.backend())
    if what == "methods":
        from kgraft.runs.methods import METHODS

        known = list(METHODS)
    for name in chosen:
        if name not in known:
            raise UserError(f"--contender {name!r} is unknown." + suggest(name, known))
    for name in precision.split(","):
        precisions.check(name, "--precision ")
    grid = list(
        itertools.product(
            precision.split(","),
            models.split(","),
            _numbers("--batch-size", batch_sizes),
            _numbers("--peers", peers),
        )
    )
    reads = what == "photographs"
    images = 0 if reads else contenders.check(dataset, data_dir, models.split(","))
    console = Console(markup=False, emoji=False)
    if not console.is_terminal:
        console = Console(width=160, markup=False, emoji=False)
    rows: list[dict[str, Any]] = []
    groups = [
        [
            Task(name, model, count, batch_size, dataset, data_dir, steps, kind)
            for name in chosen or known
        ]
        for kind, model, batch_size, count in grid
    ]
    if len(chosen) == 1 or together:  # a sweep over one contender's work takes turns too
        groups = [[task for group in groups for task in group]]
    for tasks in groups:
        if reads:
            from kgraft_cli.benchmarks.photographs import measure_photographs

            count, batch = tasks[0].peers, tasks[0].batch_size
            options = {"size": size, "peers": count, "batch_size": batch}
            rows += measure_photographs(dataset, data_dir, **options, steps=steps, repeats=repeats)
        elif what == "methods":
            from kgraft_cli.benchmarks.methods import measure_methods

            rows += measure_methods(tasks[0], repeats, chosen)
        elif what == "profile":
            from kgraft_cli.benchmarks.profile import profile

            rows += profile(tasks[0], repeats)
        elif what == "checkpoint":
            from kgraft_cli.benchmarks.checkpoint import measure_checkpoint

            rows += [
                measure_checkpoint(task, repeats, images)
                for task in {t.peers: t for t in tasks}.values()
            ]
        elif what == "ring":
            from kgraft_cli.benchmarks.ring import measure_ring

            rows += [measure_ring(task, repeats) for task in {t.peers: t for t in tasks}.values()]
        elif what == "graft":
            from kgraft_cli.benchmarks.grafting import measure

            rows += [
                measure(task, repeats).row(task) for task in {t.peers: t for t in tasks}.values()
            ]
        else:
            from kgraft_cli.benchmarks import runner

            with console.status("") as status:
                results = runner.run(tasks, repeats, status.update, together)
            rows += runner.rows(results, images)
        if file is not None:
            write_text(Path(file), "".join(json.dumps(row) + "\n" for row in rows))
    title = dataset if reads else f"{dataset}, {images} images an epoch"
    console.print(table(what, rows, f"{title}, {repeats} rounds"))


def _numbers(option: str, text: str) -> list[int]:
    from kgraft.errors import UserError

    parts = text.split(",")
    if not all(part.isascii() and part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"{option} {text}: expected whole numbers above 0, e.g. 1,4.")
    return [int(part) for part in parts]
