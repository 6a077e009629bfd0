"""What every engine makes of a model: its training, test and predict steps on one batch.

The eager steps, `BACKEND.eager_steps`, are one Keras train step of one model at a time: the oracle
that every faster engine is held against. They never go through `Model.fit`, and on torch not
through `train_function` either: from Keras 3.16 on that wraps the model in DistributedDataParallel
whenever `torch.distributed` is initialised, which would silently average the gradients of K peers.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import keras

Logs = dict[str, Any]
Around = Callable[[Any, Any], AbstractContextManager[object]]  # of a training step: model, batch


class Steps(Protocol):
    """How one model trains, is tested and predicts on one batch.

    Attributes:
        in_any_thread: whether training steps come to the same whichever thread takes them, beside
            those of other models.
    """

    in_any_thread: bool

    def __init__(self, model: Any) -> None: ...

    def training(self, on: bool) -> None:
        """Turn to training or to inference mode, where the steps do not say it themselves."""

    def train(self, data: Any) -> Logs:
        """One training step on a batch, see `as_handed`; the metrics so far."""

    def test(self, data: Any) -> Logs:
        """Take a batch, see `as_handed`, into the metrics; the metrics so far."""

    def predict(self, x: Any) -> Any:
        """Outputs for a batch."""


def as_handed(data: Any) -> Any:
    """A batch as `keras.Model.fit` and `predict` hand it to a model's own steps.

    Args:
        data: `(x,)`, `(x, y)` or `(x, y, sample_weight)`, Nones for what there is not.

    Returns:
        `(x, y, sample_weight)`, `(x, y)` or x; `(x,)` for an x that is a tuple or a list.
    """
    return keras.utils.pack_x_y_sample_weight(*keras.utils.unpack_x_y_sample_weight(data))


def on_device(data: Any) -> Any:
    """A batch with tensors of the backend in place of arrays."""
    return keras.tree.map_structure(
        lambda part: None if part is None else keras.ops.convert_to_tensor(part), data
    )
