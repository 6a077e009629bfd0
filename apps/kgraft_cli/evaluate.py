"""`kgraft evaluate`: test a finished run's peers again."""

import click

from kgraft_cli.parameters import HERE, PLACE, TRUST


@click.command("evaluate")
@click.argument("run", type=PLACE)
@click.option("--peer", type=int, metavar="K", help="Only this peer, counted from 1.")
@click.option("--ensemble", "only_ensemble", is_flag=True, help="Only all peers together.")
@click.option("--data-dir", type=PLACE, metavar="DIR", help="Where prepared data sets are.")
@HERE
@TRUST
def command(
    run: str,
    peer: int | None,
    only_ensemble: bool,
    data_dir: str | None,
    here: bool,
    trust: bool,
) -> None:
    """Accuracy of the peers of RUN, a run's directory, and of their ensemble on the test images."""
    from pathlib import Path

    from kgraft.errors import UserError
    from kgraft.runs.evaluation import evaluate_run

    if peer is not None and only_ensemble:
        raise UserError("--peer and --ensemble: one or the other.")
    scores = evaluate_run(Path(run), peer=peer, data_dir=data_dir, trusted=here or trust)
    for name, score in scores.items():
        if not only_ensemble or name.startswith("ensemble"):
            click.echo(f"{name}: {score:.2%}")
