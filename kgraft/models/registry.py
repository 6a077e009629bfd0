"""Architectures by name."""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras

from kgraft.errors import UserError, suggest
from kgraft.models.cost import filters, macs, parameters
from kgraft.models.mobilenet import mobilenet_v2
from kgraft.models.resnet_cifar import LEAKY_SLOPE, resnet_cifar
from kgraft.models.resnet_imagenet import resnet18, resnet34, resnet50
from kgraft.models.vgg import vgg16
from kgraft.models.wrn import wide_resnet
from kgraft.settings import argument

_CIFAR_DEPTHS = (8, 20, 32, 44, 56, 110)
_BUILDERS: dict[str, Callable[..., keras.Model]] = {
    **{f"resnet{depth}": partial(resnet_cifar, depth) for depth in _CIFAR_DEPTHS},
    "mobilenet_v2": mobilenet_v2,
    "vgg16": vgg16,
    "wrn-16-2": partial(wide_resnet, 16, 2),
    "wrn-28-10": partial(wide_resnet, 28, 10),
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
}
_LEAKY: dict[str, Callable[..., keras.Model]] = {
    f"resnet{depth}-leaky": partial(
        resnet_cifar, depth, negative_slope=LEAKY_SLOPE, name=f"resnet{depth}-leaky"
    )
    for depth in _CIFAR_DEPTHS
}
_WIDE = re.compile(r"wrn-([0-9]{1,4})-([0-9]{1,3})")


@dataclass(frozen=True)
class Row:
    """What one architecture costs at one input size and number of classes.

    Attributes:
        name: Name in the registry.
        parameters: Trainable numbers.
        macs: Multiply-adds of one image's forward pass.
        filters: Convolution filters, those of shortcuts included.
    """

    name: str
    parameters: int
    macs: int
    filters: int

    @property
    def flops(self) -> int:
        """Floating-point operations of one image's forward pass, two per multiply-add."""
        return 2 * self.macs


def names() -> tuple[str, ...]:
    """Names of the listed architectures.

    `build` knows besides every other `wrn-D-K`, and the CIFAR ResNets as `resnetN-leaky`.
    """
    return tuple(_BUILDERS)


def default_size(name: str) -> int:
    """Side of the images that an architecture is usually trained on, pixels.

    Raises:
        UserError: The name is unknown.
    """
    builder = _builder(name)
    return int(inspect.signature(builder).parameters["input_shape"].default[0])


def build(
    name: str,
    *,
    input_shape: tuple[int, int, int],
    classes: int,
    dropout: float = 0.0,
    head_init: str | None = None,
) -> keras.Model:
    """A new model of a named architecture.

    Its weights are drawn from Keras' global seed (`keras.utils.set_random_seed`).

    Args:
        name: One of `names()`; `wrn-D-K` for a wide ResNet of depth D = 6n + 4 and width K; or
            `resnetN-leaky` for a CIFAR ResNet with leaky rectifiers.
        input_shape: (height, width, channels), pixels, at least 8x8.
        classes: Number of classes, at least 2.
        dropout: Share of activations dropped in a wide ResNet's blocks, in [0, 1).
        head_init: What a wide ResNet's classifier starts from, `"kaiming"` or `"torch"`; None for
            what is usual for the architecture.

    Returns:
        Functional model, images `(n, height, width, channels)` -> logits `(n, classes)`.

    Raises:
        UserError: The name is unknown, the shape or number of classes is out of range, or the
            architecture has no such option.

    Example:
        >>> build("wrn-10-1", input_shape=(8, 8, 1), classes=10).output_shape
        (None, 10)
    """
    builder = _builder(name)
    options: dict[str, Any] = {"dropout": dropout or None, "head_init": head_init}
    wanted = {option: value for option, value in options.items() if value is not None}
    for option in wanted:
        if option not in inspect.signature(builder).parameters:
            raise UserError(f"model {name!r} has no {option}: only wrn-D-K has.")
    return builder(input_shape=input_shape, classes=classes, **wanted)


def _builder(name: str) -> Callable[..., keras.Model]:
    wide = _WIDE.fullmatch(argument("name", name, str))
    if wide:
        return partial(wide_resnet, int(wide[1]), int(wide[2]))
    known = {**_BUILDERS, **_LEAKY}
    if name not in known:
        raise UserError(f"model {name!r} is unknown." + suggest(name, (*known, "wrn-D-K")))
    return known[name]


def describe(input_shape: tuple[int, int, int] = (32, 32, 3), classes: int = 10) -> list[Row]:
    """Costs of the listed architectures; builds each once.

    Args:
        input_shape: (height, width, channels), pixels, at least 8x8.
        classes: Number of classes, at least 2.

    Returns:
        One row per name, in the order of `names()`.

    Raises:
        UserError: The shape or number of classes is out of range.
    """
    return [_row(name, build(name, input_shape=input_shape, classes=classes)) for name in names()]


def _row(name: str, model: keras.Model) -> Row:
    return Row(name, parameters(model), macs(model), filters(model))
