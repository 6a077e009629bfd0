"""What `kgraft analyze` found, as tables on a terminal."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from kgraft.analysis.peer_counts import Point
from kgraft.analysis.places import ranges
from kgraft.analysis.records import Grafts
from kgraft.analysis.statistics import Spread
from kgraft_cli.figures import Figures

MOST_PAIRS = 28  # of 8 peers
_ENDS = 5  # classes at either end
_SHOWN = (0.001, 0.01, 0.1, 1.0)
_ROWS = 6  # epochs
_WHICH = 17  # letters, at least
_BORDER = 3  # letters between columns
_DEPTHS = {
    1: ("all layers",),
    2: ("first half", "second half"),
    3: ("first third", "middle third", "last third"),
}


def of_networks(told: dict[str, Any]) -> Figures:
    """How many filters are invalid, by threshold; and how many not finite, where there are any."""
    shown = [f"{own:g}" for own in sorted({*_SHOWN, *told["thresholds"]})]
    at = f"{told['thresholds'][0]:g}"
    sick = any(row["not_finite"] for row in told["networks"])
    columns = ("network", *(f"< {own}" for own in shown), "folded", "entropy")
    title = f"share of filters below an l1 norm (folded: {at}); entropy of layers"
    if sick:
        columns, title = (*columns, "not finite"), f"{title}; shares are of the finite ones"
    table = Figures(title, columns)
    for row in told["networks"]:
        count = row["not_finite"]
        table.add_row(
            row["network"],
            *(_share(row["invalid"][own]) for own in shown),
            "" if row["invalid_folded"] is None else _share(row["invalid_folded"][at]),
            "not finite" if row["entropy"] is None else f"{row['entropy']:.2f}",
            *([f"{count} of {row['filters']}" if count else ""] if sick else []),
        )
    return table


def of_norms(told: dict[str, Any], at: str) -> Figures:
    """Valid and invalid filters and their mean norms, split by themselves and by a baseline."""
    columns = ("network", "split by", "filters", "mean l1 norm", "folded")
    table = Figures(f"filters valid / invalid at an l1 norm of {at}", columns, left=("split by",))
    for row in told["networks"]:
        splits = {"itself": row["norms"], "the baseline": row["norms_by_baseline"]}
        for name, own in splits.items():
            if own is not None:
                split = own[at]
                table.add_row(
                    row["network"],
                    name,
                    f"{split['valid_count']} / {split['invalid_count']}",
                    _two(split["valid"], split["invalid"]),
                    _two(split["valid_folded"], split["invalid_folded"]),
                )
    return table


def of_depths(told: dict[str, Any], at: str) -> Figures:
    """How deep the invalid filters sit."""
    names = _DEPTHS[max(len(row["depth"][at]) for row in told["networks"])]
    title = f"depth of filters invalid at {at}: share of them (of filters there)"
    table = Figures(title, ("network", *names))
    for row in told["networks"]:
        cells = ["" if part["share"] is None else _part(part) for part in row["depth"][at]]
        table.add_row(row["network"], *cells, *[""] * (len(names) - len(cells)))
    return table


def of_pairs(told: dict[str, Any], at: str) -> Figures:
    """How far two networks' invalid filters sit at the same places."""
    title = f"filters invalid at {at} in the same places"
    table = Figures(title, ("networks", "both / either"))
    known = [
        (" and ".join(pair["networks"]), pair["by_threshold"][at]["share"])
        for pair in told["overlap"]
        if pair["by_threshold"][at]["share"] is not None  # neither has any
    ]
    if len(known) > MOST_PAIRS:
        shares = [share for _, share in known]
        known = [
            (f"mean of {len(known)} pairs", float(np.mean(shares))),
            ("least", min(shares)),
            ("most", max(shares)),
        ]
    for name, share in known:
        table.add_row(name, f"{share:.1%}")
    return table


def of_layers(row: dict[str, Any], at: str, width: int) -> Figures:
    """The layers of a network, and which of their filters are invalid.

    Args:
        row: of the network.
        at: the threshold.
        width: letters that there are in a line; of filters as many are named as fit.
    """
    sick = ("not finite",) if row["not_finite"] else ()
    columns = ("layer", "invalid", "which", *sick, "mean norm", "entropy")
    title = f"layers of {row['network']}: filters invalid at {at}, mean l1 norm, entropy"
    table = Figures(title, columns, left=("which",))
    rows = [
        [
            own["layer"].removesuffix("/kernel"),
            f"{len(own['invalid'][at])} of {own['filters']}",
            ranges(own["invalid"][at]),
            *([str(len(own["not_finite"]) or "")] if sick else []),
            _number(own["mean_norm"]),
            _number(own["entropy"]),
        ]
        for own in row["layers"]
    ]
    others = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    room = max(_WHICH, width - sum(others[:2] + others[3:]) - _BORDER * len(columns) - 1)
    for name, count, which, *figures in rows:
        table.add_row(name, count, _cut(which, room), *figures)
    return table


def of_shared(pair: dict[str, Any], at: str) -> Figures | None:
    """In which layers two networks have invalid filters at the same places; None without any."""
    layers = pair["by_threshold"][at]["layers"]
    if not layers:
        return None
    table = Figures(
        f"filters invalid at {at} of {' and '.join(pair['networks'])}",
        ("layer", "in both", "in either"),
    )
    for own in layers:
        table.add_row(own["name"].removesuffix("/kernel"), str(own["both"]), str(own["either"]))
    return table


def of_epochs(run: str, phase: str, grafts: Grafts, what: str) -> Figures:
    """Some epochs of a run's graftings, means over layers."""
    which = "" if phase == "peers" else f", {phase}"
    count = len(grafts.epochs)
    title = f"{run}{which}: {count} graftings, means over {len(grafts.groups)} layers"
    table = Figures(title, ("epoch", "peer", "donor", what, "coefficient", "least", "most"))
    for e in np.unique(np.linspace(0, count - 1, min(count, _ROWS)).round().astype(int)).tolist():
        for k, peer in enumerate(grafts.peers.tolist()):
            kept = grafts.coefficients[e, k]
            kept = kept[np.isfinite(kept)]
            shown = (kept.mean(), kept.min(), kept.max()) if len(kept) else ()
            table.add_row(
                str(grafts.epochs[e]),
                str(peer),
                str(grafts.donors[e, k] or "none"),
                _mean(grafts.information[e, k]),
                *([f"{own:.3f}" for own in shown] or [""] * 3),
            )
        table.add_section()
    return table


def of_points(points: Sequence[Point], figure: str) -> list[Figures]:
    """What each line of runs came to with its numbers of peers."""
    what = "mAP" if figure == "mAP" else "accuracy"
    columns = ("peers", "seeds", "best peer, %", "ensemble, %", "entropy, nats", "from")
    tables: dict[str, Figures] = {}
    for own in points:
        title = (
            f"{own.line}: test {what} of the peer that is best by validation, and of all together; "
            "entropy of all layers; mean ± std"
        )
        if own.count == 1 and own.method not in ("", own.line.partition(",")[0]):
            title += f"; 1 peer: a run of {own.method}, the first point of every method"
        table = tables.setdefault(own.line, Figures(title, columns, left=("from",)))
        table.add_row(
            str(own.count),
            str(own.best.count),
            _spread(own.best, 100),
            "" if own.count == 1 else _spread(own.ensemble, 100),
            "" if own.entropy is None else _spread(own.entropy, 1),
            own.source,
        )
    return [*tables.values()]


def of_line(run: str, told: dict[str, Any]) -> Figures:
    """The straight line between two peers."""
    first, second = told["peers"]
    title = (
        f"{run}: from peer {first} to peer {second}; barrier {told['barrier']:.3f} nats, distance "
        f"{told['distance']:.2f} of their weights' length"
    )
    table = Figures(title, (f"share of peer {second}", "loss", "accuracy"))
    for share, loss, right in zip(told["share"], told["loss"], told["accuracy"], strict=True):
        table.add_row(f"{share:.1f}", f"{loss:.3f}", f"{right:.2%}")
    return table


def of_answers(run: str, told: dict[str, Any]) -> list[Figures]:
    """How a run's peers answer, and the classes that are best and worst."""
    table = Figures(
        f"answers of {run} on its test images",
        ("network", "accuracy", "calibration error", "dead activations"),
    )
    for row in told["networks"]:
        dead = row["dead_activations"]
        table.add_row(
            row["network"],
            _share(row["accuracy"], 2),
            _share(row["calibration_error"], 2),
            "" if dead is None else f"{dead:.2%}",
        )
    if (base := told["baseline"]) is not None:
        name = "baseline" if base["peers"] == 1 else f"baseline, {base['peers']} peers together"
        table.add_row(
            name, *(_share(base[key], 2) for key in ("accuracy", "calibration_error")), ""
        )
    if told["disagreement"] is not None:
        table.add_section()
        table.add_row("two peers disagree on", f"{told['disagreement']:.2%}", "", "")
    beside = any(own["above_baseline"] is not None for own in told["classes"])
    by = "above_baseline" if beside else "accuracy"
    known = [own for own in told["classes"] if own[by] is not None]
    ranked = sorted(known, key=lambda own: -own[by])
    ends = ranked if len(ranked) <= 2 * _ENDS else [*ranked[:_ENDS], *ranked[-_ENDS:]]
    whose = "all peers together" if len(told["networks"]) > 1 else "the peer"
    ordered = "by how far they are above the baseline" if beside else "best and worst"
    title = f"classes of {run}, {ordered}; accuracy of {whose}"
    classes = Figures(title, ("class", "accuracy", *(["points above the baseline"] * beside)))
    for own in ends:
        more = [f"{100 * own['above_baseline']:+.2f}"] if beside else []
        classes.add_row(own["class"], f"{own['accuracy']:.2%}", *more)
    return [table, classes] if known else [table]


def _part(part: dict[str, Any]) -> str:
    there = part["invalid"] / part["filters"] if part["filters"] else None
    return f"{part['share']:.1%} ({_share(there) or 'none finite'})"


def _share(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:.{digits}%}"


def _cut(numbers: str, room: int) -> str:
    """As many of some numbers as there is room for."""
    return numbers if len(numbers) <= room else numbers[: room - 4].rpartition(",")[0] + ", ..."


def _two(valid: float | None, invalid: float | None) -> str:
    if valid is None and invalid is None:
        return ""
    return f"{_number(valid) or '-'} / {_number(invalid) or '-'}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _mean(values: np.ndarray) -> str:
    known = values[np.isfinite(values)]
    return f"{known.mean():.3f}" if len(known) else ""


def _spread(own: Spread, scale: float) -> str:
    std = "" if own.std is None else f" ± {scale * own.std:.2f}"
    return f"{scale * own.mean:.2f}{std}"
