"""Where GraftCallback keeps its peers for a `fit` that is killed and started again."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import keras

from kgraft.errors import UserError
from kgraft.grafting.ring import GraftRecord
from kgraft.keras_private import flat_layers
from kgraft.nests import flat, nested
from kgraft.training.checkpoint_files import CheckpointFiles, DamagedError
from kgraft.training.joint_state import (
    assign,
    restore_random,
    restore_records,
    save_random,
    save_records,
    values_of,
    variables_of,
)

Records = Sequence[tuple[int, GraftRecord]]

_KEPT = 2  # a kill between this backup and the model's leaves the model one epoch behind


class PeerBackup:
    """Weights, seeds and optimizers of some models after each epoch, a checkpoint an epoch.

    The process' own random numbers are kept too: on torch, dropout without a seed draws from them.

    A checkpoint is whole or not there, and one that is damaged is noticed. The last two are kept,
    so that the peers can follow a model whose own backup is one epoch older.

    Args:
        directory: where they lie; made when the first one is written.
        models: what is saved.
        without: models whose variables are somebody else's to save, but for the seeds of their
            random layers, which Keras' `BackupAndRestore` forgets.
    """

    def __init__(
        self, directory: Path, models: Sequence[keras.Model], without: Iterable[keras.Model] = ()
    ) -> None:
        self._files = CheckpointFiles(directory, _KEPT)
        self._models, self._without = models, list(without)

    def save(self, epoch: int, progress: dict[str, Any], records: Records = ()) -> None:
        """Write the state after `epoch` whole epochs.

        Args:
            epoch: number of epochs done, that is, the epoch to resume at.
            progress: where the training stands then, JSON-able values and NumPy arrays.
            records: what graftings measured and did, as `(epoch, GraftRecord)`.

        Raises:
            StorageError: it cannot be written.
        """
        arrays = values_of(self._variables())
        state = {
            "progress": flat(progress, arrays),
            "records": save_records(records, arrays),
            "random": save_random(arrays),
        }
        self._files.make()
        self._files.write(epoch, arrays, state)

    def restore(self, epoch: int) -> dict[str, Any] | None:
        """Put the state after `epoch` epochs back into the models.

        Args:
            epoch: the epoch that `fit` resumes at.

        Returns:
            Where the training stood, with its `records`; None where nothing was kept of that epoch.

        Raises:
            UserError: a model is not built, or what was kept is of other models, or damaged.
        """
        if epoch not in self._files.epochs():
            return None
        for model in self._models:
            if not model.built:
                raise UserError(f"peer {model.name!r} is not built: nothing can be restored to it.")
        where = f"the peers' backup in {self._files.directory}"
        try:
            arrays, state = self._files.read(epoch)
        except DamagedError as error:
            raise UserError(
                f"{where} of epoch {epoch} is damaged ({error}): remove the backups of the model "
                "and of its peers to begin anew."
            ) from None
        assign(self._variables(), arrays, where)
        restore_random(state["random"], arrays)
        return {
            **nested(state["progress"], arrays),
            "records": restore_records(state["records"], arrays),
        }

    def _variables(self) -> list[keras.Variable]:
        layers = [layer for model in self._without for layer in flat_layers(model)]
        seeds = {id(own.state): own.state for layer in layers for own in layer._seed_generators}
        return [*variables_of(self._models, self._without), *seeds.values()]

    def clear(self) -> None:
        """Remove all of it; the directory stays, somebody else may use it."""
        self._files.clear()
