"""TensorFlow, imported where it is in use and nowhere else: it need not be installed."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from kgraft.engines.backends.base import Backend, Call, Fed, pull
from kgraft.engines.steps import Logs, Steps


class _Steps:
    """Steps of one model: Keras' own functions."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def training(self, on: bool) -> None:
        """Nothing to switch: the steps say themselves whether they train."""

    def train(self, data: tuple[Any, ...]) -> Logs:
        self._model.make_train_function()
        return self._model.train_function(iter([data]))

    def test(self, data: tuple[Any, ...]) -> Logs:
        self._model.make_test_function()
        return self._model.test_function(iter([data]))

    def predict(self, x: Any) -> Any:
        self._model.make_predict_function()
        return self._model.predict_function([(x,)])


class _Transfer:
    def __init__(self, peers: Sequence[Sequence[Any]]) -> None:
        import tensorflow as tf

        values = [[variable.value for variable in peer] for peer in peers]
        sizes = [int(np.prod(value.shape)) for value in values[0]]

        @tf.function(autograph=False)
        def joined() -> list[Any]:
            return [tf.concat([tf.reshape(value, [-1]) for value in own], 0) for own in values]

        @tf.function(autograph=False)
        def assign(*rows: Any) -> None:
            for own, row in zip(values, rows, strict=True):
                for value, part in zip(own, tf.split(row, sizes), strict=True):
                    value.assign(tf.reshape(part, value.shape), read_value=False)

        self._joined, self._assign = joined, assign

    def read(self, out: NDArray[Any]) -> None:
        for joined, row in zip(self._joined(), out, strict=True):
            np.copyto(row, memoryview(joined))

    def write(self, rows: NDArray[Any]) -> None:
        self._assign(*(keras.ops.convert_to_tensor(row) for row in rows))


class TensorFlow(Backend):
    """See `Backend`."""

    how = "one tf.function a peer, peers beside each other"
    eager_steps = _Steps
    transfer = _Transfer

    def __init__(self) -> None:
        import tensorflow

        self._tf = tensorflow

    def compiled_steps(self, model: Any, shared: dict[str, Any]) -> Steps | str:
        if model.run_eagerly:
            return f"{model.name!r} is compiled with run_eagerly=True"
        return _Steps(model)

    def fed(self, model: Any, function: Call, *arguments: Any) -> Fed:
        (iterator,) = arguments
        batches = pull(iterator, model.steps_per_execution)
        return batches, function(iter(batches))

    def devices(self) -> list[str]:
        listed = self._tf.config.list_physical_devices()
        return [d.name for d in listed if d.device_type == "GPU"] or ["cpu"]

    def allow_tf32(self, allowed: bool) -> None:
        self._tf.config.experimental.enable_tensor_float_32_execution(allowed)

    def is_on_host(self, value: Any) -> bool:
        return "CPU" in value.device

    def view(self, value: Any) -> NDArray[Any]:
        return value.numpy()
