"""What every method costs, beside the baseline in the same rounds."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import keras

from kgraft_cli.benchmarks.tasks import Task

_WHOLE = {"repr.full_epochs": 1, "repr.pruned_epochs": 1, "repr.cycles": 1, "run.epochs": 2}


@dataclass
class _Measured:
    run: Any
    assembly: Any
    steps: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    epoch: int = 0


def measure_methods(task: Task, repeats: int, chosen: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Train methods a little, in turns, in one process.

    Args:
        task: architecture, K for the methods that need several peers, batch size, data, steps.
        repeats: rounds; ratios are taken within a round.
        chosen: which methods, beside the baseline; all by default.

    Returns:
        One JSON-able row a method: seconds of one peer's step (what happens between steps
        included), the same over the baseline's, and seconds of what happens at an epoch's end.
    """
    from kgraft.runs.methods import METHODS

    names = dict.fromkeys(["baseline", *(chosen or METHODS)])
    measured = {method: _prepared(task, method) for method in names}
    for own in measured.values():
        _round(own, task)
        own.steps.clear()
        own.ends.clear()
    for _ in range(repeats):
        for own in measured.values():
            _round(own, task)
    baseline = measured["baseline"].steps
    rows = []
    for method, own in measured.items():
        ratios = [mine / plain for mine, plain in zip(own.steps, baseline, strict=True)]
        rows.append(
            {
                "backend": keras.config.backend(),
                "model": task.model,
                "batch_size": task.batch_size,
                "method": method,
                "peers": len(own.run.peers),
                "step_seconds": statistics.median(own.steps),
                "over_baseline": statistics.median(ratios),
                "over_baseline_range": [min(ratios), max(ratios)],
                "epoch_end_seconds": statistics.median(own.ends),
            }
        )
    return rows


def _prepared(task: Task, method: str) -> _Measured:
    from kgraft.runs.assembly import assemble
    from kgraft.runs.config import Config
    from kgraft.runs.execution import grafting_fit
    from kgraft.runs.methods import METHODS, reads

    changes: dict[str, Any] = {
        "run.method": method,
        "run.batch_size": task.batch_size,
        "model.name": task.model,
        "teachers.model": task.model,
        "data.name": task.dataset,
        "data.limit_train": max(task.batch_size * task.steps, 200),
        "data.limit_test": 100,
        "data.validation": 0.0,
        **_WHOLE,
    }
    if task.data_dir is not None:
        changes["data.directory"] = task.data_dir
    if METHODS[method].least > 1:
        changes["peers.count"] = max(task.peers, METHODS[method].least)
    config = Config()
    read = reads(METHODS[method], config)
    for key, value in changes.items():
        if not key.startswith(("repr.", "teachers.")) or key in read:
            config = config.changed(key, value, "kgraft bench")
    assembly = assemble(config)
    return _Measured(grafting_fit(assembly, assembly.untrained), assembly)


def _round(own: _Measured, task: Task) -> None:
    run, epoch = own.run, own.epoch
    started = time.perf_counter()
    run.fit(
        own.assembly.train,
        initial_epoch=epoch,
        epochs=epoch + 1,
        steps_per_epoch=task.steps,
        verbose=0,
    )
    for peer in run.peers:
        keras.ops.convert_to_numpy(peer.weights[-1].value)
    whole = time.perf_counter() - started
    started = time.perf_counter()
    run.mixer.mix(run.peers, 1)
    for peer in run.peers:
        keras.ops.convert_to_numpy(peer.weights[-1].value)
    end = time.perf_counter() - started
    own.steps.append(max(whole - end, 0.0) / task.steps / len(run.peers))
    own.ends.append(end)
