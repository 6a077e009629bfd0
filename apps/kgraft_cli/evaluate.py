"""`kgraft evaluate`: test a finished run's peers again."""

import click

from kgraft_cli.parameters import HERE, PLACE, TRUST


@click.command("evaluate")
@click.argument("run", type=PLACE)
@click.option("--peer", type=int, metavar="K", help="Only this peer, counted from 1.")
@click.option("--ensemble", "only_ensemble", is_flag=True, help="Only all peers together.")
@click.option("--data-dir", type=PLACE, metavar="DIR", help="Where prepared data sets are.")
@click.option(
    "--metric", type=click.Choice(["cosine", "euclidean"]), help="How features are compared."
)
@click.option("--flip", is_flag=True, help="With the features of mirror images too.")
@click.option("--rerank", is_flag=True, help="After k-reciprocal re-ranking.")
@HERE
@TRUST
def command(
    run: str,
    peer: int | None,
    only_ensemble: bool,
    data_dir: str | None,
    metric: str | None,
    flip: bool,
    rerank: bool,
    here: bool,
    trust: bool,
) -> None:
    """Accuracy of the peers of RUN, a run's directory, and of their ensemble on the test images.

    Where these are searched, and not classified: CMC, mAP and mINP, as the run compares features
    unless --metric, --flip or --rerank say otherwise.
    """
    from pathlib import Path

    from kgraft.errors import UserError
    from kgraft.runs.evaluation import evaluate_run

    if peer is not None and only_ensemble:
        raise UserError("--peer and --ensemble: one or the other.")
    given = {"metric": metric, "flip": flip or None, "rerank": rerank or None}
    search = {key: value for key, value in given.items() if value is not None}
    scores = evaluate_run(
        Path(run), peer=peer, data_dir=data_dir, trusted=here or trust, search=search
    )
    for name, score in scores.items():
        if not only_ensemble or name.startswith("ensemble"):
            click.echo(f"{name}: {score:.2%}")
