"""How peers learn: what GraftingFit's loop asks of it, and the plain way, each from its targets."""

from collections.abc import Sequence
from typing import Any

from kgraft.engines.backends.lazy import LazyBatch
from kgraft.engines.engine import Engine
from kgraft.engines.stepper import compilation
from kgraft.engines.steps import Logs
from kgraft.training.batches import Batch, Feed


class Learning:
    """K peers that learn alone, and the base of those that learn from somebody.

    Args:
        students: the peers' own engine.

    Attributes:
        shared: whether all see the first peer's batches.
    """

    shared = False

    def __init__(self, students: Engine) -> None:
        self.students, self.peers = students, [student.model for student in students.steppers]
        self._engine, self._compiled = students, list[Any]()

    def engine(self) -> Engine:
        """What takes the steps, of the peers or of models around them, compiled as they are now."""
        now = [part for peer in self.peers for part in compilation(peer)]
        if [*map(id, now)] != [*map(id, self._compiled)]:
            self._engine, self._compiled = self.made(), now
        return self._engine

    def told(self) -> dict[str, Any]:
        """Its settings, JSON-able."""
        return {}

    def made(self) -> Engine:
        """The engine of the peers as they are compiled."""
        return self.students

    def feed(self, feed: Feed) -> Feed:
        """A feed with what the peers learn from beside its targets, where it can be had now."""
        return feed

    def views(self, feed: Feed) -> list[Feed]:
        """The peers' feeds, where they share one: the same for all, unless each sees its own."""
        return [feed] * len(self.peers)

    def given(self, batches: Sequence[Batch | LazyBatch]) -> Sequence[Batch | LazyBatch]:
        """What the engine's models are given where the peers are given these batches."""
        return batches

    def of_each(self, logs: list[Logs]) -> list[Logs]:
        """Each peer's metrics, of those of the engine's models."""
        return logs
