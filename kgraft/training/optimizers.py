"""SGD as PyTorch does it: coupled L2, momentum without the learning rate in it."""

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from kgraft.engines.backends import BACKEND
from kgraft.errors import UserError
from kgraft.settings import argument


@keras.saving.register_keras_serializable("kgraft")
class SGD(keras.optimizers.Optimizer):
    """Stochastic gradient descent, step for step `torch.optim.SGD`.

    For every trainable variable w with gradient g:

        g <- g + l2 w
        v <- m v + g                    (v starts at 0)
        w <- w - lr v                   or, with Nesterov momentum, w - lr (g + m v)

    `keras.optimizers.SGD` differs twice. Its `weight_decay` shrinks the weights beside the
    gradient, so that momentum does not carry it: about 10x weaker at m = 0.9. And its velocity
    holds the learning rate, so that after a drop old gradients keep moving the weights at the old
    rate.

    Gradients are clipped (`clipnorm`, `clipvalue`, `global_clipnorm`) before the L2 term is added,
    as `torch.nn.utils.clip_grad_norm_` before `step()` does.

    Args:
        learning_rate: lr, a float, a `LearningRateSchedule` or a callable without arguments.
        momentum: m, in [0, 1).
        l2: coefficient of the L2 term, torch's `weight_decay`; 0 or more.
        nesterov: Nesterov momentum; needs a momentum above 0.
        exclude_from_l2: names (regular expressions) of variables without an L2 term, e.g.
            `("bias", "gamma", "beta")`; none by default, as in torch. To exclude single
            variables call Keras' `exclude_from_weight_decay(var_list=...)`, which replaces these
            names and is not saved.
        rate_scales: by paths of variables (regular expressions, looked for in e.g.
            `"stem/kernel"`), how many times lr they move by: torch's groups of parameters. The
            first that is found counts; 1 for all others.
        **options: what every Keras optimizer takes: `name`, `clipnorm`, `clipvalue`,
            `global_clipnorm`, `use_ema`, `ema_momentum`, `ema_overwrite_frequency`,
            `loss_scale_factor`, `gradient_accumulation_steps`. Not `weight_decay`.

    Raises:
        UserError: an argument is of the wrong kind or out of range, a name or path is no regular
            expression, `nesterov` without momentum, or `weight_decay` is given.

    Example:
        >>> import numpy as np
        >>> weight = keras.Variable(np.array([1.0], "float32"))
        >>> optimizer = SGD(0.1, momentum=0.9, l2=0.5)
        >>> for _ in range(2):      # v: 1 + 0.5 = 1.5, then 0.9 * 1.5 + 1 + 0.5 * 0.85 = 2.775
        ...     optimizer.apply([ops.convert_to_tensor(np.array([1.0], "float32"))], [weight])
        >>> round(float(ops.convert_to_numpy(weight)[0]), 6)        # 1 - 0.15 - 0.2775
        0.5725
    """

    def __init__(
        self,
        learning_rate: Any = 0.1,
        momentum: float = 0.9,
        l2: float = 0.0,
        nesterov: bool = False,
        exclude_from_l2: Sequence[str] = (),
        rate_scales: Mapping[str, float] | None = None,
        **options: Any,
    ) -> None:
        if "weight_decay" in options:
            raise UserError(
                "SGD has no weight_decay, which in Keras is decoupled: torch's weight decay is l2=."
            )
        momentum = argument("momentum", momentum, float, low=0, below=1)
        l2 = argument("l2", l2, float, low=0)
        nesterov = argument("nesterov", nesterov, bool)
        exclude_from_l2 = argument("exclude_from_l2", exclude_from_l2, tuple[str, ...])
        rate_scales = {} if rate_scales is None else rate_scales
        rate_scales = dict(argument("rate_scales", rate_scales, Mapping))
        for name, patterns in (("exclude_from_l2", exclude_from_l2), ("rate_scales", rate_scales)):
            for pattern in patterns:
                try:
                    re.compile(pattern)
                except (re.error, TypeError) as error:
                    raise UserError(
                        f"{name} holds {pattern!r}, no regular expression: {error}."
                    ) from error
        for pattern, scale in rate_scales.items():
            rate_scales[pattern] = argument(f"rate_scales[{pattern!r}]", scale, float, low=0)
        if inspect.isclass(learning_rate) or not callable(learning_rate):
            learning_rate = argument("learning_rate", learning_rate, float, low=0)
        if nesterov and not momentum:
            raise UserError("nesterov=True needs a momentum above 0.")
        super().__init__(learning_rate=learning_rate, **options)
        self.momentum = momentum
        self.l2 = l2
        self.nesterov = nesterov
        self.exclude_from_l2 = tuple(exclude_from_l2)
        self.rate_scales = rate_scales
        self._scales: list[float] = []
        self.velocities: list[Any] = []
        self.exclude_from_weight_decay(var_names=list(self.exclude_from_l2))

    def build(self, variables: Sequence[Any]) -> None:
        """Create one velocity per variable, none without momentum.

        Args:
            variables: the model's trainable variables.
        """
        if self.built:
            return
        super().build(variables)
        self._scales = [self._scale_at(variable.path) for variable in variables]
        if self.momentum:
            self.velocities = self.add_optimizer_variables(variables, "velocity")

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Move one variable by one step.

        Args:
            gradient: gradient of the loss, clipped, of the variable's shape.
            variable: the variable.
            learning_rate: lr of this step, scalar.
        """
        step = ops.cast(gradient, variable.dtype)
        if self.l2 and self._use_weight_decay(variable):
            step = step + self.l2 * ops.convert_to_tensor(variable)
        if self.momentum:
            velocity = self.velocities[self._get_variable_index(variable)]
            moved = self.momentum * ops.convert_to_tensor(velocity) + step
            self.assign(velocity, moved)
            step = step + self.momentum * moved if self.nesterov else moved
        scale = self._scales[self._get_variable_index(variable)]
        if scale != 1:
            learning_rate = scale * ops.convert_to_tensor(learning_rate)
        self.assign_sub(variable, ops.cast(learning_rate, variable.dtype) * step)

    def _scale_at(self, path: str) -> float:
        """How many times the learning rate the variable of a path moves by."""
        found = (own for at, own in self.rate_scales.items() if re.search(at, path))
        return next(found, 1.0)

    def _backend_update_step(
        self, gradients: Sequence[Any], variables: Sequence[Any], learning_rate: Any
    ) -> None:
        """Keras' hook for an update of all variables: at once where the backend can."""
        move = BACKEND.fused_sgd(variables)
        if move is None:
            super()._backend_update_step(gradients, variables, learning_rate)
            return
        move(
            gradients,
            variables,
            [self.velocities[self._get_variable_index(v)] for v in variables]
            if self.momentum
            else [],
            learning_rate,
            momentum=self.momentum,
            l2=[self.l2 if self.l2 and self._use_weight_decay(v) else 0.0 for v in variables],
            nesterov=self.nesterov,
            scales=[self._scales[self._get_variable_index(v)] for v in variables]
            if self.rate_scales
            else None,
        )

    def get_config(self) -> dict[str, Any]:
        """Arguments of the constructor."""
        config = super().get_config()
        del config["weight_decay"]
        return {
            **config,
            "momentum": self.momentum,
            "l2": self.l2,
            "nesterov": self.nesterov,
            "exclude_from_l2": list(self.exclude_from_l2),
            **({"rate_scales": dict(self.rate_scales)} if self.rate_scales else {}),
        }
