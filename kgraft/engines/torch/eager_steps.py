"""The eager engine's steps on torch: Keras' own."""

from collections.abc import Callable
from typing import Any

import torch

from kgraft.engines.steps import Logs, as_handed, on_device
from kgraft.engines.torch.alone import alone


class TorchSteps:
    """Steps of one model on torch."""

    in_any_thread = False  # Keras keeps a generator of random numbers, and scopes, for each thread

    def __init__(self, model: Any) -> None:
        self._model = model

    def training(self, on: bool) -> None:
        self._model.train(on)

    def train(self, data: Any) -> Logs:
        return self._take(self._model.train_step, on_device(data))

    def test(self, data: Any) -> Logs:
        with torch.no_grad():
            return self._take(self._model.test_step, on_device(data))

    def predict(self, x: Any) -> Any:
        with torch.no_grad():
            return self._take(self._model.predict_step, on_device(as_handed((x,))))

    def _take(self, step: Callable[[Any], Any], data: Any) -> Any:
        """Run a step with the model's own module and metrics."""
        with alone(self._model):
            return step(data)
