"""The table that a run ends with."""

from typing import Any

from kgraft_cli.figures import Figures


def summary_table(summary: dict[str, Any]) -> Figures:
    """Every peer's last and best epoch, the ensemble, the teachers.

    Args:
        summary: what `summary.json` holds.
    """
    table = Figures(
        "accuracy on the test images",
        ("model", "lr", "last epoch", f"best on {summary['selected_on']}"),
    )
    for row in summary["peers"]:
        table.add_row(f"peer {row['peer']}", f"{row['lr']:.4f}", *_accuracies(row))
    table.add_section()
    table.add_row(
        f"ensemble of {len(summary['peers'])}", "", _share(summary["ensemble"]["test_accuracy"]), ""
    )
    for row in summary["teachers"]:
        table.add_row(f"teacher {row['teacher']}", "", *_accuracies(row))
    if "committee" in summary:
        together = _share(summary["committee"]["test_accuracy"])
        table.add_row(f"{len(summary['teachers'])} teachers together", "", together, "")
    return table


def _accuracies(row: dict[str, Any]) -> tuple[str, str]:
    if "best_epoch" not in row:
        return _share(row["test_accuracy"]), "from a file"
    best = f"{_share(row['best_test_accuracy'])} (epoch {row['best_epoch']})"
    return _share(row["test_accuracy"]), best


def _share(value: float) -> str:
    return f"{value:.2%}"
