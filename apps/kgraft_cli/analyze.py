"""`kgraft analyze`: which filters of a network hold anything."""

import click

from kgraft_cli.parameters import PLACE

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
@click.option("--layers", is_flag=True, help="Also every layer of every network.")
@click.option("--csv", "csv_file", type=PLACE, metavar="FILE", help="Every filter's norms.")
@click.option("--json", "json_file", type=PLACE, metavar="FILE", help="All figures.")
def command(
    networks: tuple[str, ...],
    baseline: str | None,
    threshold: float,
    layers: bool,
    csv_file: str | None,
    json_file: str | None,
) -> None:
    """The filters of networks: how many are invalid, how large the norms of the others are.

    RUN is the directory of a finished run, all peers of which count, MODEL a .keras file. A filter
    is invalid where its l1 norm is below a threshold; folded is the norm as the batch normalisation
    behind the convolution scales it, without which small norms may mean nothing.
    """
    import csv
    import json
    from pathlib import Path

    from rich.console import Console

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


def _of_pairs(told: dict) -> object:
    from kgraft_cli.figures import Figures

    title = f"invalid filters at {told['threshold']:g} in the same places: both / either"
    table = Figures(title, ("networks", "share"))
    for pair in told["overlap"]:
        if pair["overlap"] is not None:  # neither has any
            table.add_row(" and ".join(pair["networks"]), f"{pair['overlap']:.1%}")
    return table
