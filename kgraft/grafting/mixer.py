"""What every mixer answers to: what is done to the weights of K peers while they train."""

from collections.abc import Sequence
from typing import Literal

import keras

from kgraft.errors import UserError
from kgraft.grafting.plan import GraftPlan, Grouping
from kgraft.grafting.ring import GraftRecord


class Mixer:
    """Leaves all peers as they are: K independent networks, whose predictions can be averaged.

    The base of all mixers. One overrides `apply`, for what happens at the end of an epoch, or
    `step` and `every_steps`, for what happens between steps. Frozen weights (`trainable=False`)
    belong to no group of the plan: what is in no group is left alone.

    Attributes:
        every_steps: `step` is called after every n-th training step; None for never.

    Example:
        >>> import numpy as np
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> Mixer().apply([model]) is None
        True
    """

    every_steps: int | None = None

    def check(self, models: Sequence[keras.Model]) -> GraftPlan:
        """The plan of the first peer, after comparing the others with it.

        Which weights are frozen belongs to it: whoever trains calls it when a training begins.

        Args:
            models: the K peers, built.

        Returns:
            The plan that holds for all of them.

        Raises:
            UserError: no peer, a model given twice, or peers that do not match; names the first
                difference.
        """
        return plan_of(models)

    def check_schedule(
        self, every: int, epochs_grafted: int | None, evaluate: Literal["after", "before"]
    ) -> None:
        """Refuse a schedule under which this mixer cannot do what it is for.

        Args:
            every: `apply` is called at the end of every n-th epoch.
            epochs_grafted: and at the end of the first n only; None for all.
            evaluate: before or after the validation.

        Raises:
            UserError: says what to set instead.
        """

    def begin(self, models: Sequence[keras.Model]) -> None:
        """Forget what an earlier training has left; called when one begins, before its first step.

        Args:
            models: the K peers, built.
        """

    def end(self, models: Sequence[keras.Model], plan: GraftPlan) -> None:
        """Leave all peers as networks to be used; called when a training has ended.

        Args:
            models: the K peers.
            plan: their plan.
        """

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


def plan_of(
    models: Sequence[keras.Model], grouping: Grouping = "default", *, blend_frozen: bool = False
) -> GraftPlan:
    """The plan that K peers have in common.

    Args:
        models: the K peers, built.
        grouping: see `GraftPlan.of`.
        blend_frozen: see `GraftPlan.of`.

    Raises:
        UserError: no peer, a model given twice, or peers that do not match; names the first
            difference.
    """
    if not models:
        raise UserError("no peers: grafting needs at least one model.")
    if len({id(model) for model in models}) != len(models):
        raise UserError("a model is in the ring twice: every peer must be its own model.")
    plan, *others = (GraftPlan.of(m, grouping, blend_frozen=blend_frozen) for m in models)
    for k, other in enumerate(others, start=2):
        plan.check_matches(other, "peer 1", f"peer {k}")
    return plan
