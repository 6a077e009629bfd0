"""What every mixer answers to: what is done to the weights of K peers while they train."""

from collections.abc import Sequence

import keras

from kgraft.errors import UserError
from kgraft.grafting.plan import GraftPlan, Grouping
from kgraft.grafting.ring import GraftRecord


class Mixer:
    """Leaves all peers as they are: K independent networks, whose predictions can be averaged.

    The base of all mixers. One overrides `apply`, for what happens at the end of an epoch, or
    `step` and `every_steps`, for what happens between steps.

    Attributes:
        every_steps: `step` is called after every n-th training step; None for never.

    Example:
        >>> import numpy as np
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> Mixer().apply([model]) is None
        True
    """

    every_steps: int | None = None

    def begin(self, models: Sequence[keras.Model]) -> None:
        """Forget what an earlier training has left; called before a training's first step."""

    def end(self, models: Sequence[keras.Model], plan: GraftPlan) -> None:
        """Leave all peers as networks to be used; called when a training has ended."""

    def check(self, models: Sequence[keras.Model]) -> GraftPlan:
        """The plan of the first peer, after comparing the others with it.

        Args:
            models: the K peers, built.

        Returns:
            The plan that holds for all of them.

        Raises:
            UserError: no peer, a model given twice, or peers that do not match; names the first
                difference.
        """
        return plan_of(models)

    def apply(
        self, models: Sequence[keras.Model], plan: GraftPlan | None = None, epoch: int = 0
    ) -> GraftRecord | None:
        """Mix K peers in place at the end of an epoch.

        Args:
            models: the K peers, in ring order: peer k receives from peer k - 1.
            plan: the peers' plan, when `check` has been called before.
            epoch: which one has ended, counted from 0.

        Returns:
            What was measured and done, None for nothing.

        Raises:
            UserError: the peers do not match.
        """
        return None

    def step(self, models: Sequence[keras.Model], plan: GraftPlan, number: int) -> None:
        """Mix K peers in place between two steps.

        Args:
            models: the K peers.
            plan: their plan.
            number: which step has been taken, counted from 0 and on over all epochs.
        """


def plan_of(models: Sequence[keras.Model], grouping: Grouping = "default") -> GraftPlan:
    """The plan that K peers have in common.

    Args:
        models: the K peers, built.
        grouping: see `GraftPlan.of`.

    Raises:
        UserError: no peer, a model given twice, or peers that do not match; names the first
            difference.
    """
    if not models:
        raise UserError("no peers: grafting needs at least one model.")
    if len({id(model) for model in models}) != len(models):
        raise UserError("a model is in the ring twice: every peer must be its own model.")
    plan = GraftPlan.of(models[0], grouping)
    for k, model in enumerate(models[1:], start=2):
        plan.check_matches(GraftPlan.of(model, grouping), "peer 1", f"peer {k}")
    return plan
