"""The eager engine's steps on torch: Keras' own."""

from collections.abc import Callable
from typing import Any

import torch

from kgraft.engines.steps import Around, Logs, as_handed, on_device
from kgraft.engines.torch.alone import alone


class TorchSteps:
    """Steps of one model on torch.

    Args:
        model: a compiled model.
        around: what every training step is taken in, None for nothing.
    """

    in_any_thread = False  # Keras keeps a generator of random numbers, and scopes, for each thread

    def __init__(self, model: Any, around: Around | None = None) -> None:
        self._model, self._around = model, around

    def training(self, on: bool) -> None:
        self._model.train(on)

    def train(self, data: Any) -> Logs:
        return self._take(self._train_step, on_device(data))

    def test(self, data: Any) -> Logs:
        with torch.no_grad():
            return self._take(self._model.test_step, on_device(data))

    def predict(self, x: Any) -> Any:
        with torch.no_grad():
            return self._take(self._model.predict_step, on_device(as_handed((x,))))

    def _train_step(self, data: Any) -> Logs:
        if self._around is None:
            return self._model.train_step(data)
        with self._around(self._model, data):
            return self._model.train_step(data)

    def _take(self, step: Callable[[Any], Any], data: Any) -> Any:
        """Run a step with the model's own module and metrics."""
        with alone(self._model):
            return step(data)
