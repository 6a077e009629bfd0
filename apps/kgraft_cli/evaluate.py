"""`kgraft evaluate`: test a finished run's peers again."""

from typing import Any

import click

from kgraft_cli.parameters import DATA_DIR, HERE, PLACE, TRUST


@click.command("evaluate")
@click.argument("run", type=PLACE)
@click.option("--peer", type=int, metavar="K", help="Only this peer, counted from 1.")
@click.option("--ensemble", "only_ensemble", is_flag=True, help="Only all peers together.")
@DATA_DIR
@click.option(
    "--metric", type=click.Choice(["cosine", "euclidean"]), help="How features are compared."
)
@click.option("--flip/--no-flip", default=None, help="With the features of mirror images too.")
@click.option("--rerank/--no-rerank", default=None, help="After k-reciprocal re-ranking.")
@click.option(
    "--worst",
    type=PLACE,
    metavar="FILE",
    help="Also a picture of the ten queries that fare worst; of --peer K, or all peers together.",
)
@HERE
@TRUST
def command(
    run: str,
    peer: int | None,
    only_ensemble: bool,
    data_dir: str | None,
    metric: str | None,
    flip: bool | None,
    rerank: bool | None,
    worst: str | None,
    here: bool,
    trust: bool,
) -> None:
    """Accuracy of the peers of RUN, a run's directory, and of their ensemble on the test images.

    Where these are searched, and not classified: CMC, mAP and mINP, as the run compares features
    unless --metric, --flip or --rerank say otherwise. --worst FILE draws a row a query, with its
    first ten results, those of its identity framed.
    """
    from pathlib import Path

    from kgraft.errors import UserError
    from kgraft.runs.evaluation import evaluate_run, worst_queries

    if peer is not None and only_ensemble:
        raise UserError("--peer and --ensemble: one or the other.")
    given = {"metric": metric, "flip": flip, "rerank": rerank}
    search = {key: value for key, value in given.items() if value is not None}
    how: dict[str, Any] = {
        "peer": peer,
        "data_dir": data_dir,
        "trusted": here or trust,
        "search": search,
    }
    if worst is not None:
        from kgraft.files import check_place, whole

        check_place(Path(worst))
        if Path(worst).suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
            raise UserError(f"--worst {worst}: expected a picture's name, .png, .jpg or .webp.")
        picture, scores = worst_queries(Path(run), **how)
        with whole(Path(worst)) as file:
            picture.save(file)
    else:
        scores = evaluate_run(Path(run), **how)
    for name, score in scores.items():
        if not only_ensemble or name.startswith("ensemble"):
            told = name.replace("mAP_official", "mAP by trapezoids")
            click.echo(f"{told}: {score:.2%}")
    if worst is not None:
        click.echo(f"the queries that fare worst are in {worst}")
