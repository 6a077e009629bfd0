"""The contenders by name, and those that train with Keras."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

REFERENCE = "kgraft"


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
        started: when the process was asked for, seconds since the epoch.
    """

    contender: str
    model: str
    peers: int
    batch_size: int
    dataset: str
    data_dir: str | None
    steps: int
    started: float = 0.0


class Contender(Protocol):
    """K networks in training, however it is done."""

    def block(self, number: int, steps: int) -> None:
        """Train all K for some steps, and wait until they are done."""

    def exchange(self) -> None:
        """What happens between the networks at the end of an epoch."""

    def peak_bytes(self) -> int:
        """The largest memory its processes have held."""


def names(backend: str) -> list[str]:
    """The contenders that a backend has, the reference first."""
    keras_ones = [REFERENCE, "kgraft-eager", "keras-fit"]
    torch_ones = [
        "pytorch",
        "pytorch-channels-last",
        "pytorch-compiled",
        "pytorch-compiled-channels-last",
        "processes",
        "processes-compiled",
    ]
    return keras_ones + torch_ones * (backend == "torch")


def check(dataset: str, data_dir: str | None, names: list[str]) -> int:
    """Refuse sets and models that there are not.

    Args:
        dataset: name of the data set.
        data_dir: where it lies.
        names: architectures.

    Returns:
        Number of training images of the whole set.

    Raises:
        UserError: says what is unknown.
    """
    from kgraft import data, models

    loaded = data.load(dataset, data_dir=data_dir, limit_test=1, validation=0.0)
    for name in names:
        models.build(name, input_shape=loaded.train.images.shape[1:], classes=loaded.classes)
    return len(loaded.train)


def build(task: Task) -> Contender:
    """A contender, ready to take its first step."""
    if task.contender.startswith("pytorch"):
        from kgraft_cli.benchmarks.pytorch import Loop

        return Loop(task)
    if task.contender.startswith("processes"):
        from kgraft_cli.benchmarks.processes import Processes

        return Processes(task)
    return KerasFit(task) if task.contender == "keras-fit" else Kgraft(task)


def warm_up(contender: Contender) -> int:
    """Let compilers and tracers settle: 60 steps, or as many as 5 seconds hold, at least two.

    Returns:
        The number of the next block.
    """
    end = time.perf_counter() + 5
    for number in range(1, 31):
        contender.block(number, 2)
        if time.perf_counter() > end:
            break
    return number + 1


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


class Kgraft:
    """kgraft's peers, stepped and grafted as `GraftingFit` does it."""

    def __init__(self, task: Task) -> None:
        import keras

        import kgraft
        from kgraft import models
        from kgraft.engines.choose import Engine
        from kgraft.grafting import Graft

        self._stream, classes = batches_of(task)
        keras.utils.set_random_seed(0)
        shape = tuple(self._stream._images.shape[1:])
        self.models = [
            models.build(task.model, input_shape=shape, classes=classes) for _ in range(task.peers)
        ]
        for model in self.models:
            model.compile(
                kgraft.SGD(0.1, momentum=0.9, l2=5e-4),
                keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                metrics=["accuracy"],
            )
        self._engine = Engine(
            self.models, "eager" if task.contender == "kgraft-eager" else "compiled"
        )
        self._graft = Graft()
        self._plan = self._graft.check(self.models)

    def block(self, number: int, steps: int) -> None:
        """See `Contender`."""
        streams = [take(self._stream, k, number, steps) for k in range(len(self.models))]
        self._engine.begin_epoch()
        for batches in zip(*streams, strict=True):
            self._engine.step(batches)
        self._engine.wait()
        self._engine.end_epoch()

    def exchange(self) -> None:
        """Graft."""
        self._graft.apply(self.models, self._plan)
        self._engine.wait()

    def peak_bytes(self) -> int:
        """See `Contender`."""
        return own_peak_bytes()


class KerasFit:
    """K times `Model.fit` as a user would write it, one network after the other."""

    def __init__(self, task: Task) -> None:
        import keras

        from kgraft import models

        self._stream, classes = batches_of(task)
        shape = tuple(self._stream._images.shape[1:])

        def plain(layer: Any) -> Any:
            if isinstance(layer, keras.layers.BatchNormalization):
                return keras.layers.BatchNormalization.from_config(layer.get_config())
            return type(layer).from_config(layer.get_config())

        self._models = [
            keras.models.clone_model(
                models.build(task.model, input_shape=shape, classes=classes), clone_function=plain
            )
            for _ in range(task.peers)
        ]
        for model in self._models:
            model.compile(
                keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=5e-4),
                keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                metrics=["accuracy"],
            )

    def block(self, number: int, steps: int) -> None:
        """See `Contender`."""
        for k, model in enumerate(self._models):
            model.fit(take(self._stream, k, number, steps), steps_per_epoch=steps, verbose=0)

    def exchange(self) -> None:
        """Nothing: these networks do not know of each other."""

    def peak_bytes(self) -> int:
        """See `Contender`."""
        return own_peak_bytes()


def own_peak_bytes() -> int:
    """Largest resident memory of this process so far."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
