"""The table that a run ends with."""

from pathlib import Path
from typing import Any

from rich.console import Console

from kgraft.runs.finished import told_lost
from kgraft_cli.figures import Figures
from kgraft_cli.messages import say

_SEARCHED = {
    "test_mAP": "mAP",
    "test_accuracy": "rank-1",
    "test_rank5": "rank-5",
    "test_rank10": "rank-10",
    "test_mAP_official": "mAP by trapezoids",
    "test_mINP": "mINP",
}


def print_summary(console: Console, summary: dict[str, Any], path: Path, epochs: int) -> None:
    """What a run ends with.

    Args:
        console: where it is printed.
        summary: what `summary.json` holds.
        path: the run's directory.
        epochs: how many it was to have.
    """
    console.print(summary_table(summary))
    told = [row.get("last_epoch") for row in summary["peers"]]
    last = max((own for own in told if isinstance(own, int)), default=epochs)
    if last < epochs:
        say(console, f"stopped after epoch {last} of {epochs} by a callback")
    for sentence in told_lost(summary):
        say(console, sentence)
    share = summary.get("waiting")
    waiting = "" if share is None else f", {share:.1%} of it waiting for photographs"
    console.print(
        f"{summary['seconds']:.1f} s for the peers{waiting}, "
        f"{summary['images_per_second']:.0f} images/s over all of them; everything is in {path}",
        highlight=False,
        soft_wrap=True,
    )


def summary_table(summary: dict[str, Any]) -> Figures:
    """Every peer's last and best epoch, the ensemble, the teachers.

    Args:
        summary: what `summary.json` holds.
    """
    is_searched = "test_mAP" in summary["ensemble"]
    best_on = f"best on {summary['selected_on']}"
    shown = {"test_accuracy": "last epoch", "test_top5": "top 5"}
    if is_searched:
        shown = _SEARCHED
    shown = {key: name for key, name in shown.items() if key in summary["ensemble"]}
    # a run without held-out images has no best epoch but its last
    chosen = any(row.get("best_validation_accuracy") is not None for row in summary["peers"])
    last = [f"rank-1 of the epoch that is {best_on}" if is_searched else best_on] * chosen
    columns = ("model", "lr", *shown.values(), *last)
    title = (
        "the queries, searched for in the gallery" if is_searched else "accuracy on the test images"
    )
    table = Figures(title, columns)

    def add(name: str, lr: str, row: dict[str, Any], best: str) -> None:
        cells = [f"{row[key]:.2%}" if key in row else "" for key in shown]
        table.add_row(name, lr, *cells, *[best] * chosen)

    for row in summary["peers"]:
        add(f"peer {row['peer']}", f"{row['lr']:.4f}", row, _best(row))
    table.add_section()
    add(f"ensemble of {len(summary['peers'])}", "", summary["ensemble"], "")
    for row in summary["teachers"]:
        add(f"teacher {row['teacher']}", "", row, _best(row))
    if "committee" in summary:
        add(f"{len(summary['teachers'])} teachers together", "", summary["committee"], "")
    return table


def _best(row: dict[str, Any]) -> str:
    if "best_epoch" not in row:
        return "from a file"
    return f"{row['best_test_accuracy']:.2%} (epoch {row['best_epoch']})"
