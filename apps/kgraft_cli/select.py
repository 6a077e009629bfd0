"""`kgraft select`: one network out of a finished run's peers."""

import click

from kgraft_cli.parameters import DATA_DIR, HERE, PLACE, TRUST


@click.command("select")
@click.argument("run", type=PLACE)
@DATA_DIR
@HERE
@TRUST
def command(run: str, data_dir: str | None, here: bool, trust: bool) -> None:
    """Best peer, uniform and greedy soup, and ensemble of RUN, a run's directory.

    Soups average the peers' weights and estimate their batch statistics anew; they are saved in the
    run's directory. Peers are chosen on the validation images, everything is tested on the same
    test images.
    """
    from pathlib import Path

    from rich.console import Console

    from kgraft.runs.selection import select
    from kgraft_cli.figures import Figures
    from kgraft_cli.messages import quiet_tensorflow

    quiet_tensorflow()
    found = select(Path(run), data_dir=data_dir, trusted=here or trust)
    is_searched = "test_mAP" in found["ensemble"]
    test = ("mAP", "rank-1") if is_searched else ("test",)
    table = Figures(run, ("what", "networks", "validation", *test, "peers"), left=("peers",))
    for name, row in found.items():
        table.add_row(
            name,
            str(row["networks"]),
            "-" if row["validation_accuracy"] is None else f"{row['validation_accuracy']:.2%}",
            *([f"{row['test_mAP']:.2%}"] if is_searched else []),
            f"{row['test_accuracy']:.2%}",
            " ".join(map(str, row["peers"])),
        )
    console = Console(markup=False, emoji=False)
    console.print(table)
    console.print(f"soups and select.json are in {run}", highlight=False, soft_wrap=True)
