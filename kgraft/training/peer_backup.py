"""Where GraftCallback keeps its peers for a `fit` that is killed and started again."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kgraft.errors import UserError

_KEPT = 2  # a kill between this backup and the model's leaves the model one epoch behind


class PeerBackup:
    """Weights, seeds and optimizers of some models after each epoch, in one `.npz` an epoch.

    A file is complete or not there, and is read without pickle. The last two are kept, so that
    the peers can follow a model whose own backup is one epoch older.

    Args:
        directory: where the files lie; made when the first one is written.
        models: what is saved.
        without: models whose variables are somebody else's to save (a shared teacher's, say).
    """

    def __init__(
        self, directory: Path, models: Sequence[keras.Model], without: Iterable[keras.Model] = ()
    ) -> None:
        self._directory = directory
        self._models = models
        self._foreign = {id(variable) for model in without for variable in model.variables}

    def save(self, epoch: int, progress: dict[str, Any]) -> None:
        """Write the state after `epoch` whole epochs.

        Args:
            epoch: number of epochs done, that is, the epoch to resume at.
            progress: where the training stands then, JSON-able values and NumPy arrays.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Any] = {f"{k:05d}": _array(v) for k, v in enumerate(self._variables())}

        def aside(array: np.ndarray) -> dict[str, str]:
            name = f"where-{len(arrays)}"
            arrays[name] = array
            return {"array": name}

        where = json.dumps(progress, default=aside)
        partial = self._directory / "peers.partial"
        with partial.open("wb") as file:
            np.savez(file, where=np.array(where), **arrays)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self._path(epoch))
        for path in self._paths()[:-_KEPT]:
            path.unlink()

    def restore(self, epoch: int) -> dict[str, Any]:
        """Put the state after `epoch` epochs back into the models.

        Args:
            epoch: the epoch that `fit` resumes at; `self.holds(epoch)`.

        Returns:
            Where the training stood.

        Raises:
            UserError: a model is not built, or the file is of other models.
        """
        for model in self._models:
            if not model.built:
                raise UserError(f"peer {model.name!r} is not built: nothing can be restored to it.")
        path = self._path(epoch)
        variables = self._variables()
        with np.load(path, allow_pickle=False) as file:
            names = sorted(name for name in file.files if not name.startswith("where"))
            shapes = [file[name].shape for name in names]
            if shapes != [tuple(variable.shape) for variable in variables]:
                raise UserError(
                    f"{path} holds {len(names)} arrays of other peers than these, which have "
                    f"{len(variables)}: remove it, or use the peers that it was made of."
                )
            for variable, name in zip(variables, names, strict=True):
                variable.assign(file[name])
            return json.loads(
                str(file["where"]),
                object_hook=lambda own: file[own["array"]] if [*own] == ["array"] else own,
            )

    def holds(self, epoch: int) -> bool:
        """Whether the state after `epoch` epochs is there."""
        return self._path(epoch).exists()

    def clear(self) -> None:
        """Delete all files; the directory stays, somebody else may use it."""
        for path in [*self._paths(), self._directory / "peers.partial"]:
            path.unlink(missing_ok=True)

    def _variables(self) -> list[Any]:
        unique: dict[int, Any] = {}
        for model in self._models:
            optimizer = model.optimizer if model.compiled else None
            if optimizer is not None and not optimizer.built:
                optimizer.build(model.trainable_variables)
            own = optimizer.variables if optimizer is not None else []
            for variable in [*model.variables, *own]:
                if id(variable) not in self._foreign:
                    unique.setdefault(id(variable), variable)
        return list(unique.values())

    def _path(self, epoch: int) -> Path:
        return self._directory / f"peers-{epoch:06d}.npz"

    def _paths(self) -> list[Path]:
        return sorted(self._directory.glob("peers-*.npz"))


def _array(variable: Any) -> np.ndarray:
    """Host copy in a type that `.npz` knows; bfloat16 becomes float32, which is exact."""
    half = keras.backend.standardize_dtype(variable.dtype) == "bfloat16"
    value = keras.ops.cast(variable.value, "float32") if half else variable.value
    return keras.ops.convert_to_numpy(value)
