"""The optimizers of several peers, where one model trains them all."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import keras


@dataclass
class Step:
    """What is passed on within one step, from a peer's call to its loss and its optimizer.

    Attributes:
        added: by name what each peer's call has added to its loss.
        losses: every peer's own loss and the others' opinion.
    """

    added: dict[str, list[Any]] = field(default_factory=dict)
    losses: list[Any] = field(default_factory=list)


class PeerOptimizers(keras.optimizers.Optimizer):
    """The peers' optimizers as one: each scales its own peer's loss and moves its own peer.

    `keras.optimizers.MultiOptimizer` takes no `LossScaleOptimizer`, and sets the
    `loss_scale_factor` of those that it takes.

    Args:
        peers: compiled models.
        step: where the peers' losses are found.

    Attributes:
        optimizers: those of the peers.
    """

    def __init__(self, peers: Sequence[Any], step: Step) -> None:
        super().__init__(learning_rate=0.0, name="peers")
        self.optimizers = [peer.optimizer for peer in peers]
        self._peers, self._step = tuple(peers), step
        self._places: list[list[int]] = []

    def build(self, variables: Sequence[Any]) -> None:
        """Build each optimizer on its peer's variables.

        Args:
            variables: trainable variables of all peers.
        """
        place = {id(variable): k for k, variable in enumerate(variables)}
        self._places = [[place[id(v)] for v in peer.trainable_variables] for peer in self._peers]
        for optimizer, places in zip(self.optimizers, self._places, strict=True):
            if not optimizer.built:
                optimizer.build([variables[k] for k in places])
        super().build(list(variables))

    @property
    def variables(self) -> list[Any]:
        """Its own, then those of each optimizer."""
        inner = [v for optimizer in self.optimizers for v in optimizer.variables]
        return [*super().variables, *inner]

    def scale_loss(self, loss: Any) -> Any:
        """The sum of the peers' losses, each scaled by its own optimizer.

        Args:
            loss: the unscaled sum, which is not needed.
        """
        del loss
        losses, self._step.losses = self._step.losses, []
        return sum(
            optimizer.scale_loss(own)
            for optimizer, own in zip(self.optimizers, losses, strict=True)
        )

    def apply(self, grads: Sequence[Any], trainable_variables: Any = None) -> None:
        """One step of each optimizer on its peer's variables.

        Args:
            grads: gradients of the scaled losses.
            trainable_variables: the variables that it was built with, or None.
        """
        variables = self._trainable_variables if trainable_variables is None else None
        variables = variables or list(trainable_variables)
        for optimizer, places in zip(self.optimizers, self._places, strict=True):
            optimizer.apply([grads[k] for k in places], [variables[k] for k in places])
        self._iterations.assign_add(1)

    def stateless_apply(
        self, optimizer_variables: Sequence[Any], grads: Sequence[Any], trainable_variables: Any
    ) -> tuple[list[Any], list[Any]]:
        """The same on values: each optimizer's own, as `LossScaleOptimizer` has another one.

        Args:
            optimizer_variables: values of `variables`.
            grads: gradients of the scaled losses.
            trainable_variables: values of the variables that it was built with.

        Returns:
            New values of the trainable variables and of its own.
        """
        moved = list(trainable_variables)
        rest = list(optimizer_variables)
        state = [rest.pop(0) for _ in super().variables]
        state[0] = state[0] + 1  # iterations
        for optimizer, places in zip(self.optimizers, self._places, strict=True):
            own = [rest.pop(0) for _ in optimizer.variables]
            values, own = optimizer.stateless_apply(
                own, [grads[k] for k in places], [moved[k] for k in places]
            )
            for k, value in zip(places, values, strict=True):
                moved[k] = value
            state += own
        return moved, state
