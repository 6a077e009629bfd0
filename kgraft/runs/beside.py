"""A run's directory to a process that only keeps its checkpoints there."""

from pathlib import Path
from typing import Any

import keras

from kgraft.runs.directory import checkpoints_of
from kgraft.runs.recorder import NoLines


class Beside(NoLines):
    """What `RunDirectory` is to the process that writes the run, as far as others need it.

    Args:
        path: the directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def checkpoints(self, phase: str) -> Path:
        """Where a phase of the run is saved."""
        return checkpoints_of(self.path, phase)

    def has_metrics(self, phase: str) -> bool:
        """Whether a phase has begun before: another process knows, and says so."""
        return False

    def save_model(self, model: keras.Model, weights: list[Any] | None, name: str) -> None:
        """Save nothing: this process has given what it has."""

    def ended_teacher(self, number: int, teacher: keras.Model) -> dict[str, Any] | None:
        """Nothing: another process trains teachers."""

    def end_teacher(self, number: int, row: dict[str, Any]) -> None:
        """See `ended_teacher`."""

    def finish(self, summary: dict[str, Any]) -> None:
        """Write nothing."""
