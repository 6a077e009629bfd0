"""What a contender is asked to train, and what all of them share."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Task:
    """What a contender trains.

    Attributes:
        contender: its name.
        model: architecture.
        peers: K.
        batch_size: images a step.
        dataset: name of the data set.
        data_dir: where it lies.
        steps: steps in a measured block.
        precision: in which networks compute, see `building_in`.
        started: when the process was asked for, seconds since the epoch.
    """

    contender: str
    model: str
    peers: int
    batch_size: int
    dataset: str
    data_dir: str | None
    steps: int
    precision: str = "float32"
    started: float = 0.0


class Contender(Protocol):
    """K networks in training, however it is done."""

    def block(self, number: int, steps: int) -> None:
        """Train all K for some steps, and wait until they are done."""

    def exchange(self) -> None:
        """What happens between the networks at the end of an epoch."""

    def peak_bytes(self) -> int:
        """The largest memory its processes have held."""


def batches_of(task: Task) -> tuple[Any, int]:
    """The first peer's stream, augmented as for training, and the number of classes.

    Only as many images as a block reads are loaded; `for_peer` gives the other peers' orders.
    """
    from kgraft import data

    count = task.batch_size * max(task.steps, 2)
    loaded = data.load(
        task.dataset, data_dir=task.data_dir, limit_train=count, limit_test=1, validation=0.0
    )
    stream = data.BatchStream(
        loaded.train.images,
        loaded.train.labels,
        batch_size=task.batch_size,
        seed=0,
        peer=0,
        augment=data.Augment(
            min(loaded.train.images.shape[1:3]) // 8, True, loaded.mean, loaded.std
        ),
    )
    return stream, loaded.classes


def take(stream: Any, k: int, number: int, steps: int) -> Iterator[Any]:
    """The first batches of one epoch of peer k."""
    batches = stream.for_peer(k).epoch(number)
    return (batch for _, batch in zip(range(steps), batches, strict=False))


def own_peak_bytes() -> int:
    """Largest memory of this process so far: taken from its GPU (torch), or resident."""
    import resource

    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.max_memory_reserved():
        return int(torch.cuda.max_memory_reserved())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
