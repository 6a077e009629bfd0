"""Optimizers by the name that a run file gives: kgraft's SGD, Keras' by theirs, one's own."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras

from kgraft.errors import UserError, told
from kgraft.parts import Part, is_reference, load
from kgraft.training.optimizers import SGD

SGD_ALONE = ("momentum", "l2", "nesterov", "backbone")
"""Settings of kgraft's SGD; another optimizer has those of its own arguments that are given."""

_EXAMPLE = "mypkg.optim:MyOptimizer"
_WRAPPERS = ("Optimizer", "LossScaleOptimizer", "MultiOptimizer", "SGD")  # and what "sgd" is not
_AVERAGES = "a run's averages of weights are method ema"
_HIDDEN = {
    "learning_rate": "a run's rate is optimizer.lr, on its schedule",
    "name": "it is not looked at",
    **dict.fromkeys(("use_ema", "ema_momentum", "ema_overwrite_frequency"), _AVERAGES),
}


class _Optimizers(Mapping[str, type]):
    """All that can be named; a reference is loaded when it is asked for."""

    def __getitem__(self, name: str) -> type:
        if name == "sgd":
            return SGD
        if is_reference(name):
            return _checked(load(name, "optimizer", _EXAMPLE), name)
        return _keras()[name]

    def __contains__(self, name: object) -> bool:
        return name == "sgd" or is_reference(name) or name in _keras()

    def __iter__(self) -> Iterator[str]:
        return iter(("sgd", *_keras()))

    def __len__(self) -> int:
        return 1 + len(_keras())


OPTIMIZERS = _Optimizers()


def optimizer(name: str) -> Part | None:
    """What makes an optimizer that is not kgraft's SGD, None for that.

    Args:
        name: `"sgd"`, the lower-case name of a class of `keras.optimizers`, or `module:Class`.

    Raises:
        UserError: there is no such module or class, or it cannot be imported.
    """
    if name == "sgd":
        return None
    reference = name if is_reference(name) else ""
    return Part(
        f"optimizer {name!r}",
        OPTIMIZERS[name],
        ("learning_rate",),
        _HIDDEN,
        reference=reference,
        strict=True,
    )


def made(
    name: str,
    arguments: Mapping[str, Any],
    rate: Any,
    decay: float | None,
    heads: Sequence[str] = (),
) -> keras.optimizers.Optimizer:
    """A new optimizer.

    Args:
        name: see `optimizer`.
        arguments: its settings without the rate.
        rate: its learning rate, a number or a schedule.
        decay: share of the weights' moving average that a step keeps, None without averages.
        heads: names of the layers that are not of the backbone, which may have a rate of its own.

    Raises:
        UserError: it cannot be made so.
    """
    averages: dict[str, Any] = {} if decay is None else {"use_ema": True, "ema_momentum": decay}
    part = optimizer(name)
    if part is None:
        own = dict(arguments)
        backbone = own.pop("backbone", 1.0)
        if backbone != 1:
            names = "|".join(map(re.escape, heads))
            own["rate_scales"] = {rf"^(?!(.*/)?({names})/)": backbone}
        return SGD(rate, **own, **averages)
    found: keras.optimizers.Optimizer = part.made({**arguments, **averages}, learning_rate=rate)
    return found


def _keras() -> dict[str, type]:
    found = vars(keras.optimizers).items()
    return {name.lower(): own for name, own in found if _is_one(own) and name not in _WRAPPERS}


def _is_one(found: Any) -> bool:
    return isinstance(found, type) and issubclass(found, keras.optimizers.Optimizer)


def _checked(found: Any, name: str) -> type:
    if _is_one(found):
        own: type = found
        return own
    raise UserError(
        f"optimizer {name!r} is {told(found)}: expected a class of keras.optimizers.Optimizer."
    )
