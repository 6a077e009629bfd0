"""K processes with a checkpoint file per epoch between them, as the authors train."""

import dataclasses
import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from kgraft_cli.benchmarks.tasks import Task, own_peak_bytes

_PATIENCE = 600  # seconds


class Processes:
    """K child processes, each with one peer and its share of the cores.

    The threads of a process are the cores over K, at least one: the default, all cores for each,
    is slower by far.
    """

    def __init__(self, task: Task) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="kgraft-bench-")
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Any] = []
        self._children = []
        for k in range(task.peers):
            here, there = context.Pipe()
            child = context.Process(target=_child, args=(task, k, self._folder.name, there))
            child.daemon = True
            child.start()
            self._pipes.append(here)
            self._children.append(child)
        self._ask_all("ready")
        self._epoch = 0

    def block(self, number: int, steps: int) -> None:
        """See `Contender`."""
        self._ask_all("block", number, steps)

    def exchange(self) -> None:
        """Every process saves, waits for the previous one's file, loads it and blends."""
        self._ask_all("exchange", self._epoch)
        self._epoch += 1

    def peak_bytes(self) -> int:
        """See `Contender`; the sum over the processes."""
        return sum(self._ask_all("memory"))

    def _ask_all(self, *message: Any) -> list[Any]:
        for pipe in self._pipes:
            pipe.send(message)
        answers = []
        for k, pipe in enumerate(self._pipes, start=1):
            if not pipe.poll(_PATIENCE):
                raise TimeoutError(f"process {k} has not answered for {_PATIENCE} s")
            answers.append(pipe.recv())
        return answers


def _child(task: Task, k: int, folder: str, pipe: Any) -> None:
    import torch

    from kgraft_cli.benchmarks.pytorch import Peer, graft, synchronize
    from kgraft_cli.benchmarks.tasks import batches_of, take

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // task.peers))
    stream, classes = batches_of(task)
    contender = "pytorch-compiled" if "compiled" in task.contender else "pytorch"
    peer = Peer(
        dataclasses.replace(task, contender=contender), int(stream._images.shape[-1]), classes
    )

    def block(number: int, steps: int) -> None:
        peer.network.train()
        for batch in take(stream, k, number, steps):
            peer.step(*batch)
        synchronize()

    def exchange(epoch: int) -> None:
        own = Path(folder) / f"{k}-{epoch}.pt"
        torch.save(peer.network.state_dict(), own.with_suffix(".tmp"))
        own.with_suffix(".tmp").rename(own)
        donor = Path(folder) / f"{(k - 1) % task.peers}-{epoch}.pt"
        limit = time.monotonic() + _PATIENCE
        while not donor.exists():
            if time.monotonic() > limit:
                raise TimeoutError(f"no file {donor}")
            time.sleep(0.001)
        peer.network.load_state_dict(graft(peer.network.state_dict(), torch.load(donor)))
        synchronize()

    actions: dict[str, Any] = {
        "ready": lambda: None,
        "block": block,
        "exchange": exchange,
        "memory": own_peak_bytes,
    }
    while True:
        try:
            name, *arguments = pipe.recv()
        except EOFError:
            return
        pipe.send(actions[name](*arguments))
