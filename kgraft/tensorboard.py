"""TensorBoard for all peers of a training, on every backend and without TensorFlow."""

import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import keras

from kgraft.analysis.event_files import EventFiles, check_installed, filter_image
from kgraft.analysis.filters import layer_filters
from kgraft.errors import UserError, told
from kgraft.training.callback import GraftCallback
from kgraft.training.distiller import student_of
from kgraft.training.fit import GraftingFit
from kgraft.training.joint_state import StatefulCallback

_OF_PEER = re.compile(r"peer(\d+)_(.+)")  # so the first peer's logs have the others'


class TensorBoard(StatefulCallback):
    """Event files of every peer, which TensorBoard lays over each other.

    In a folder a peer, `peer 1` and so on, and in every epoch: its metrics, its learning rate as
    the epoch began, and `alpha`; a histogram of the coefficients of all its layers, where it was
    grafted; and a map of its filters, one cell a filter and a row a layer, invalid ones black.
    Keras' own callback of this name imports TensorFlow.

    One callback is for all peers: with `GraftingFit` it is given once, with `GraftCallback` it
    comes behind it. Epochs are counted from 1 over all fits. A training that goes on, from
    `checkpoint=` say, writes over what came after the epoch that it goes on from.

    Args:
        log_dir: of this training alone; what `tensorboard --logdir` is given.
        training: the `GraftingFit` that calls it, or the `GraftCallback` beside it.
        name: what the folders are called.
        first: the number of the first one.

    Raises:
        UserError: tensorboardX is missing, `pip install 'kgraft[live]'`; or `training` is neither.
        StorageError: a file cannot be written.

    Example:
        ```python
        run = kgraft.GraftingFit(peers)
        run.fit(x, y, epochs=200, callbacks=[kgraft.TensorBoard("logs", run)])
        ```
    """

    def __init__(
        self,
        log_dir: str | PathLike[str],
        training: GraftingFit | GraftCallback,
        *,
        name: str = "peer",
        first: int = 1,
    ) -> None:
        super().__init__()
        check_installed()
        if not isinstance(training, GraftingFit | GraftCallback):
            raise UserError(
                f"TensorBoard(training={told(training)}): expected the GraftingFit that trains, or "
                "the GraftCallback."
            )
        self._log_dir, self._training = Path(log_dir), training
        self._name, self._first = name, first
        self._files: dict[int, EventFiles] = {}
        self._rates: dict[int, float] = {}
        self._done = self._seen = 0  # epochs, and records of graftings

    def save(self) -> dict[str, Any]:
        """See `StatefulCallback`."""
        return {"done": self._done, "seen": self._seen}

    def restore(self, saved: dict[str, Any]) -> None:
        """See `StatefulCallback`."""
        self._done, self._seen = int(saved["done"]), int(saved["seen"])
        self._files = {}  # what they have got since is taken out when they are gone on with

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Refuse to watch another peer than the first, whose logs have everybody's."""
        peers, model = self._training.peers, self.model
        if isinstance(self._training, GraftingFit) and model is not peers[0]:
            raise UserError(
                "TensorBoard is for all peers and watches the first of its training: give it once, "
                "callbacks=[kgraft.TensorBoard(log_dir, run)]."
            )
        own = any(peer is model for peer in peers)
        self._ring = list(peers) if own else [model, *peers]
        self._place = next(k for k, peer in enumerate(self._ring) if peer is model)

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Read the learning rates, which the peers' callbacks have set by now."""
        if batch == 0:
            self._rates = {
                k: float(keras.ops.convert_to_numpy(peer.optimizer.learning_rate))
                for k, peer in enumerate(self._ring)
                if peer.compiled
            }

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Write what there is of every peer."""
        self._done = max(self._done, epoch) + 1
        new = self._training.records[self._seen :]
        self._seen = len(self._training.records)
        coefficients = new[-1][1].coefficients if new else None
        for k, scalars in sorted(self._scalars(logs or {}).items()):
            if k not in self._files:
                folder = self._log_dir / f"{self._name} {self._first + k}"
                self._files[k] = EventFiles(folder, self._done)
            own = {} if coefficients is None else {"alpha_of_layers": coefficients[k]}
            filters = filter_image(layer_filters(student_of(self._ring[k])))
            self._files[k].add(self._done, scalars, own, {"filters": filters})

    def _scalars(self, logs: Mapping[str, Any]) -> dict[int, dict[str, float]]:
        """What the first peer's logs say of each."""
        found: dict[int, dict[str, float]] = {self._place: {}}
        for name, value in logs.items():
            other = _OF_PEER.fullmatch(name)
            k, own = (int(other[1]) - 1, other[2]) if other else (self._place, name)
            if k < len(self._ring):
                found.setdefault(k, {})[own] = float(value)
        for k, scalars in found.items():
            if k in self._rates:
                scalars["lr"] = self._rates[k]
        return found
