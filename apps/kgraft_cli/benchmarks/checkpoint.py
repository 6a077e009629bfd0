"""What a checkpoint costs beside the epoch that it saves."""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import keras

from kgraft.training.checkpoint_files import CheckpointFiles
from kgraft.training.checkpoints import Checkpoints, Keeper, Taken
from kgraft.training.joint_state import save_random, values_of, variables_of
from kgraft_cli.benchmarks.keras_peers import Kgraft
from kgraft_cli.benchmarks.tasks import Task


def measure_checkpoint(task: Task, repeats: int, images: int) -> dict[str, Any]:
    """Time training steps with and without a checkpoint beside them, in turns, after one of each.

    Args:
        task: the peers and their batches.
        repeats: rounds.
        images: an epoch has so many a peer.

    Returns:
        Medians and ranges, JSON-able: seconds of an epoch, of the copying for which the training
        waits, of the writing beside it, what both are of an epoch, and how much longer the steps
        took beside which a checkpoint was written.
    """
    contender = Kgraft(task)
    steps_an_epoch = -(-images // task.batch_size)

    def take() -> Taken:
        arrays = values_of(variables_of(contender.models))
        return arrays, {"random": save_random(arrays)}

    contender.block(0, 1)
    rounds: dict[str, list[float]] = {"plain": [], "saved": [], "copy": [], "write": []}
    with tempfile.TemporaryDirectory() as directory:
        files = CheckpointFiles(Path(directory) / "alone")
        files.make()
        files.write(0, *take())
        for number in range(1, repeats + 1):
            began = time.perf_counter()
            contender.block(2 * number, task.steps)
            rounds["plain"].append(time.perf_counter() - began)

            began = time.perf_counter()
            with Keeper(Checkpoints(Path(directory) / "beside", every=1), take) as keeper:
                keeper.end_of_epoch(number)
                contender.block(2 * number + 1, task.steps)
            rounds["saved"].append(time.perf_counter() - began)

            began = time.perf_counter()
            taken = take()
            rounds["copy"].append(time.perf_counter() - began)
            began = time.perf_counter()
            files.write(number, *taken)
            rounds["write"].append(time.perf_counter() - began)
        newest = files.directory / f"epoch-{repeats:06d}"
        size = sum(file.stat().st_size for file in newest.iterdir())
    epochs = [plain / task.steps * steps_an_epoch for plain in rounds["plain"]]
    shares = [
        (copy + write) / epoch
        for copy, write, epoch in zip(rounds["copy"], rounds["write"], epochs, strict=True)
    ]
    ratios = [saved / plain for saved, plain in zip(rounds["saved"], rounds["plain"], strict=True)]
    return {
        "backend": keras.config.backend(),
        "model": task.model,
        "peers": task.peers,
        "batch_size": task.batch_size,
        "bytes": size,
        "epoch_seconds": statistics.median(epochs),
        "copy_seconds": statistics.median(rounds["copy"]),
        "write_seconds": statistics.median(rounds["write"]),
        "share_of_epoch": statistics.median(shares),
        "share_of_epoch_range": [min(shares), max(shares)],
        "steps": task.steps,
        "saved_over_plain": statistics.median(ratios),
        "saved_over_plain_range": [min(ratios), max(ratios)],
    }
