"""TensorBoard for all peers of a training, on every backend and without TensorFlow."""

import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import keras

from kgraft.analysis.event_files import EventFiles, check_installed, filter_image, has_events
from kgraft.analysis.filters import layer_filters
from kgraft.errors import UserError, told
from kgraft.files import is_file
from kgraft.grafting.ring import GraftRecord
from kgraft.settings import argument
from kgraft.training.callback import GraftCallback
from kgraft.training.distiller import student_of
from kgraft.training.fit import GraftingFit
from kgraft.training.joint_state import StatefulCallback

_BEHIND = (
    "TensorBoard comes behind its GraftCallback, in the same fit: callbacks=[grafting, "
    "kgraft.TensorBoard(log_dir, grafting)]."
)
_OF_PEER = re.compile(r"peer(\d+)_(.+)")  # so the first peer's logs have the others'


class TensorBoard(StatefulCallback):
    """Event files of every peer, which TensorBoard lays over each other.

    In a folder a peer, `peer 1` and so on, and in every epoch: its metrics, its learning rate as
    the epoch began, and `alpha`, its mean coefficient, 1 where nothing was grafted; a histogram of
    the coefficients of all its layers, where it was grafted; and a map of its filters: a row a
    layer, the first on top and each as wide as it has filters, a cell a filter, the lighter the
    larger its l1 norm and black below 0.1. Keras' own callback of this name imports TensorFlow.

    One callback is for all peers: with `GraftingFit` it is given once, with `GraftCallback` it
    comes behind it; the others of that ring are not validated and have no `val_...`. Epochs are
    counted from 1 over all fits of `training`, also where each is given a callback of its own. A
    training that goes on, from `checkpoint=` say, writes over what came after the epoch that it
    goes on from; one that begins is refused where there are curves already, unless checkpoints
    save it: then it may have been killed before the first.

    Args:
        log_dir: of this training alone; what `tensorboard --logdir` is given.
        training: the `GraftingFit` that calls it, or the `GraftCallback` beside it.
        name: what the folders are called.
        first: the number of the first one.

    Raises:
        UserError: tensorboardX is missing, `pip install 'kgraft[live]'`; an argument of the wrong
            kind; in `fit`, it is not where `training` calls it, or `log_dir` is another training's.
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
        self._log_dir, self._training = _directory(log_dir), training
        self._name, self._first = _checked_name(name), argument("first", first, int, low=0)
        self._files: dict[int, EventFiles] = {}
        self._rates: dict[int, float] = {}
        self._step, self._is_saved = 0, False

    def save(self) -> dict[str, Any]:
        """See `StatefulCallback`; the training counts, also for a callback that is new to it."""
        self._is_saved = True
        return {}

    def restore(self, saved: dict[str, Any]) -> None:
        """See `StatefulCallback`."""
        self._is_saved = True
        self._files = {}  # what they have got since is taken out when they are gone on with

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Refuse to watch another peer than the first, whose logs have everybody's."""
        self._is_saved = False
        peers, model = self._training.peers, self.model
        if isinstance(self._training, GraftingFit) and model is not peers[0]:
            raise UserError(
                "TensorBoard is for all peers and watches the first of its training: give it once, "
                "callbacks=[kgraft.TensorBoard(log_dir, run)]."
            )
        if isinstance(self._training, GraftCallback) and model is not self._training.model:
            raise UserError(_BEHIND)
        own = any(peer is model for peer in peers)
        self._ring = list(peers) if own else [model, *peers]
        joined = isinstance(self._training, GraftingFit)
        self._count = self._training.count if joined else len(self._ring)
        self._place = next(k for k, peer in enumerate(self._ring) if peer is model)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Refuse a `fit` that is not the training's, and curves of another one."""
        if self._training.epoch is None:
            raise UserError(
                "TensorBoard belongs to the fit of its GraftingFit, run.fit(..., callbacks="
                "[kgraft.TensorBoard(log_dir, run)])."
                if isinstance(self._training, GraftingFit)
                else _BEHIND
            )
        before, self._step = self._step, self._training.epoch + 1
        if self._step <= before:  # initial_epoch has set the count back
            self._files = {}
        if self._step == 1 and not self._is_saved:
            folders = map(self._folder, range(len(self._ring)))
            if found := next(filter(has_events, folders), None):
                raise UserError(
                    f"{found} has the curves of another training, which this one would write over: "
                    f"give another log_dir than {str(self._log_dir)!r}, or remove it."
                )

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
        record = self._record()
        for k, scalars in sorted(self._scalars(logs or {}).items()):
            if k not in self._files:
                self._files[k] = EventFiles(self._folder(k), self._step)
            own = {} if record is None else {"alpha_of_layers": record.coefficients[k]}
            alpha = 1.0 if record is None else float(record.mean_coefficients[k])
            images = {}
            if k < len(self._ring):  # else another process has it
                images["filters"] = filter_image(layer_filters(student_of(self._ring[k])))
            self._files[k].add(self._step, {"alpha": alpha, **scalars}, own, images)

    def _folder(self, k: int) -> Path:
        return self._log_dir / f"{self._name} {self._first + k}"

    def _record(self) -> GraftRecord | None:
        """Of the grafting that this epoch's `alpha` tells of, None without one."""
        put_off = self._training.mixer.evaluate == "before"
        epoch, record = self._training.records[-1] if self._training.records else (-1, None)
        return record if epoch >= self._step - 1 - put_off else None

    def _scalars(self, logs: Mapping[str, Any]) -> dict[int, dict[str, float]]:
        """What the first peer's logs say of each."""
        found: dict[int, dict[str, float]] = {self._place: {}}
        for name, value in logs.items():
            other = _OF_PEER.fullmatch(name)
            k, own = (int(other[1]) - 1, other[2]) if other else (self._place, name)
            if k < self._count:
                found.setdefault(k, {})[own] = float(value)
        for k, scalars in found.items():
            if k in self._rates:
                scalars["lr"] = self._rates[k]
        return found


def _directory(given: Any) -> Path:
    if not isinstance(given, str | PathLike) or not str(given):
        raise UserError(f"log_dir is {told(given)}: expected a directory's name.")
    if is_file(Path(given)):
        raise UserError(f"log_dir={str(given)!r} is a file: expected a directory.")
    return Path(given)


def _checked_name(name: Any) -> str:
    name = argument("name", name, str)
    if not name or set(name) & set("/\\\0"):
        raise UserError(f"name={name!r}: expected what a folder can be called, as 'peer'.")
    return str(name)
