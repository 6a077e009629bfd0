"""Comparisons: methods x seeds; runs that are missing are done, finished ones are read."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

from kgraft import models
from kgraft.errors import UserError
from kgraft.files import only_writer, sweep
from kgraft.runs.assembly import assemble
from kgraft.runs.comparisons.cost import cost, given_teachers
from kgraft.runs.comparisons.file import Comparison, Entry, differences, taught_by
from kgraft.runs.comparisons.jobs import Job, Watcher, side_by_side
from kgraft.runs.config import Config, read
from kgraft.runs.execution import execute
from kgraft.runs.finished import peer_file, read_run, told_lost
from kgraft.runs.keras_file import read_model
from kgraft.runs.methods import settled, taught_epochs, without_unread
from kgraft.runs.networks import network
from kgraft.runs.ranks import wherever
from kgraft.runs.recorder import Observer
from kgraft.runs.selection import selected
from kgraft.runs.stopping import Stopping
from kgraft.runs.unfinished import read_unfinished

_ASKED = 1 / 3  # of a training step: a teacher's forward pass, for the time that is left
NO_MATTER = (
    *("data.directory", "checkpoint.every", "checkpoint.keep"),
    *("run.tensorboard", "run.csv"),
)


def train_missing(
    comparison: Comparison,
    out: Path,
    observer: Observer,
    tell: Callable[[str], None],
    stopping: Stopping | None = None,
) -> None:
    """Do the runs that are missing, in the order of the seeds; one that was broken off goes on.

    Args:
        comparison: what to compare.
        out: directory of the runs, `out/ENTRY/seed-S` each; finished ones are kept.
        observer: who is told of every step and epoch.
        tell: called with a line of text when a run begins, goes on or is found.
        stopping: who may ask for an end after any step.

    Raises:
        UserError: a run in `out` has other settings (names the difference), or another process is
            at work in it.
        Stopped: by `stopping`.
    """
    with only_writer(out):
        sweep(out)
        for seed in comparison.seeds:
            for entry in comparison.entries:
                if entry.runs_of == entry.name:
                    _ensure(comparison, entry, seed, out, observer, tell, stopping)


def train_missing_beside(
    comparison: Comparison, out: Path, count: int, watcher: Watcher, stopping: Stopping
) -> None:
    """Do the runs that are missing, so many at a time, each in a process of its own.

    Args:
        comparison: see `train_missing`.
        out: see `train_missing`.
        count: how many at a time.
        watcher: who is told how far they are.
        stopping: who may ask for an end.

    Raises:
        UserError: see `train_missing`.
        Stopped: by `stopping`, when every run that was on has saved its last whole epoch.
    """
    with only_writer(out):
        sweep(out)
        side_by_side(missing_jobs(comparison, out), count, watcher, stopping)


def missing_jobs(
    comparison: Comparison, out: Path, *, within: str = "", size: float = 1.0
) -> list[Job]:
    """The runs that are missing.

    Args:
        comparison: see `train_missing`.
        out: see `train_missing`.
        within: what their names begin with.
        size: of one epoch of one network, beside those of other comparisons.

    Raises:
        UserError: see `train_missing`.
    """
    jobs = []
    for seed in comparison.seeds:
        for entry in comparison.entries:
            path, config = run_path(out, entry, seed), _seeded(comparison, entry, seed, out)
            if entry.runs_of != entry.name:
                continue
            if (path / "run.toml").is_file():
                _check_settings(path, config)
            if (path / "summary.json").is_file():
                continue
            networks = config.teachers.count - len(config.teachers.files)
            epochs = networks * taught_epochs(config) + config.peers.count * config.run.epochs
            teachers = entry.named_teachers()
            jobs.append(
                Job(
                    name=f"{within}{entry.name}, seed {seed}",
                    work=size * epochs * (1 + _ASKED * config.teachers.count),
                    epochs=epochs,
                    needs=frozenset(f"{within}{own}, seed {seed}" for own in teachers),
                    train=functools.partial(_train, comparison, entry, seed, out),
                )
            )
    return jobs


def _train(
    comparison: Comparison,
    entry: Entry,
    seed: int,
    out: Path,
    observer: Observer,
    stopping: Stopping,
) -> None:
    _ensure(comparison, entry, seed, out, observer, lambda text: None, stopping)


def read_results(
    comparison: Comparison, out: Path, figure: str = "accuracy"
) -> list[dict[str, Any]]:
    """Results of all runs that are finished.

    Args:
        comparison: what to compare.
        out: directory of the runs.
        figure: which one of the test images, one of `figures_in`.

    Returns:
        One row an entry and seed, see `result_row`, with what the entry costs: `trainings` and
        `given_teachers`. Runs that are not finished give none.

    Raises:
        UserError: no run is finished, or one has other settings; names the difference.
    """
    rows = []
    flops = _flops_in(comparison, out)
    for entry in comparison.entries:
        costs = {
            "trainings": cost(comparison, entry, flops),
            "given_teachers": given_teachers(comparison, entry),
        }
        for seed in comparison.seeds:
            source = comparison.entry(entry.runs_of)
            path = run_path(out, source, seed)
            if (path / "summary.json").is_file():
                _check_settings(path, _seeded(comparison, source, seed, out))
                rows.append({**result_row(entry, seed, path, figure), **costs})
    if not rows:
        raise UserError(f"{out} holds no finished run of this comparison.")
    return rows


def figures_in(comparison: Comparison, out: Path) -> dict[str, str]:
    """What is compared: by the figure's name, what it is called.

    Args:
        comparison: what to compare.
        out: directory of the runs, of which one is finished at least.
    """
    for entry in comparison.entries:
        for seed in comparison.seeds:
            path = run_path(out, comparison.entry(entry.runs_of), seed)
            if (path / "summary.json").is_file():
                _, summary = read_run(path)
                if "test_mAP" in summary["ensemble"]:
                    return {"mAP": "mAP", "accuracy": "rank-1"}
                return {"accuracy": "accuracy on the test images"}
    raise UserError(f"{out} holds no finished run of this comparison.")


def result_row(entry: Entry, seed: int, path: Path, figure: str = "accuracy") -> dict[str, Any]:
    """What one run says for one entry.

    Args:
        entry: the entry.
        seed: the run's seed.
        path: the run's directory.
        figure: see `read_results`.

    Returns:
        `entry`, `seed`, `networks`, `seconds`, `lost` peers if there are any, and the figure, in
        0..1: `last` (the entry's result), `best` (the best-on-validation epoch of the peer that is
        best then; None for soups and ensembles), `mean_peer`, `uniform_soup` and `ensemble`.
    """
    config, summary = read_run(path)
    found = selected(path)
    names = {"peer": "best peer", "soup": "uniform soup", "ensemble": "ensemble"}
    if entry.result in names:
        own = found[names[entry.result]]
    elif "committee" in summary:
        own = {**summary["committee"], "networks": len(summary["teachers"])}
    else:
        raise UserError(f"{entry.name}: {path} has no committee: expected 2 teachers or more.")
    peers = summary["peers"]
    best = None
    if entry.result == "peer":
        best = max(peers, key=lambda row: row["best_validation_accuracy"] or 0.0)
    return {
        "entry": entry.name,
        "seed": seed,
        "method": config.run.method,
        "networks": own["networks"],
        **({"lost": summary["lost"]} if "lost" in summary else {}),
        "seconds": summary["seconds"],
        "last": own[f"test_{figure}"],
        "best": None if best is None else best[f"best_test_{figure}"],
        "mean_peer": sum(row[f"test_{figure}"] for row in peers) / len(peers),
        "uniform_soup": found["uniform soup"][f"test_{figure}"],
        "ensemble": found["ensemble"][f"test_{figure}"],
    }


def _ensure(
    comparison: Comparison,
    entry: Entry,
    seed: int,
    out: Path,
    observer: Observer,
    tell: Callable[[str], None],
    stopping: Stopping | None,
) -> None:
    path = run_path(out, entry, seed)
    config = _seeded(comparison, entry, seed, out)
    if (path / "summary.json").is_file():
        _check_settings(path, config)
        lost = told_lost(read_run(path)[1])
        tell(", ".join([f"{entry.name}, seed {seed}: found", *lost]))
        return
    resume = (path / "run.toml").is_file()
    if resume:
        _check_settings(path, config)
        read_unfinished(path, trusted=True)  # what it names the comparison names
    tell(f"{entry.name}, seed {seed}: {'going on' if resume else 'training'}")
    execute(assemble(config), path, observer, stopping, resume=resume)
    selected(path)
    keras.backend.clear_session()


def _check_settings(path: Path, config: Config) -> None:
    known = wherever(without_unread(read(path / "run.toml")))
    wanted = wherever(_filled(config, known))
    for where, a, b in differences("", known, wanted):
        if where in NO_MATTER or (where == "teachers.files" and _same_runs(a, b)):
            continue
        raise UserError(
            f"{path} holds a run with {where} = {a!r}, the comparison wants {b!r}: "
            "remove it, or give another --out."
        )


def _same_runs(own: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Whether teachers are runs of the same entries and seeds, wherever the comparison lies."""

    def ends(files: tuple[str, ...]) -> list[tuple[str, ...]]:
        depth = {".keras": 4}  # ENTRY/seed-S/peers/peer-K.keras
        return [Path(file).parts[-depth.get(Path(file).suffix, 2) :] for file in files]

    return ends(own) == ends(other)


def _filled(config: Config, known: Config) -> Config:
    """Settings with what a run fills in by itself taken from a run that has done so."""
    wanted = settled(config)

    def filled(own: Any, theirs: Any) -> Any:
        fields = [field.name for field in dataclasses.fields(own)]
        missing = [name for name in fields if getattr(own, name) is None]
        return dataclasses.replace(own, **{name: getattr(theirs, name) for name in missing})

    data = filled(wanted.data, known.data)
    if known.data.size == (data.size, data.size):  # of identities: rows and columns
        data = dataclasses.replace(data, size=known.data.size)
    return dataclasses.replace(
        wanted,
        data=data,
        photos=filled(wanted.photos, known.photos),
    )


def _seeded(comparison: Comparison, entry: Entry, seed: int, out: Path) -> Config:
    config = dataclasses.replace(entry.config, run=dataclasses.replace(entry.config.run, seed=seed))

    def found(file: str) -> str:
        if not file.startswith("@"):
            return file
        name, within = taught_by(file)
        return str(run_path(out, comparison.entry(name), seed) / within)

    files = tuple(map(found, config.teachers.files))
    return dataclasses.replace(config, teachers=dataclasses.replace(config.teachers, files=files))


def run_path(out: Path, entry: Entry, seed: int) -> Path:
    """Where the run of an entry and a seed lies below a comparison's directory."""
    return out / entry.directory() / f"seed-{seed}"


def _flops_in(comparison: Comparison, out: Path) -> Callable[[str], int]:
    """Architecture -> FLOPs of one image like those that finished runs were trained on."""
    config = comparison.entry(comparison.baseline).config

    @functools.cache
    def flops(name: str) -> int:
        for path in (run_path(out, e, s) for e in comparison.entries for s in comparison.seeds):
            if (path / "summary.json").is_file():
                _, summary = read_run(path)
                peer = read_model(peer_file(path, summary, 1), f"peer 1 of {path}")
                shape, classes = peer.input_shape[1:], peer.output_shape[-1]
                return models.flops(network(config, name, shape, classes))
        raise UserError(f"{out} holds no finished run of this comparison.")

    return flops
