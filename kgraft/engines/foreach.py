"""SGD's update of all variables at once, where torch has one call for a list of tensors."""

from collections.abc import Sequence
from typing import Any

import keras
from keras.src.backend.common.stateless_scope import in_stateless_scope


def updates_lists() -> bool:
    """Whether the backend in use moves variables in place, many in one call."""
    return keras.config.backend() == "torch" and not in_stateless_scope()


def sgd(
    gradients: Sequence[Any],
    variables: Sequence[Any],
    velocities: Sequence[Any],
    learning_rate: Any,
    *,
    momentum: float,
    l2: Sequence[float],
    nesterov: bool,
) -> None:
    """Move all variables by one step of `kgraft.SGD`, in place.

    Args:
        gradients: one a variable; may be overwritten.
        variables: Keras variables.
        velocities: Keras variables, one a variable, none without momentum.
        learning_rate: scalar tensor or number.
        momentum: m.
        l2: coefficient of each variable's L2 term.
        nesterov: whether to step ahead along the new velocity.
    """
    import torch

    with torch.no_grad():
        moved = [variable.value for variable in variables]
        steps = [g.to(w.dtype) for g, w in zip(gradients, moved, strict=True)]
        for coefficient in set(l2) - {0.0}:
            members = [i for i, own in enumerate(l2) if own == coefficient]
            torch._foreach_add_(
                [steps[i] for i in members], [moved[i] for i in members], alpha=coefficient
            )
        if velocities:
            speeds = [velocity.value for velocity in velocities]
            torch._foreach_mul_(speeds, momentum)
            torch._foreach_add_(speeds, steps)
            if nesterov:
                torch._foreach_add_(steps, speeds, alpha=momentum)
            else:
                steps = speeds
        if torch.is_tensor(learning_rate) and learning_rate.device.type != "cpu":
            # a number would wait for the device
            torch._foreach_sub_(moved, torch._foreach_mul(steps, learning_rate))
        else:
            torch._foreach_add_(moved, steps, alpha=-float(learning_rate))
