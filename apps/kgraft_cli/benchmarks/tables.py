"""What was measured, as a table for the terminal."""

from typing import Any

from kgraft_cli.figures import Figures

_SPEED = ("model", "batch", "K", "contender", "images x peers / s", "kgraft / this")
_COLUMNS = {
    "speed": (*_SPEED, "epoch's end", "start-up", "memory"),
    "methods": ("model", "batch", "method", "K", "a peer's step", "/ baseline", "epoch's end"),
    "profile": ("model", "batch", "contender", "operation", "calls", "a peer's step", "of it"),
    "checkpoint": (
        *("backend", "model", "batch", "K", "size", "epoch", "copy", "write"),
        *("both, of an epoch", "steps with / without"),
    ),
    "ring": (
        *("model", "batch", "K", "steps", "one process", "2 ranks", "ranks are faster by"),
        *("a rank sends", "a peer's weights", "exchange", "predicted"),
    ),
    "photographs": ("contender", "size", "batch", "K", "images x peers / s", "kgraft / this"),
    "graft": ("backend", "model", "batch", "K", "step", "grafting", "of a step", "loop / it"),
}


def table(what: str, rows: list[dict[str, Any]], title: str) -> Figures:
    """A table of medians, with the range in parentheses.

    Args:
        what: `"speed"`, `"graft"`, `"methods"`, `"checkpoint"`, `"ring"`, `"profile"` or
            `"photographs"`.
        rows: what `runner.rows`, `GraftTimes.row`, `measure_methods`, `measure_checkpoint`,
            `measure_ring`, `profile` or `measure_photographs` gave.
        title: what all rows have in common.
    """
    words = ("backend", "model", "contender", "method", "operation")
    made = Figures(title, _COLUMNS[what], left=words)
    for row in rows:
        made.add_row(*_CELLS[what](row))
    return made


def _speed(row: dict[str, Any]) -> list[str]:
    kind = "" if row["precision"] == "float32" else f", {row['precision']}"
    head = [f"{row['model']}{kind}", str(row["batch_size"]), str(row["peers"]), row["contender"]]
    if "error" in row:
        return [*head, row["error"], "", "", "", ""]
    low, high = row["images_per_second_range"]
    ratio = ""
    if "kgraft_over_this" in row:
        least, most = row["kgraft_over_this_range"]
        ratio = f"{row['kgraft_over_this']:.2f} ({least:.2f} to {most:.2f})"
    return [
        *head,
        f"{row['images_per_second']:.0f} ({low:.0f} to {high:.0f})",
        ratio,
        f"{row['exchange_seconds'] * 1e3:.0f} ms",
        "" if row["startup_seconds"] is None else f"{row['startup_seconds']:.1f} s",
        f"{row['peak_bytes'] / 2**20:.0f} MiB",
    ]


def _graft(row: dict[str, Any]) -> list[str]:
    low, high = row["share_of_step_range"]
    least, most = row["loop_over_graft_range"]
    return [
        row["backend"],
        row["model"],
        str(row["batch_size"]),
        str(row["peers"]),
        f"{row['step_seconds'] * 1e3:.0f} ms",
        f"{row['graft_seconds'] * 1e3:.1f} ms",
        f"{row['share_of_step']:.2%} ({low:.2%} to {high:.2%})",
        f"{row['loop_over_graft']:.1f} ({least:.1f} to {most:.1f})",
    ]


def _methods(row: dict[str, Any]) -> list[str]:
    low, high = row["over_baseline_range"]
    return [
        row["model"],
        str(row["batch_size"]),
        row["method"],
        str(row["peers"]),
        f"{row['step_seconds'] * 1e3:.1f} ms",
        f"{row['over_baseline']:.2f} ({low:.2f} to {high:.2f})",
        f"{row['epoch_end_seconds'] * 1e3:.1f} ms",
    ]


def _checkpoint(row: dict[str, Any]) -> list[str]:
    low, high = row["share_of_epoch_range"]
    least, most = row["saved_over_plain_range"]
    return [
        row["backend"],
        row["model"],
        str(row["batch_size"]),
        str(row["peers"]),
        f"{row['bytes'] / 2**20:.1f} MiB",
        f"{row['epoch_seconds']:.1f} s",
        f"{row['copy_seconds'] * 1e3:.1f} ms",
        f"{row['write_seconds'] * 1e3:.1f} ms",
        f"{row['share_of_epoch']:.3%} ({low:.3%} to {high:.3%})",
        f"{row['saved_over_plain']:.3f} ({least:.3f} to {most:.3f})",
    ]


def _ring(row: dict[str, Any]) -> list[str]:
    least, most = row["ring_over_alone_range"]
    return [
        row["model"],
        str(row["batch_size"]),
        str(row["peers"]),
        str(row["steps"]),
        f"{row['alone_seconds']:.2f} s",
        f"{row['ring_seconds']:.2f} s",
        f"{row['ring_over_alone']:.2f} ({least:.2f} to {most:.2f})",
        f"{row['bytes_sent'] / 2**20:.2f} MiB",
        f"{row['bytes_of_a_peer'] / 2**20:.2f} MiB",
        f"{row['exchange_seconds'] * 1e3:.2f} ms",
        f"{row['predicted_seconds'] * 1e3:.2f} ms",
    ]


def _photographs(row: dict[str, Any]) -> list[str]:
    low, high = row["images_per_second_range"]
    least, most = row["kgraft_over_this_range"]
    return [
        row["contender"],
        str(row["size"]),
        str(row["batch_size"]),
        str(row["peers"]),
        f"{row['images_per_second']:.0f} ({low:.0f} to {high:.0f})",
        f"{row['kgraft_over_this']:.2f} ({least:.2f} to {most:.2f})",
    ]


def _profile(row: dict[str, Any]) -> list[str]:
    return [
        row["model"],
        str(row["batch_size"]),
        row["contender"],
        row["operation"],
        "" if row["calls"] is None else f"{row['calls']:.0f}",
        f"{row['seconds'] * 1e3:.2f} ms",
        f"{row['share']:.1%}",
    ]


_CELLS = {
    "speed": _speed,
    "graft": _graft,
    "methods": _methods,
    "checkpoint": _checkpoint,
    "profile": _profile,
    "ring": _ring,
    "photographs": _photographs,
}
