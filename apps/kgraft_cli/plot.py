"""`kgraft plot`: pictures of runs and comparisons."""

import click

from kgraft_cli.parameters import PLACE, RECORDS_ONLY, THRESHOLD


@click.command("plot")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("-o", "--out", type=PLACE, required=True, metavar="DIR", help="Where they go.")
@click.option(
    "--format", "kind", type=click.Choice(["png", "svg", "pdf"]), default="png", show_default=True
)
@THRESHOLD
@RECORDS_ONLY
def command(
    runs: tuple[str, ...], out: str, kind: str, threshold: float, records_only: bool
) -> None:
    """Draw RUN..., directories of runs or of a comparison, into DIR.

    Of runs: accuracies and losses over epochs, beside each other; of each one that was grafted, the
    coefficients and entropies of its layers over epochs and on the curve of eq. 7; from the peers'
    weights, a map of their filters and invalid shares by threshold, those of several runs' best
    peers beside each other. Of a comparison: its entries over epochs with their seeds, and the
    differences with their intervals. Of runs that differ in their number of peers: accuracy and
    entropy against it. Runs need not be finished for what their records give.
    """
    from pathlib import Path

    from kgraft.runs.pictures import draw
    from kgraft_cli.messages import quiet_tensorflow

    quiet_tensorflow()
    drawn = draw(
        [Path(run) for run in runs],
        Path(out),
        kind=kind,
        threshold=threshold,
        weights=not records_only,
    )
    for file in drawn:
        click.echo(str(file))
