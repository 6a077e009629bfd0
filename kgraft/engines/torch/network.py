"""A native network: a functional model as a list of calls, of native layers where there are some.

What `native_steps` puts in the place of a functional model's `call` for the time of a step; its
native layers are those of `layers`.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import torch

from kgraft.engines.torch.layers import TO_FIRST, TO_LAST, NativeLayer, native_layer, padding_of
from kgraft.keras_private import nodes_of, operation_fn

_Values = dict[int, Any]


@dataclass(frozen=True)
class _Call:
    """One operation: reads values, writes values, forgets those that nobody reads any more."""

    run: Callable[[_Values, bool | None], None]
    forget: tuple[int, ...]


class NativeNetwork:
    """What a functional model computes, with native calls for the layers that have one.

    Values are kept as their producers leave them: images between native layers are channels-first
    views of channels-last memory, and are turned (a view, no copy) where a Keras layer reads them.

    Args:
        function: a built functional model.

    Attributes:
        native_layers: how many layers have a native computation.
    """

    def __init__(self, function: Any) -> None:
        self._inputs = [id(tensor) for tensor in function.inputs]
        self._outputs = [id(tensor) for tensor in function.outputs]
        self._structure = function._outputs_struct
        self.native_layers = 0
        nodes = [node for node in nodes_of(function) if node.operation and not node.is_input]
        self._readers = Counter(id(t) for node in nodes for t in node.input_tensors)
        self._readers.update(self._outputs)
        self._channels_first: set[int] = set()
        self._fresh: set[int] = set()
        self._padded: dict[int, tuple[Any, tuple[int, int]]] = {}  # output -> its input, padding
        reads = [self._plan(node, nodes) for node in nodes]
        last = {tensor: place for place, (_, read) in enumerate(reads) for tensor in read}
        kept = set(self._outputs)
        self._calls = [
            _Call(run, tuple(t for t in set(read) if last[t] == place and t not in kept))
            for place, (run, read) in enumerate(reads)
            if run is not None
        ]

    def __call__(self, inputs: Sequence[Any], training: bool | None) -> Any:
        """The model's outputs.

        Args:
            inputs: flat list of input tensors.
            training: as layers take it.
        """
        values: _Values = dict(zip(self._inputs, inputs, strict=True))
        for call in self._calls:
            call.run(values, training)
            for tensor in call.forget:
                del values[tensor]
        outputs = [self._read(values, tensor, first=False) for tensor in self._outputs]
        return keras.tree.pack_sequence_as(self._structure, outputs)

    def _plan(self, node: Any, nodes: Sequence[Any]) -> tuple[Any, list[int]]:
        """The node's call and the tensors it reads; no call for padding that a reader does."""
        found = self._native(node, nodes)
        if found is None:
            return self._keras_call(node), [id(t) for t in node.input_tensors]
        self.native_layers += 1
        layer, tensors = found
        if layer is None:
            return None, []
        return self._native_call(node, layer, tensors), [id(t) for t in tensors]

    def _native(
        self, node: Any, nodes: Sequence[Any]
    ) -> tuple[NativeLayer | None, list[Any]] | None:
        layer, tensors = node.operation, list(node.input_tensors)
        if not isinstance(layer, keras.Layer) or not _is_simple(node):
            return None
        if not all(keras.backend.is_float_dtype(t.dtype) for t in tensors):
            return None
        if len(node.outputs) != 1:
            return None
        output = id(node.outputs[0])
        padding = padding_of(layer)
        if padding is not None:
            if self._readers[output] == 1 and _reader(output, nodes):
                self._padded[output] = (tensors[0], padding)
                return None, tensors
            return None
        source, padding = self._padded.get(id(tensors[0]), (None, (0, 0)))
        found = native_layer(layer, [t.shape for t in tensors], padding)
        if found is None:
            return None
        if found.layout == "first" and len(tensors[0].shape) not in (2, 4):
            return None
        return found, [source] if source is not None else tensors

    def _native_call(self, node: Any, layer: NativeLayer, tensors: Sequence[Any]) -> Any:
        output = id(node.outputs[0])
        keys = [id(t) for t in tensors]
        images = len(tensors[0].shape) == 4
        first = images and (
            layer.layout == "first"
            or (layer.layout == "any" and all(key in self._channels_first for key in keys))
        )
        if first and len(node.outputs[0].shape) == 4:
            self._channels_first.add(output)
        if layer.fresh:
            self._fresh.add(output)
        in_place = keys[0] in self._fresh and self._readers[keys[0]] == 1
        run, read = layer.run, self._read
        dtype = getattr(torch, node.operation.compute_dtype)

        def call(values: _Values, training: bool | None) -> None:
            inputs = [read(values, key, first).to(dtype) for key in keys]
            values[output] = run(inputs, bool(training), in_place)

        return call

    def _keras_call(self, node: Any) -> Any:
        outputs = [id(t) for t in node.outputs]
        keys = [id(t) for t in node.input_tensors]
        read = self._read

        def call(values: _Values, training: bool | None) -> None:
            seen = {key: read(values, key, False) for key in keys}
            args, kwargs = node.arguments.fill_in(seen)
            made = operation_fn(node.operation, training=training)(*args, **kwargs)
            values.update(zip(outputs, keras.tree.flatten(made), strict=True))

        return call

    def _read(self, values: _Values, key: int, first: bool) -> Any:
        value = values[key]
        if first == (key in self._channels_first) or value.ndim != 4:
            return value
        return value.permute(TO_FIRST if first else TO_LAST)


def _is_simple(node: Any) -> bool:
    """Whether the layer is called with one tensor, or one list of tensors, and nothing else."""
    arguments = node.arguments
    if any(value is not None for value in arguments.kwargs.values()) or len(arguments.args) != 1:
        return False  # a mask that is None stands among the keywords
    given = arguments.args[0]
    return all(
        isinstance(part, keras.KerasTensor)
        for part in (given if isinstance(given, list | tuple) else [given])
    )


def _reader(tensor: int, nodes: Sequence[Any]) -> bool:
    """Whether the one node that reads a padded tensor pads by itself, if it is told to."""
    for node in nodes:
        if any(id(t) == tensor for t in node.input_tensors):
            shapes = [t.shape for t in node.input_tensors]
            layer = node.operation
            found = native_layer(layer, shapes) if isinstance(layer, keras.Layer) else None
            return found is not None and found.pads and _is_simple(node)
    return False
