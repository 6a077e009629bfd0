"""What runs came to against their number of peers: which of them lie on one line."""

import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from kgraft.analysis.filters import layer_filters
from kgraft.analysis.peer_counts import RECORDS, WEIGHTS, Outcome, Point, points
from kgraft.analysis.records import read_grafts
from kgraft.errors import UserError
from kgraft.files import is_file
from kgraft.grafting import Entropy
from kgraft.runs.comparisons.runs import NO_MATTER
from kgraft.runs.config import Config
from kgraft.runs.finished import best_peer, peer_file, read_run, rows_of, told_lost
from kgraft.runs.keras_file import read_model
from kgraft.runs.methods import tables
from kgraft.runs.ranks import wherever
from kgraft.runs.records import is_comparison, runs_of_comparison

_ALONE = ("baseline", "distill")  # what every method is with one peer
_SEED = re.compile(r"\bseed-\d+\b")

Settings = dict[str, Any]


def peer_counts(
    places: Sequence[Path], *, weights: bool = True
) -> tuple[tuple[Point, ...], str, dict[Path, str]]:
    """Points of all lines among runs.

    Runs are on one line where no setting but the seed and the number of peers sets them apart. One
    network by itself, or one student, is the first point of every method's line.

    Args:
        places: directories of runs, and of comparisons, whose runs all count.
        weights: whether the peers' files are looked into for their entropies; where not, or where
            they are gone, the last grafting's count, where these are entropies as `Entropy()` has
            them.

    Returns:
        The points, of lines that have more than one number of peers; what was measured on the test
        images, `"accuracy"` or `"mAP"`; and the runs that do not count, with the reason.

    Raises:
        UserError: a directory holds neither, or a file of a finished run is damaged.
    """
    runs = [run for place in places for run in _runs_in(place)]
    finished = [run for run in runs if is_file(run / "summary.json")]
    read = {run: read_run(run) for run in dict.fromkeys(finished)}
    less = {run: told_lost(summary)[0] for run, (_, summary) in read.items() if told_lost(summary)}
    told = {run: own for run, own in read.items() if run not in less}
    figure = _figure([summary for _, summary in told.values()])
    lines = _lines({run: config for run, (config, _) in told.items()})
    outcomes = {
        run: _outcome(run, *told[run], figure, weights)
        for run in dict.fromkeys(run for members in lines.values() for run in members)
    }
    found = [replace(outcomes[run], line=line) for line, own in lines.items() for run in own]
    left_out = less | {run: "not finished" for run in runs if run not in read}
    alone = "no other run is alike but for peers.count and the seed"
    left_out |= {run: alone for run in told if run not in outcomes}
    return points(found), figure, left_out


def told_points(found: Sequence[Point]) -> list[dict[str, Any]]:
    """The points JSON-able."""
    return [asdict(point) for point in found]


def _runs_in(place: Path) -> list[Path]:
    if is_comparison(place):
        return [run for runs in runs_of_comparison(place).values() for run in runs]
    if not is_file(place / "run.toml"):
        raise UserError(f"{place}: neither a run's directory nor a comparison's.")
    return [place]


def _figure(summaries: Sequence[dict[str, Any]]) -> str:
    """What all of them measured."""
    searched = {"test_mAP" in summary["ensemble"] for summary in summaries}
    if len(searched) > 1:
        raise UserError("runs that classify and runs that search: expected either.")
    return "mAP" if searched == {True} else "accuracy"


def _lines(configs: dict[Path, Config]) -> dict[str, list[Path]]:
    """By name, the runs of each line."""
    keys = {run: _key(config) for run, config in configs.items()}
    ones = [run for run, own in configs.items() if own.peers.count == 1]
    alone = [run for run in ones if configs[run].run.method in _ALONE]
    groups: dict[tuple[Any, ...], list[Path]] = {}
    for run, key in keys.items():
        if run not in ones:
            groups.setdefault(tuple(key.items()), []).append(run)
    lines = []
    for several in groups.values():
        key = keys[several[0]]
        first = [run for run in ones if _of_one(keys[run]) == _of_one(key)]
        first = first or [run for run in alone if _common(keys[run]) == _common(key)]
        if first or len({configs[run].peers.count for run in several}) > 1:
            lines.append((key, [*first, *several]))
    names = _names([key for key, _ in lines])
    return {name: members for name, (_, members) in zip(names, lines, strict=True)}


def _key(config: Config) -> Settings:
    """What sets a line apart."""
    dropped = {"run.seed", "peers.count", *NO_MATTER}
    key: Settings = {
        name: own for name, own in wherever(config).told().items() if name not in dropped
    }
    key["teachers.files"] = _SEED.sub("seed", str(key.get("teachers.files")))
    return key


def _of_one(key: Settings) -> Settings:
    """The settings that count with one peer: it has one rate."""
    return {name: own for name, own in key.items() if name != "schedule.spread"}


def _common(key: Settings) -> Settings:
    """The settings of one peer that are not a method's own."""
    methods = set(tables())
    return {
        name: own
        for name, own in _of_one(key).items()
        if name != "run.method" and name.partition(".")[0] not in methods
    }


def _names(keys: Sequence[Settings]) -> list[str]:
    """The method of each line, and the settings in which lines of one method differ."""
    names = []
    for key in keys:
        method = key["run.method"]
        others = [own for own in keys if own["run.method"] == method]
        apart = [
            f"{name} {_plain(key.get(name))}"
            for name in dict.fromkeys(name for own in others for name in own)
            if len({own.get(name) for own in others}) > 1
        ]
        names.append(", ".join([_plain(method), *apart]))
    return names


def _plain(value: Any) -> str:
    return str(value).strip('"')


def _outcome(
    run: Path, config: Config, summary: dict[str, Any], figure: str, weights: bool
) -> Outcome:
    peers = {k: row[f"test_{figure}"] for k, row in rows_of(summary).items()}
    entropy, source = _entropy(run, config, summary, weights)
    return Outcome(
        line="",
        count=config.peers.count,
        seed=config.run.seed,
        best=peers[best_peer(summary)],
        mean_peer=float(np.mean([*peers.values()])),
        ensemble=summary["ensemble"][f"test_{figure}"],
        entropy=entropy,
        source=source,
        method=config.run.method or "",
    )


def _entropy(
    run: Path, config: Config, summary: dict[str, Any], weights: bool
) -> tuple[float | None, str]:
    """Entropy of all layers of a network, mean over the peers; and where it comes from."""
    numbers = range(1, config.peers.count + 1)
    files = [run / "peers" / f"peer-{k}.keras" for k in numbers]
    if weights and all(map(is_file, files)):
        peers = [read_model(peer_file(run, summary, k), f"peer {k} of {run}") for k in numbers]
        sums = [sum(layer.entropy for layer in layer_filters(peer)) for peer in peers]
        return _known(np.mean(sums), WEIGHTS)
    grafts = read_grafts(run)
    if grafts is None or _criterion(config) != Entropy():
        return None, ""
    return _known(grafts.information[-1].sum(axis=1).mean(), RECORDS)


def _known(value: Any, source: str) -> tuple[float | None, str]:
    return (float(value), source) if np.isfinite(value) else (None, "")


def _criterion(config: Config) -> Entropy | None:
    """What the run's records measured, where that is an entropy."""
    flat = config.flat()
    if flat.get("graft.criterion") != "entropy":
        return None
    return Entropy(bins=flat["graft.bins"], binning=flat["graft.binning"])
