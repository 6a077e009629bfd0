"""The contenders by name."""

import time

from kgraft_cli.benchmarks.tasks import Contender, Task

REFERENCE = "kgraft"


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
    from kgraft.engines.precision import building_in

    with building_in(task.precision):
        return _built(task)


def _built(task: Task) -> Contender:
    if task.contender.startswith("pytorch"):
        from kgraft_cli.benchmarks.pytorch import Loop

        return Loop(task)
    if task.contender.startswith("processes"):
        from kgraft_cli.benchmarks.processes import Processes

        return Processes(task)
    from kgraft_cli.benchmarks.keras_peers import KerasFit, Kgraft

    return KerasFit(task) if task.contender == "keras-fit" else Kgraft(task)


def warm_up(contender: Contender) -> int:
    """Let compilers and tracers settle: 60 steps, or as many as 5 seconds hold, at least two.

    As many more as a contender needs that tries its ways to take steps.

    Returns:
        The number of the next block.
    """
    end = time.perf_counter() + 5
    for number in range(1, 31):
        contender.block(number, 2)
        if time.perf_counter() > end and getattr(contender, "is_settled", True):
            break
    return number + 1
