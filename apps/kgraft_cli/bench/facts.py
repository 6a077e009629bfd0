"""What the parent process cannot know without importing a backend."""

import os
from importlib.metadata import version
from typing import Any


def facts(spec: dict[str, Any]) -> dict[str, Any]:
    """Backend, device, versions and size of the data set, once model and data are known to fit.

    Args:
        spec: `models`, `batch_size` (the largest), `dataset`, `data_dir`.

    Raises:
        UserError: there is no such model or data set, or fewer images than in a batch.
    """
    import keras

    from kgraft import models
    from kgraft.backend import installed_version
    from kgraft.data.order import check_batch_size
    from kgraft.engines.devices import devices

    for name in spec["models"]:
        models.default_size(name)
    count = train_images(spec["dataset"], spec["data_dir"])
    check_batch_size(spec["batch_size"], count)
    backend = keras.config.backend()
    return {
        "backend": backend,
        "device": ", ".join(devices()),
        "cores": cores(),
        "versions": {
            "kgraft": version("kgraft"),
            "keras": version("keras"),
            backend: installed_version(backend),
        },
        "train_images": count,
    }


def train_images(dataset: str, data_dir: str | None) -> int:
    """Number of training images of a whole data set, from its description where it has one.

    Args:
        dataset: its name.
        data_dir: where prepared sets are.
    """
    from kgraft import data
    from kgraft.data.load import describe

    for entry in describe(data_dir):
        if entry.name == dataset and entry.prepared is not None:
            return entry.train
    return len(data.load(dataset, data_dir=data_dir, limit_test=1, validation=0).train)


def cores() -> int:
    """Processors that this process may use."""
    if "sched_getaffinity" in dir(os):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
