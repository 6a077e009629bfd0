"""Which way peers learn, of those that `GraftingFit` may be given."""

from collections.abc import Collection, Sequence
from typing import Any

import keras

from kgraft.engines.engine import Engine
from kgraft.errors import UserError, told
from kgraft.training.learning import Learning
from kgraft.training.mutual import FromEachOther, Mutual
from kgraft.training.teaching import FromTeachers
from kgraft.training.triplets import FromTriplets, Triplet


def learning_of(
    students: Engine,
    teachers: Sequence[keras.Model],
    lesson: tuple[Any, ...],
    mutual: Mutual | None,
    triplet: Triplet | None,
) -> Learning:
    """How peers learn.

    Args:
        students: the peers' own engine.
        teachers: whom they learn from.
        lesson: how, see `FromTeachers`.
        mutual: how they learn from each other.
        triplet: how their features learn distances.

    Raises:
        UserError: two ways exclude each other, or the peers cannot learn so.
    """
    check_triplet(triplet, mutual, teachers)
    if mutual is not None:
        return FromEachOther(students, mutual)
    if teachers:
        return FromTeachers(students, teachers, *lesson)
    return Learning(students) if triplet is None else FromTriplets(students, triplet)


def check_triplet(triplet: Any, mutual: Mutual | None, teachers: Collection[keras.Model]) -> None:
    """Refuse what is no way to learn distances, and such a way beside others to learn.

    Args:
        triplet: what was given.
        mutual: how the peers learn from each other.
        teachers: whom they learn from.

    Raises:
        UserError: it is no `Triplet`, or there is something else too.
    """
    if triplet is None:
        return
    if not isinstance(triplet, Triplet):
        raise UserError(f"triplet is {told(triplet)}: expected kgraft.Triplet() or None.")
    if teachers or mutual is not None:
        other = "teachers=" if teachers else "mutual learning"
        raise UserError(f"triplet= and {other} exclude each other: peers learn from either.")
