"""Native steps: Keras' own train, test and predict steps around native networks.

The first on the way of a step; `traced_steps` goes on from here. Only what happens inside
functional models is replaced, for the time of a step, by their `network`: `train_step`, loss,
metrics, optimizer, regularisers and everything that is not a known layer stay Keras'. So custom
train steps and Distillers (students and teachers) run as they are, on faster networks.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from kgraft.engines.inputs import fits
from kgraft.engines.steps import Around
from kgraft.engines.torch.eager_steps import TorchSteps
from kgraft.engines.torch.host_memory import keep_freed
from kgraft.engines.torch.network import NativeNetwork
from kgraft.engines.torch.settings import settings_of
from kgraft.keras_private import (
    Functional,
    flat_layers,
    get_keras_mask,
    graph_of,
    unpack_singleton,
)


class NativeSteps(TorchSteps):
    """Train, test and predict steps of one model whose functional models are native networks.

    A layer's settings may change between epochs, evaluations and predictions: the networks are made
    anew then.

    Args:
        model: a compiled model.
        around: what every training step is taken in, None for nothing.
    """

    def __init__(self, model: Any, around: Around | None = None) -> None:
        super().__init__(model, around)
        self._calls: dict[Any, Callable[..., Any]] | None = None
        self._settings: tuple[Any, ...] = ()
        self._in_doubt = False
        keep_freed()

    def training(self, on: bool) -> None:
        """See `Steps`; what has been changed by the next step is taken into account."""
        super().training(on)
        self._in_doubt = True

    def _take(self, step: Callable[[Any], Any], data: Any) -> Any:
        with self._native():
            return super()._take(step, data)

    @contextlib.contextmanager
    def _native(self) -> Iterator[None]:
        self._compare()
        if self._calls is None:
            self._settings = settings_of(self._model)
            self._calls = {part: _call_of(part) for part in functional_models(self._model)}
        try:
            for part, call in self._calls.items():
                vars(part)["call"] = call
            yield
        finally:
            for part in self._calls:
                vars(part).pop("call", None)

    def _compare(self) -> None:
        """Forget what was made for other settings, where somebody may have changed some."""
        if (
            self._in_doubt
            and self._calls is not None
            and settings_of(self._model) != self._settings
        ):
            self._forget()
        self._in_doubt = False

    def _forget(self) -> None:
        self._calls = None


def functional_models(model: Any) -> list[Any]:
    """The functional models inside a model, itself included, those inside of Sequential ones too.

    A model with a `call` of its own, in its class or set on it, is not among them.
    """
    found = []
    for layer in flat_layers(model):
        inner = graph_of(layer)
        if (
            isinstance(inner, Functional)
            and type(inner).call is Functional.call
            and "call" not in vars(inner)
            and "call" not in vars(layer)
        ):
            found.append(inner)
    return list(dict.fromkeys(found))


def why_not(model: Any) -> str | None:
    """Why the model has nothing to compile, None if it has."""
    if model.run_eagerly:
        return f"{model.name!r} is compiled with run_eagerly=True"
    found = functional_models(model)
    if not found:
        return f"{model.name!r} is no functional model"
    if not any(NativeNetwork(part).native_layers for part in found):
        return f"{model.name!r} has no layer that torch has a fused operation for"
    return None


def _call_of(model: Any) -> Callable[..., Any]:
    network, shapes = NativeNetwork(model), [own.shape for own in model.inputs]

    def call(inputs: Any, training: Any = None, mask: Any = None, **options: Any) -> Any:
        flat = model._standardize_inputs(inputs)
        if (
            mask is not None
            or options
            or any(x is None or get_keras_mask(x) is not None for x in flat)
            or not all(map(fits, (x.shape for x in flat), shapes))  # Keras' layers look, these not
        ):
            return Functional.call(model, inputs, training=training, mask=mask, **options)
        return unpack_singleton(network(flat, training))

    return call
