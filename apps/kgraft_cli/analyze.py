"""`kgraft analyze`: which filters of a network hold anything, and what grafting did to them."""

from typing import Any

import click

from kgraft_cli.parameters import DATA_DIR, HERE, PLACE, POSITIVE, TRUST

_FILTERS = ("network", "layer", "filter", "l1_norm", "folded_norm")
_EPOCHS = ("run", "phase", "epoch", "peer", "donor", "layer", "information", "coefficient")
_PEERS = (
    *("line", "peers", "seeds", "best_peer", "best_peer_std", "mean_peer", "mean_peer_std"),
    *("ensemble", "ensemble_std", "entropy", "entropy_std", "entropy_from"),
)


@click.command("analyze")
@click.argument("networks", nargs=-1, required=True, metavar="RUN|MODEL...")
@click.option(
    "--baseline",
    type=PLACE,
    metavar="RUN|MODEL",
    help="Whose filters, and answers, the others' stand beside.",
)
@click.option(
    "--threshold",
    "thresholds",
    type=POSITIVE,
    metavar="NORM",
    multiple=True,
    help="The l1 norm below which a filter is invalid, by default 0.1; may be given several times.",
)
@click.option("--layers", is_flag=True, help="Also every layer of every network.")
@click.option(
    "--answers", is_flag=True, help="Also how the peers of a RUN answer on its test images."
)
@click.option(
    "--line",
    type=(int, int),
    metavar="K K",
    help="Also the loss along the straight line between the weights of two peers of a RUN.",
)
@click.option(
    "--epochs",
    is_flag=True,
    help="Instead, entropies and coefficients over the epochs of each RUN, from its records.",
)
@click.option(
    "--by-peers",
    is_flag=True,
    help="Instead, what RUN... and comparisons came to with fewer and more peers.",
)
@DATA_DIR
@click.option(
    "--csv",
    "csv_file",
    type=PLACE,
    metavar="FILE",
    help="Every filter's norms; or every grafting, or every point.",
)
@click.option("--json", "json_file", type=PLACE, metavar="FILE", help="All figures.")
@HERE
@TRUST
def command(
    networks: tuple[str, ...],
    baseline: str | None,
    thresholds: tuple[float, ...],
    layers: bool,
    answers: bool,
    line: tuple[int, int] | None,
    epochs: bool,
    by_peers: bool,
    data_dir: str | None,
    csv_file: str | None,
    json_file: str | None,
    here: bool,
    trust: bool,
) -> None:
    """The filters of networks: how many are invalid, where they are, how large the others' norms.

    RUN is the directory of a finished run, all peers of which count, MODEL a .keras file. A
    filter's l1 norm is the sum of its weights' absolute values; it is invalid where that is below a
    threshold. The folded norm is the norm as the batch normalisation behind the convolution scales
    it, without which small norms may mean nothing. A network's entropy is the sum of its layers',
    in nats. Filters are counted from 0, layers from the images on. Those of a network that
    diverged may be not finite: they are counted by themselves, shares and means are of the others.

    With --answers accuracy and calibration error of each peer and of all together, the channels
    behind rectifiers that no test image makes speak, how often two peers disagree, and the classes
    on which all peers together are best and worst; beside all peers' of the baseline, where that is
    a run on the same images. With --line test loss and accuracy between two peers' weights, batch
    statistics estimated anew. The barrier is by how much at most the loss is above the straight
    line between the ends' losses, 0 in one basin; the distance is that of the trainable weights
    over the mean of their lengths.

    With --epochs the entropies before each grafting, and the coefficients: shares of its own
    weights that a peer kept. The run need not be finished, and no weights are read. With --by-peers
    accuracy and entropy of runs that are alike but for peers.count and the seed; a baseline's run
    is the first point of every method. The best peer is the one that validation prefers.
    """
    from pathlib import Path

    from kgraft.errors import UserError
    from kgraft.files import check_place
    from kgraft_cli.messages import quiet_tensorflow

    quiet_tensorflow()
    for file in (csv_file, json_file):
        if file is not None:
            check_place(Path(file))
    modes = {"--epochs": epochs, "--by-peers": by_peers}
    others = {
        "--baseline": baseline,
        "--threshold": thresholds,
        "--layers": layers,
        "--answers": answers,
        "--line": line,
        "--data-dir": data_dir,
    }
    instead = [name for name, asked in modes.items() if asked]
    more = [*instead[1:], *(name for name, asked in others.items() if asked)]
    if instead and more:
        raise UserError(f"{instead[0]} is told instead of {more[0]}: give either.")
    if epochs:
        _epochs(networks, csv_file, json_file)
    elif by_peers:
        _by_peers(networks, csv_file, json_file)
    else:
        from kgraft.runs import analysis

        found = analysis.filters_of(networks)
        base = None if baseline is None else analysis.baseline_of(baseline)
        told = analysis.told(found, base, thresholds=thresholds or (0.1,))
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
            from kgraft.runs.answers import answers_told

            beside = Path(baseline) if baseline is not None and Path(baseline).is_dir() else None
            told["answers"] = {
                str(run): answers_told(run, beside, data_dir=data_dir, trusted=here or trust)
                for run in runs
            }
        _write(csv_file, _FILTERS, analysis.every_filter(found))
        _dump(json_file, told)
        _tell_filters(told, layers)


def _epochs(runs: tuple[str, ...], csv_file: str | None, json_file: str | None) -> None:
    from pathlib import Path

    from kgraft.errors import UserError
    from kgraft.runs.config import read
    from kgraft.runs.epochs import every_grafting, graftings_of, told_graftings
    from kgraft.runs.records import unit_of_information
    from kgraft_cli.analysis_tables import of_epochs

    if twice := [run for run in runs if runs.count(run) > 1]:
        raise UserError(f"{twice[0]}: named twice.")
    found = {run: graftings_of(Path(run)) for run in runs}
    units = {run: unit_of_information(read(Path(run) / "run.toml")) for run in runs}
    _write(csv_file, _EPOCHS, every_grafting(found))
    if json_file is not None:
        told = [
            {"run": run, "phase": phase, "what": units[run], **told_graftings(grafts)}
            for run, phases in found.items()
            for phase, grafts in phases.items()
        ]
        _dump(json_file, {"graftings": told})
    _print(
        of_epochs(run, phase, grafts, units[run])
        for run, phases in found.items()
        for phase, grafts in phases.items()
    )


def _by_peers(places: tuple[str, ...], csv_file: str | None, json_file: str | None) -> None:
    from pathlib import Path

    from kgraft.errors import UserError
    from kgraft.runs.peer_counts import peer_counts, told_points
    from kgraft_cli.analysis_tables import of_points

    points, figure, left_out = peer_counts([Path(own) for own in places])
    for run, why in left_out.items():
        click.echo(f"{run}: left out, {why}.", err=True)
    if not points:
        raise UserError(
            "--by-peers: no two finished runs that are alike but for peers.count (and the seed)."
        )
    told = told_points(points)
    _write(csv_file, _PEERS, _flat(told))
    _dump(json_file, {"figure": figure, "points": told})
    _print(of_points(points, figure))


def _flat(points: list[dict[str, Any]]) -> Any:
    for own in points:
        spreads = [own[name] or {} for name in ("best", "mean_peer", "ensemble", "entropy")]
        numbers = [spread.get(key) for spread in spreads for key in ("mean", "std")]
        yield own["line"], own["count"], own["best"]["count"], *numbers, own["source"]


def _write(file: str | None, names: tuple[str, ...], rows: Any) -> None:
    import csv
    from pathlib import Path

    from kgraft.files import whole

    if file is not None:
        with whole(Path(file)) as partial, partial.open("w", newline="") as out:
            writer = csv.writer(out)
            writer.writerow(names)
            writer.writerows(rows)


def _dump(file: str | None, told: dict[str, Any]) -> None:
    import json
    from pathlib import Path

    from kgraft.files import whole

    if file is not None:
        with whole(Path(file)) as partial:
            partial.write_text(json.dumps(told, indent=1) + "\n")


def _tell_filters(told: dict[str, Any], layers: bool) -> None:
    from rich.console import Console

    from kgraft_cli import analysis_tables as tables

    width = Console().width
    shown: list[Any] = [tables.of_networks(told)]
    for threshold in told["thresholds"]:
        at = f"{threshold:g}"
        shown.append(tables.of_norms(told, at))
        if any(part["invalid"] for row in told["networks"] for part in row["depth"][at]):
            shown.append(tables.of_depths(told, at))
        if any(pair["by_threshold"][at]["share"] is not None for pair in told["overlap"]):
            shown.append(tables.of_pairs(told, at))
    for threshold in told["thresholds"] if layers else ():
        at = f"{threshold:g}"
        shown += [tables.of_layers(row, at, width) for row in told["networks"]]
        shown += [tables.of_shared(pair, at) for pair in told["overlap"][: tables.MOST_PAIRS]]
    for run, own in told.get("lines", {}).items():
        shown.append(tables.of_line(run, own))
    for run, own in told.get("answers", {}).items():
        shown += tables.of_answers(run, own)
    _print(table for table in shown if table is not None)


def _print(tables: Any) -> None:
    from rich.console import Console

    console = Console(markup=False, emoji=False)
    for table in tables:
        console.print(table)
