"""The table that a run ends with."""

from typing import Any

from kgraft_cli.figures import Figures


def summary_table(summary: dict[str, Any]) -> Figures:
    """Every peer's last and best epoch, the ensemble, the teachers.

    Args:
        summary: what `summary.json` holds.
    """
    has_top = "test_top5" in summary["ensemble"]
    best_on = f"best on {summary['selected_on']}"
    columns = ("model", "lr", "last epoch", *(["top 5"] if has_top else []), best_on)
    table = Figures("accuracy on the test images", columns)

    def add(name: str, lr: str, row: dict[str, Any], best: str) -> None:
        top = [f"{row['test_top5']:.2%}" if "test_top5" in row else ""] if has_top else []
        table.add_row(name, lr, f"{row['test_accuracy']:.2%}", *top, best)

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
