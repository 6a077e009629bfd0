"""TensorFlow, imported where it is in use and nowhere else: it need not be installed."""

import inspect
from collections.abc import Hashable, Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from kgraft.engines.backends.base import Backend, Call, Fed, pull
from kgraft.engines.steps import Logs, Steps, as_handed


class _Graphs:
    """Keras' functions of one batch, called as `fit` calls them: from a graph around them.

    The graph knows of a batch what the data set of `fit` would tell it, e.g. no batch size. Of a
    function that is called directly, TensorFlow makes a graph for the first batch's size, and at
    the first other size one for any: Keras, which weighs each output's loss by the size that the
    graph knows, would count the batches before by their size, and from there on each as one.
    """

    def __init__(self) -> None:
        self._told: dict[Any, Any] = {}
        self._made: dict[Any, Any] = {}

    def __call__(self, model: Any, function: Call, data: Any, told: Any = None) -> Logs:
        """Call a function of a model.

        Args:
            model: the model.
            function: its train or test function.
            data: one batch.
            told: `tf.TypeSpec`s in the structure of the batch; by default the batch's own, of any
                batch size.
        """
        import tensorflow as tf

        if model.run_eagerly or not _is_of_keras(function):
            return function(_Drawn([data], told))
        told = tf.nest.map_structure(_of_any_size, data) if told is None else told
        parts, specs = _given(data), tuple(_given(told))
        place = function, str(tf.nest.map_structure(lambda part: part is None, data))
        specs = self._told[place] = _common(self._told.get(place, specs), specs)
        key = place, specs
        if key not in self._made:

            def call(*parts: Any) -> Logs:
                left = iter(parts)
                batch = tf.nest.map_structure(lambda p: None if p is None else next(left), data)
                return function(iter([batch]))

            graph = tf.function(call, input_signature=specs, autograph=False)
            self._made[key] = graph.get_concrete_function()  # else TensorFlow warns of many graphs
        return self._made[key](*parts)


class _Drawn:
    """Batches that were drawn from a data set, and what it tells of them, None if it is none."""

    def __init__(self, batches: list[Any], told: Any) -> None:
        self._left, self.element_spec = iter(batches), told

    def __iter__(self) -> "_Drawn":
        return self

    def __next__(self) -> Any:
        return next(self._left)


def _is_of_keras(function: Call) -> bool:
    """Whether it is Keras' own, not one that somebody has put around it to see every call."""
    home = function.__globals__["__name__"] if inspect.isfunction(function) else ""
    return home.startswith("keras.")


def _given(data: Any) -> list[Any]:
    import tensorflow as tf

    parts = [part for part in tf.nest.flatten(data) if part is not None]
    return [tf.convert_to_tensor(p) if isinstance(p, np.ndarray | np.generic) else p for p in parts]


def _common(before: tuple[Any, ...], now: tuple[Any, ...]) -> tuple[Any, ...]:
    """What two batches have in common, so that lengths that vary make one graph more, not many."""
    found = tuple(a.most_specific_common_supertype([b]) for a, b in zip(before, now, strict=True))
    return now if None in found else found


def _of_any_size(part: Any) -> Any:
    import tensorflow as tf

    spec = None if part is None else tf.type_spec_from_value(part)
    if isinstance(spec, tf.TensorSpec) and spec.shape.rank:
        return tf.TensorSpec([None, *spec.shape[1:]], spec.dtype)
    return spec


class _Steps:
    """Steps of one model: Keras' own functions."""

    in_any_thread = True

    def __init__(self, model: Any) -> None:
        self._model, self._graphs = model, _Graphs()

    def training(self, on: bool) -> None:
        """Nothing to switch: the steps say themselves whether they train."""

    def train(self, data: tuple[Any, ...]) -> Logs:
        self._model.make_train_function()
        return self._graphs(self._model, self._model.train_function, data)

    def test(self, data: tuple[Any, ...]) -> Logs:
        self._model.make_test_function()
        return self._graphs(self._model, self._model.test_function, data)

    def predict(self, x: Any) -> Any:
        self._model.make_predict_function()
        return self._model.predict_function([as_handed((x,))])


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

        self.joined, self.assign = joined, assign

    def read(self, out: NDArray[Any]) -> None:
        for joined, row in zip(self.joined(), out, strict=True):
            np.copyto(row, memoryview(joined))

    def write(self, rows: NDArray[Any]) -> None:
        self.assign(*(keras.ops.convert_to_tensor(row) for row in rows))


class _DeviceTransfer:
    def __init__(self, peers: Sequence[Sequence[Any]]) -> None:
        self._rows = _Transfer(peers)

    def read(self) -> Any:
        return keras.ops.stack(self._rows.joined())

    def write(self, rows: Any) -> None:
        self._rows.assign(*keras.ops.unstack(rows))

    def put(self, rows: Any, k: int, columns: slice, values: Any) -> Any:
        return keras.ops.slice_update(rows, (k, columns.start), values[None])


class TensorFlow(Backend):
    """See `Backend`."""

    how = "one tf.function a peer, peers beside each other"
    eager_steps = _Steps
    transfer = _Transfer
    device_transfer = _DeviceTransfer

    def __init__(self) -> None:
        import tensorflow

        self._tf = tensorflow

    def compiled_steps(self, model: Any, shared: dict[str, Any]) -> Steps | str:
        if model.run_eagerly:
            return f"{model.name!r} is compiled with run_eagerly=True"
        return _Steps(model)

    def fed(self, model: Any, function: Call, *arguments: Any, remembered: dict[str, Any]) -> Fed:
        (iterator,) = arguments
        batches = pull(iterator, model.steps_per_execution)
        if not isinstance(iterator, self._tf.data.Iterator | _Drawn):  # `train_on_batch`
            return batches, function(iter(batches))
        graphs = remembered.setdefault("graphs", _Graphs())
        for batch in batches:
            logs = graphs(model, function, batch, iterator.element_spec)
        return batches, logs

    def devices(self) -> list[str]:
        listed = self._tf.config.list_physical_devices()
        return [d.name for d in listed if d.device_type == "GPU"] or ["cpu"]

    def allow_tf32(self, allowed: bool) -> None:
        self._tf.config.experimental.enable_tensor_float_32_execution(allowed)

    def is_on_host(self, value: Any) -> bool:
        return "CPU" in value.device

    def place(self, value: Any) -> Hashable | None:
        return value.device

    def program(self, function: Call) -> Call:
        return self._tf.function(function, autograph=False)

    def bin_counts(self, values: Any, edges: Any) -> Any:
        places = self._tf.searchsorted(edges, values, side="right")  # edges that are not above
        most = edges.shape[1] + 1
        return self._tf.math.bincount(places, minlength=most, maxlength=most, axis=-1)[:, 1:-1]

    def view(self, value: Any) -> NDArray[Any]:
        return value.numpy()
