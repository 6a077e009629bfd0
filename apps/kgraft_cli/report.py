"""`kgraft report`: one page about runs."""

import click

from kgraft_cli.parameters import PLACE, RECORDS_ONLY, THRESHOLD


@click.command("report")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option(
    "-o",
    "--out",
    type=PLACE,
    default="report.html",
    show_default=True,
    metavar="FILE",
    help="Where it goes; a page of this name is replaced.",
)
@THRESHOLD
@RECORDS_ONLY
def command(runs: tuple[str, ...], out: str, threshold: float, records_only: bool) -> None:
    """Write one page about RUN..., directories of runs or of comparisons.

    The page needs nothing beside itself and asks for nothing on the network: send it, or open it
    in ten years. Of runs: what each one is and what came out, the settings that differ, curves to
    hover over and zoom into, coefficients and information of every layer over epochs, invalid
    filters, settings, environment. Of a comparison: its lines with their intervals, its methods
    over epochs. Runs need not be finished.
    """
    from pathlib import Path

    from kgraft.files import check_place, write_text
    from kgraft.runs.report import report
    from kgraft_cli.messages import quiet_tensorflow

    quiet_tensorflow()
    place = Path(out)
    check_place(place)
    page = report([Path(run) for run in runs], threshold=threshold, weights=not records_only)
    write_text(place, page)
    click.echo(f"{place}: {len(page.encode()) / 1e6:.1f} MB")
