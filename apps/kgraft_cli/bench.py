"""`kgraft bench`: what a grafting costs beside the training step."""

import click


@click.command("bench")
@click.option("--model", default="mobilenet_v2", metavar="NAME", show_default=True)
@click.option("--peers", default=4, metavar="K", show_default=True)
@click.option("--batch-size", default=128, metavar="N", show_default=True)
@click.option("--dataset", default="digits", metavar="NAME", show_default=True)
@click.option("--data-dir", metavar="DIR", help="Where prepared data sets are.")
@click.option("--repeats", default=5, metavar="N", show_default=True)
def command(
    model: str, peers: int, batch_size: int, dataset: str, data_dir: str | None, repeats: int
) -> None:
    """Time one grafting of K peers against one training step of the same peers."""
    from kgraft.errors import UserError
    from kgraft.runs.assembly import assemble
    from kgraft.runs.bench import graft_cost
    from kgraft.runs.config import Config

    if repeats < 1:
        raise UserError(f"--repeats {repeats}: expected 1 or more.")
    settings = {
        "model.name": model,
        "peers.count": peers,
        "run.batch_size": batch_size,
        "data.name": dataset,
        "data.limit_train": 2 * batch_size,
        "teachers.count": 0,
    }
    if data_dir is not None:
        settings["data.directory"] = data_dir
    config = Config()
    for key, value in settings.items():
        config = config.changed(key, value, "bench")
    cost = graft_cost(assemble(config), repeats=repeats)
    click.echo(
        f"{peers} x {model}, {dataset}, batch {batch_size}, median of {repeats}: "
        f"step {cost.step_seconds * 1e3:.0f} ms, grafting {cost.graft_seconds * 1e3:.0f} ms, "
        f"grafting/step {cost.share:.2%} ({min(cost.shares):.2%} to {max(cost.shares):.2%})"
    )
