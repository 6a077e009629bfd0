"""SGD's update of all variables at once, where torch has one kernel for a list of tensors.

The last thing in a step, native, traced or Keras' own: `kgraft.SGD` asks for it.
"""

from collections.abc import Sequence
from typing import Any

import keras
import torch

from kgraft.keras_private import in_stateless_scope

_DEVICES = ("cpu", "cuda", "mps")  # torch's own optimizers use the kernel there


def moves(variables: Sequence[Any]) -> bool:
    """Whether torch's kernel can move these variables in place.

    Not where `torch.compile` reads the step (`compile(jit_compile=True)`), which knows nothing of
    the kernel and fuses the single operations itself.

    Args:
        variables: Keras variables, one or more, on one device.
    """
    known = not in_stateless_scope() and not torch.compiler.is_compiling()
    return known and variables[0].value.device.type in _DEVICES


def sgd(
    gradients: Sequence[Any],
    variables: Sequence[Any],
    velocities: Sequence[Any],
    learning_rate: Any,
    *,
    momentum: float,
    l2: Sequence[float],
    nesterov: bool,
    scales: Sequence[float] | None = None,
) -> None:
    """Move all variables by one step of `kgraft.SGD`, in place.

    Args:
        gradients: one a variable.
        variables: Keras variables.
        velocities: Keras variables, one a variable, none without momentum.
        learning_rate: scalar Keras variable or tensor, whose value nobody waits for, or number.
        momentum: m.
        l2: coefficient of each variable's L2 term.
        nesterov: whether to step ahead along the new velocity.
        scales: how many times the rate each variable moves by; None for once.
    """
    rate = learning_rate
    if not isinstance(rate, int | float):
        rate = keras.ops.convert_to_tensor(rate)
    with torch.no_grad():
        kinds = list(zip(l2, scales or [1.0] * len(l2), strict=True))
        for coefficient, scale in sorted(set(kinds)):
            members = [i for i, own in enumerate(kinds) if own == (coefficient, scale)]
            moved = [variables[i].value for i in members]
            torch._fused_sgd_(
                moved,
                [_laid_out(gradients[i], w) for i, w in zip(members, moved, strict=True)],
                [velocities[i].value for i in members] if velocities else [],
                weight_decay=coefficient,
                momentum=momentum,
                lr=rate if scale == 1 else rate * scale,
                dampening=0.0,
                nesterov=nesterov,
                maximize=False,
                is_first_step=False,
            )


def _laid_out(gradient: Any, like: Any) -> Any:
    """The gradient in the dtype and memory order of its variable, as the kernel takes it."""
    if gradient.dtype == like.dtype and gradient.stride() == like.stride():
        return gradient
    return like.new_empty(like.shape).copy_(gradient)
