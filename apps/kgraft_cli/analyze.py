"""`kgraft analyze`: which filters of a network hold anything."""

import click

from kgraft_cli.parameters import HERE, PLACE, TRUST

_ENDS = 5  # classes at either end
_SHOWN = ("0.001", "0.01", "0.1", "1")


@click.command("analyze")
@click.argument("networks", nargs=-1, required=True, metavar="RUN|MODEL...")
@click.option(
    "--baseline", type=PLACE, metavar="RUN|MODEL", help="Whose invalid filters split the others'."
)
@click.option(
    "--threshold",
    type=click.FloatRange(min=0, min_open=True),
    default=0.1,
    show_default=True,
    help="The l1 norm below which a filter is invalid.",
)
@click.option(
    "--answers", is_flag=True, help="Also how the peers of a RUN answer on its test images."
)
@click.option(
    "--line",
    type=(int, int),
    metavar="K K",
    help="Also the straight line between two peers of a RUN.",
)
@click.option("--data-dir", type=PLACE, metavar="DIR", help="Where prepared data sets are.")
@click.option("--layers", is_flag=True, help="Also every layer of every network.")
@click.option("--csv", "csv_file", type=PLACE, metavar="FILE", help="Every filter's norms.")
@click.option("--json", "json_file", type=PLACE, metavar="FILE", help="All figures.")
@HERE
@TRUST
def command(
    networks: tuple[str, ...],
    baseline: str | None,
    threshold: float,
    answers: bool,
    line: tuple[int, int] | None,
    data_dir: str | None,
    layers: bool,
    csv_file: str | None,
    json_file: str | None,
    here: bool,
    trust: bool,
) -> None:
    """The filters of networks: how many are invalid, how large the norms of the others are.

    RUN is the directory of a finished run, all peers of which count, MODEL a .keras file. A filter
    is invalid where its l1 norm is below a threshold; folded is the norm as the batch normalisation
    behind the convolution scales it, without which small norms may mean nothing.

    With --answers accuracy and calibration error of each peer and of all together, the channels
    behind rectifiers that no test image makes speak, how often two peers disagree, and the classes
    that are best and worst; beside a baseline's, where that is a run on the same images. With
    --line test loss and accuracy between two peers' weights, batch statistics estimated anew:
    peers in one basin have no barrier between them.
    """
    import csv
    import json
    from pathlib import Path

    from rich.console import Console

    from kgraft.errors import UserError
    from kgraft.files import check_place, whole
    from kgraft.runs import analysis
    from kgraft_cli.messages import quiet_tensorflow

    quiet_tensorflow()
    for file in (csv_file, json_file):
        if file is not None:
            check_place(Path(file))
    found = analysis.filters_of(networks)
    told = analysis.told(
        found, None if baseline is None else analysis.baseline_of(baseline), threshold=threshold
    )
    runs = [Path(own) for own in networks if Path(own).is_dir()]
    if (answers or line) and not runs:
        raise UserError("--answers and --line: expected the directory of a run.")
    if line is not None:
        from kgraft.runs.connectivity import line_between

        told["lines"] = {
            str(run): line_between(run, *line, data_dir=data_dir, trusted=here or trust)
            for run in runs
        }
    if answers:
        base = Path(baseline) if baseline is not None and Path(baseline).is_dir() else None
        told["answers"] = {
            str(run): analysis.answers_told(run, base, data_dir=data_dir, trusted=here or trust)
            for run in runs
        }
    if csv_file is not None:
        with whole(Path(csv_file)) as partial, partial.open("w", newline="") as out:
            writer = csv.writer(out)
            writer.writerow(("network", "layer", "filter", "l1_norm", "folded_norm"))
            writer.writerows(analysis.every_filter(found))
    if json_file is not None:
        with whole(Path(json_file)) as partial:
            partial.write_text(json.dumps(told, indent=1) + "\n")
    console = Console(markup=False, emoji=False)
    console.print(_of_networks(told))
    if layers:
        for row in told["networks"]:
            console.print(_of_layers(row, threshold))
    for run, own in told.get("lines", {}).items():
        console.print(_of_line(run, own))
    for run, own in told.get("answers", {}).items():
        for part in _of_answers(run, own):
            console.print(part)
    if any(pair["overlap"] is not None for pair in told["overlap"]):
        console.print(_of_pairs(told))


def _of_networks(told: dict) -> object:
    from kgraft_cli.figures import Figures

    split = any(row["norms_by_baseline"] for row in told["networks"])
    bound = f"{told['threshold']:g}"
    columns = (
        "network",
        "filters",
        *(f"< {own}" for own in _SHOWN),
        "folded < 0.1",
        f"mean >= {bound}",
        f"mean < {bound}",
        *(("baseline's >=", "baseline's <") if split else ()),
        "entropy",
    )
    table = Figures("filters by their l1 norms, and the entropy of all layers in nats", columns)
    for row in told["networks"]:
        folded = row["invalid_folded"]
        table.add_row(
            row["network"],
            f"{row['filters']:,}",
            *(f"{row['invalid'][own]:.1%}" for own in _SHOWN),
            "" if folded is None else f"{folded['0.1']:.1%}",
            *_norms(row["norms"]),
            *(_norms(row["norms_by_baseline"]) if split else ()),
            f"{row['entropy']:.2f}",
        )
    return table


def _norms(split: dict) -> list[str]:
    return ["" if split[name] is None else f"{split[name]:.3f}" for name in ("valid", "invalid")]


def _of_layers(row: dict, threshold: float) -> object:
    from kgraft_cli.figures import Figures

    columns = ("layer", "filters", f"invalid at {threshold:g}", "mean norm", "entropy, nats")
    table = Figures(f"layers of {row['network']}", columns)
    for own in row["layers"]:
        table.add_row(
            own["layer"],
            str(own["filters"]),
            str(own["invalid"]),
            f"{own['mean_norm']:.3f}",
            f"{own['entropy']:.3f}",
        )
    return table


def _of_answers(run: str, told: dict) -> list[object]:
    from kgraft_cli.figures import Figures

    table = Figures(
        f"answers of {run} on its test images",
        ("network", "accuracy", "calibration error", "dead activations"),
    )
    for row in told["networks"]:
        dead = row["dead_activations"]
        table.add_row(
            row["network"],
            f"{row['accuracy']:.2%}",
            f"{row['calibration_error']:.2%}",
            "" if dead is None else f"{dead:.2%}",
        )
    if told["disagreement"] is not None:
        table.add_section()
        table.add_row("two peers disagree on", f"{told['disagreement']:.2%}", "", "")
    beside = any(own["above_baseline"] is not None for own in told["classes"])
    by = "above_baseline" if beside else "accuracy"
    known = [own for own in told["classes"] if own[by] is not None]
    ranked = sorted(known, key=lambda own: -own[by])
    ends = ranked if len(ranked) <= 2 * _ENDS else [*ranked[:_ENDS], *ranked[-_ENDS:]]
    title = (
        "classes, by how far they are above the baseline" if beside else "best and worst classes"
    )
    classes = Figures(title, ("class", "accuracy", *(["points above the baseline"] * beside)))
    for own in ends:
        more = [f"{100 * own['above_baseline']:+.2f}"] if beside else []
        classes.add_row(own["class"], f"{own['accuracy']:.2%}", *more)
    return [table, classes]


def _of_line(run: str, told: dict) -> object:
    from kgraft_cli.figures import Figures

    title = (
        f"{run}: between the two peers, {told['distance']:.2f} of their weights' length apart; "
        f"barrier {told['barrier']:.3f}"
    )
    table = Figures(title, ("share of the second", "loss", "accuracy"))
    for share, loss, right in zip(told["share"], told["loss"], told["accuracy"], strict=True):
        table.add_row(f"{share:.1f}", f"{loss:.3f}", f"{right:.2%}")
    return table


def _of_pairs(told: dict) -> object:
    from kgraft_cli.figures import Figures

    title = f"invalid filters at {told['threshold']:g} in the same places: both / either"
    table = Figures(title, ("networks", "share"))
    for pair in told["overlap"]:
        if pair["overlap"] is not None:  # neither has any
            table.add_row(" and ".join(pair["networks"]), f"{pair['overlap']:.1%}")
    return table
