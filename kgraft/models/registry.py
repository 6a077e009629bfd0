"""Architectures by name: kgraft's, Keras' applications, those of packages, and one's own."""

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import entry_points
from typing import Any

import keras

from kgraft.errors import UserError, suggest
from kgraft.models import applications
from kgraft.models.classifier import check_classifier
from kgraft.models.cost import filters, macs, parameters
from kgraft.models.mobilenet import mobilenet_v2
from kgraft.models.mobilenet_imagenet import mobilenet_v2_imagenet
from kgraft.models.resnet_cifar import LEAKY_SLOPE, resnet_cifar
from kgraft.models.resnet_imagenet import resnet18, resnet34, resnet50
from kgraft.models.vgg import vgg16
from kgraft.models.wrn import wide_resnet
from kgraft.parts import Part, brought_by, load
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
    "mobilenet_v2-224": mobilenet_v2_imagenet,
}
_LEAKY: dict[str, Callable[..., keras.Model]] = {
    f"resnet{depth}-leaky": partial(
        resnet_cifar, depth, negative_slope=LEAKY_SLOPE, name=f"resnet{depth}-leaky"
    )
    for depth in _CIFAR_DEPTHS
}
_WIDE = re.compile(r"wrn-([0-9]{1,4})-([0-9]{1,3})")
_GIVEN = ("input_shape", "classes")
_EXAMPLE = "mypkg.nets:build"
_GROUP = "kgraft.models"  # of entry points
_HAVE = {
    "dropout": "wrn-D-K",
    "head_init": "wrn-D-K",
    "last_stride": "resnet18, 34, 50 or mobilenet_v2-224",
}


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


def packaged() -> tuple[str, ...]:
    """Names of the architectures that installed packages bring, as entry points `kgraft.models`."""
    return tuple(sorted({entry.name for entry in entry_points(group=_GROUP)}))


def default_size(name: str) -> int:
    """Side of the images that an architecture is usually trained on, pixels.

    Raises:
        UserError: The name is unknown, or that of an architecture which says no size.
    """
    foreign = part(argument("name", name, str))
    build = _builder(name) if foreign is None else foreign.call
    usual = inspect.signature(build).parameters.get("input_shape")
    if usual is None or not isinstance(usual.default, tuple):
        raise UserError(f"model {name!r} has no usual size: say which, pixels.")
    return int(usual.default[0])


def is_foreign(name: str) -> bool:
    """Whether a name is of an architecture that is not kgraft's; imports nothing."""
    if _is_kgrafts(name):
        return False
    return ":" in name or name in applications.names() or bool(_packaged(name))


def part(name: str) -> Part | None:
    """What builds an architecture that is not kgraft's, None for one that is, or for no name.

    Args:
        name: One of `keras.applications`, an entry point of the group `kgraft.models`, or
            `module:function`.

    Raises:
        UserError: There is no such module or function, or it cannot be imported.
    """
    if not is_foreign(name):
        return None
    if name in applications.names():
        return applications.application(name)
    if name.startswith("keras.applications"):
        plain = name.partition(":")[2]
        raise UserError(f"model {name!r}: Keras' own are asked for by name alone: {plain!r}.")
    brought = _packaged(name)
    reference, package = (
        (f"{brought.module}:{brought.attr}", brought.dist) if brought else (name, None)
    )
    whose = brought_by(brought, "model") if brought else "model"
    return Part(
        f"model {name!r}",
        load(reference, whose, _EXAMPLE),
        _GIVEN,
        reference=reference,
        distribution=None if package is None else package.name,
    )


def build(
    name: str,
    *,
    input_shape: tuple[int, int, int],
    classes: int,
    dropout: float | None = None,
    head_init: str | None = None,
    last_stride: int | None = None,
    **own: Any,
) -> keras.Model:
    """A new model of a named architecture.

    Its weights are drawn from Keras' global seed (`keras.utils.set_random_seed`).

    Args:
        name: One of `names()`; `wrn-D-K` for a wide ResNet of depth D = 6n + 4 and width K;
            `resnetN-leaky` for a CIFAR ResNet with leaky rectifiers; a name of
            `keras.applications`, whose models get fresh weights and give logits, without the layers
            that normalise images where Keras lets them be left out; or `module:function` of one's
            own, which is called with `input_shape`, `classes` and what else is given.
        input_shape: (height, width, channels), pixels, at least 8x8.
        classes: Number of classes, at least 2.
        dropout: Share of activations dropped in a wide ResNet's blocks, in [0, 1).
        head_init: What a wide ResNet's classifier starts from, `"kaiming"` or `"torch"`; None for
            what is usual for the architecture.
        last_stride: Stride of the last stage of an ImageNet ResNet and of `mobilenet_v2-224`, 1 or
            2; None for the usual 2.
        own: Further arguments of a function that is not kgraft's.

    Returns:
        Functional or sequential model, images `(n, height, width, channels)` -> logits
        `(n, classes)`.

    Raises:
        UserError: The name is unknown, the shape or number of classes is out of range, the
            architecture has no such option, or somebody else's function has failed or returned
            something else.

    Example:
        >>> build("wrn-10-1", input_shape=(8, 8, 1), classes=10).output_shape
        (None, 10)
    """
    options: dict[str, Any] = {
        "dropout": dropout,
        "head_init": head_init,
        "last_stride": last_stride,
    }
    foreign = part(argument("name", name, str))
    if foreign is not None:
        own |= {option: value for option, value in options.items() if value is not None}
        foreign.check(own, lambda option: "kgraft.models.build:")
        model = foreign.made(own, input_shape=tuple(input_shape), classes=classes)
        check_classifier(model, foreign.what, tuple(input_shape), classes)
        return model
    builder = _builder(name)
    wanted = {option: value for option, value in options.items() if value}
    for option in (*own, *wanted):
        if option not in options:
            raise UserError(f"model {name!r} has no {option}." + suggest(option, options))
        if option not in inspect.signature(builder).parameters:
            raise UserError(f"model {name!r} has no {option}: only {_HAVE[option]} has.")
    return builder(input_shape=input_shape, classes=classes, **wanted)


def _is_kgrafts(name: str) -> bool:
    return bool(_WIDE.fullmatch(name)) or name in _BUILDERS or name in _LEAKY


def _packaged(name: str) -> Any:
    """The entry point of a name, None where no package has one."""
    return next(iter(entry_points(group=_GROUP, name=name)), None)


def _builder(name: str) -> Callable[..., keras.Model]:
    wide = _WIDE.fullmatch(argument("name", name, str))
    if wide:
        return partial(wide_resnet, int(wide[1]), int(wide[2]))
    known = {**_BUILDERS, **_LEAKY}
    if name not in known:
        near = suggest(name, (*known, "wrn-D-K", *applications.names(), *packaged()))
        if not near.startswith(" Did"):
            near = (
                f"{suggest(name, (*known, 'wrn-D-K'))[:-1]}, names of keras.applications, or "
                f"module:function of your own, e.g. {_EXAMPLE}."
            )
        raise UserError(f"model {name!r} is unknown.{near}")
    return known[name]


def describe(
    input_shape: tuple[int, int, int] = (32, 32, 3),
    classes: int = 10,
    chosen: Sequence[str] = (),
) -> list[Row]:
    """Costs of architectures; builds each once.

    Args:
        input_shape: (height, width, channels), pixels, at least 8x8.
        classes: Number of classes, at least 2.
        chosen: Which ones, by any name that `build` knows; none for all of `names()`.

    Returns:
        One row per name, in their order.

    Raises:
        UserError: The shape or number of classes is out of range.
    """
    wanted = chosen or names()
    return [_row(name, build(name, input_shape=input_shape, classes=classes)) for name in wanted]


def _row(name: str, model: keras.Model) -> Row:
    return Row(name, parameters(model), macs(model), filters(model))
