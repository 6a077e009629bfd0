"""A ring of two processes beside the same peers in one: epochs a second, and what travels."""

import multiprocessing
import os
import socket
import statistics
import time
from typing import Any

from kgraft.links.cost import predicted_exchange
from kgraft_cli.benchmarks.tasks import Task, batches_of

RANKS = 2
_PATIENCE = 600  # seconds
_LARGE = 1 << 25  # bytes of the message that tells the bandwidth
_TIMES = 7  # that a message is sent


def measure_ring(task: Task, repeats: int) -> dict[str, Any]:
    """Time epochs of a ring of two processes, a thread each, and of one process with two, in turns.

    Args:
        task: the peers and their batches; an epoch has its steps, and ends with a grafting.
        repeats: rounds.

    Returns:
        Medians and ranges, JSON-able: seconds of an epoch of both, how many times as fast the ring
        is, bytes that a rank sends an epoch, those of one peer's weights, seconds of the exchange
        in it and what `kgraft.links.cost` predicts from bandwidth and latency as measured here.
    """
    port = _free_port()
    ring = [_Worker(task, rank, port) for rank in range(RANKS)]
    alone = _Worker(task, None, port)
    everybody = [*ring, alone]
    for group in (ring, [alone]):
        _ask(group, "epoch")  # builds, traces, and finds out how steps are taken fastest
        _ask(group, "epoch")
    bandwidth, latency = _ask(ring, "link")[0]
    before = _ask(ring, "told")[0]
    rounds: dict[str, list[float]] = {"ring": [], "alone": []}
    for _ in range(repeats):
        for name, group in (("ring", ring), ("alone", [alone])):
            began = time.perf_counter()
            _ask(group, "epoch")
            rounds[name].append(time.perf_counter() - began)
    after = _ask(ring, "told")[0]
    for worker in everybody:
        worker.process.terminate()
    ratios = [one / both for both, one in zip(*rounds.values(), strict=True)]
    exchange = (after["exchanged"] - before["exchanged"]) / repeats
    return {
        "model": task.model,
        "peers": task.peers,
        "batch_size": task.batch_size,
        "steps": task.steps,
        "ring_seconds": statistics.median(rounds["ring"]),
        "alone_seconds": statistics.median(rounds["alone"]),
        "ring_over_alone": statistics.median(ratios),
        "ring_over_alone_range": [min(ratios), max(ratios)],
        "bytes_sent": (after["sent"] - before["sent"]) // repeats,
        "bytes_of_a_peer": after["weights"],
        "exchange_seconds": exchange,
        "predicted_seconds": predicted_exchange(
            RANKS, after["weights"], bandwidth=bandwidth, latency=latency
        ),
        "bandwidth": bandwidth,
        "latency": latency,
    }


class _Worker:
    """A process with some of the peers."""

    def __init__(self, task: Task, rank: int | None, port: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, there = context.Pipe()
        self.process = context.Process(target=_child, args=(task, rank, port, there), daemon=True)
        self.process.start()


def _ask(workers: list[_Worker], message: str) -> list[Any]:
    for worker in workers:
        worker.pipe.send(message)
    answers = []
    for worker in workers:
        if not worker.pipe.poll(_PATIENCE):
            raise TimeoutError(f"a process has not answered for {_PATIENCE} s")
        answers.append(worker.pipe.recv())
    return answers


def _child(task: Task, rank: int | None, port: int, pipe: Any) -> None:
    if rank is not None:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(RANKS)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    import keras

    import kgraft
    from kgraft import models
    from kgraft.engines.backends import BACKEND

    BACKEND.use_cores(RANKS if rank is None else 1)
    link = None if rank is None else kgraft.RingLink(timeout=_PATIENCE)
    here = range(task.peers) if link is None else link.places(task.peers)
    stream, classes = batches_of(task)
    peers = []
    for k in here:
        keras.utils.set_random_seed(k)
        shape = tuple(stream._images.shape[1:])
        peers.append(models.build(task.model, input_shape=shape, classes=classes))
        peers[-1].compile(
            kgraft.SGD(0.1, momentum=0.9, l2=5e-4),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
    training = kgraft.GraftingFit(peers, link=link)
    while True:
        try:
            message = pipe.recv()
        except EOFError:
            return
        if message == "epoch":
            training.fit(stream, epochs=1, verbose=0, steps_per_epoch=task.steps)
            pipe.send(None)
        elif message == "link":
            pipe.send(_rates(link))
        else:
            floats = [w for w in peers[0].weights if keras.backend.is_float_dtype(w.dtype)]
            size = sum(4 * int(w.value.numel()) for w in floats)
            told = {"sent": link.rows.sent, "exchanged": link.exchanged} if link is not None else {}
            pipe.send({**told, "weights": size})


def _rates(link: Any) -> tuple[float, float]:
    """Bytes a second that both ranks move together, and seconds of a message of next to nothing."""
    import numpy as np

    other = 1 - link.rank
    seconds = {}
    for size in (8, _LARGE):
        taken = []
        for _ in range(_TIMES):
            link.barrier()
            began = time.perf_counter()
            link.exchange({other: np.zeros(size, np.uint8)}, {other: np.empty(size, np.uint8)})
            taken.append(time.perf_counter() - began)
            link.confirm()
        seconds[size] = statistics.median(taken)
    return RANKS * _LARGE / (seconds[_LARGE] - seconds[8]), seconds[8]


def _free_port() -> int:
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        port: int = own.getsockname()[1]
        return port
