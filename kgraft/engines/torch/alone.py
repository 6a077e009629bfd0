"""A peer by itself in a process that trains with others through `torch.distributed`.

Keras 3.16 wraps a model in DistributedDataParallel and adds up its metrics over all processes
wherever a process group exists, which is right for one model and wrong for K peers: they would
share gradients and scores with whatever peer the other process has at that moment.
"""

import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import Any

_here = threading.local()


@contextlib.contextmanager
def alone(model: Any) -> Iterator[None]:
    """While it is open, in this thread, the model's steps and metrics are those of this process.

    Args:
        model: a Keras model on torch.
    """
    _guard(type(model))
    wrapped, before = vars(model).get("ddp_model"), getattr(_here, "alone", False)
    _here.alone = True
    if wrapped is not None:
        model.__dict__["ddp_model"] = None
    try:
        yield
    finally:
        _here.alone = before
        if wrapped is not None:
            model.__dict__["ddp_model"] = wrapped


def _guard(kind: type) -> None:
    """Let Keras' torch trainer leave out its reduction where `alone` is open."""
    for trainer in kind.__mro__:
        own = vars(trainer)
        reduces = own.get("get_metrics_result")
        if "make_train_function" not in own or reduces is None:
            continue
        if trainer.__module__.split(".")[0] == "keras" and not hasattr(reduces, "guarded"):
            trainer.get_metrics_result = _guarded(trainer, reduces)  # type: ignore[attr-defined]


def _guarded(trainer: Any, reduces: Any) -> Any:
    @functools.wraps(reduces)
    def get_metrics_result(self: Any) -> Any:
        if getattr(_here, "alone", False):
            return super(trainer, self).get_metrics_result()
        return reduces(self)

    get_metrics_result.guarded = True  # type: ignore[attr-defined]
    return get_metrics_result
