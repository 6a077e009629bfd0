"""One fit of a GraftingFit that is saved as it goes on, and goes on where a killed one was."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import keras

from kgraft.engines.steps import Logs
from kgraft.errors import UserError
from kgraft.structure import fault
from kgraft.training.checkpoint_files import CheckpointFiles, flat, nested
from kgraft.training.checkpoints import Checkpoints, Keeper, Taken
from kgraft.training.identity import Identity, differences
from kgraft.training.joint_state import (
    Arrays,
    CallbackStates,
    assign,
    restore_random,
    restore_records,
    save_random,
    save_records,
    values_of,
    variables_of,
)
from kgraft.training.session import Session

_log = logging.getLogger("kgraft")


_STATE = {
    "identity": {"must": {}, "should": {}, "at_first": {}},
    "begun": int,
    "told": int,
    "ended": bool,
    "logs": [{}],
    "session": {"epochs_done": int, "steps": int},
    "records": {},
    "callbacks": [[object]],
    "random": {},
}


@dataclass(frozen=True)
class _Found:
    """A checkpoint on the disk, of this fit or of a later one."""

    epochs_done: int
    arrays: Arrays
    state: dict[str, Any]


class SavedFit:
    """What GraftingFit's loop asks of checkpoints; a block of `with` around the training.

    Args:
        settings: where and how often.
        session: the grafting; its count is that of the fit's beginning.
        epochs: what the fit's callbacks are told.
        identity: which training it is.
        lost: what is said where it goes on, of data whose place is not saved; empty for nothing.
        again: whether the peers themselves were broken off in this fit, and go on with it.

    Attributes:
        is_over: whether the checkpoint is of a later fit of the same training, so that this one is
            over and only counts.
    """

    def __init__(
        self,
        settings: Checkpoints,
        session: Session,
        epochs: range,
        identity: Identity,
        lost: str = "",
        *,
        again: bool = False,
    ) -> None:
        self._session, self._epochs, self._identity = session, epochs, identity
        self._again = again
        self._where, self._lost = Path(settings.directory), lost
        self._begun = session.epochs_done
        self._keeper = Keeper(settings, self._take)
        self._told, self._ended, self._logs = epochs.start, False, list[Logs]()
        found = CheckpointFiles(self._where, settings.keep).newest(after=self._begun)
        self._found = None if found is None else _Found(*found)
        if self._found is not None and (wrong := fault(self._found.state, _STATE)):
            raise self._foreign(wrong)
        self.is_over = self._found is not None and self._found.state["begun"] > self._begun

    def __enter__(self) -> "SavedFit":
        self._keeper.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._keeper.__exit__(kind, error, trace)

    def begin(
        self,
        peers: Sequence[keras.Model],
        callbacks: Sequence[Sequence[keras.callbacks.Callback]],
    ) -> tuple[range, list[Logs]]:
        """Put back what was saved, when all is built and callbacks have begun.

        Args:
            peers: what is trained.
            callbacks: each peer's.

        Returns:
            The epochs that are still to come, and the last logs of those that are over.

        Raises:
            UserError: the checkpoint is of another training; names the first difference.
        """
        self._variables = variables_of(peers)
        self._callbacks = CallbackStates(callbacks)
        if self._found is None:
            return self._epochs, [{} for _ in peers]
        found, self._found = self._found, None
        self._check(found.state)
        assign(self._variables, found.arrays, f"the checkpoint in {self._where}")
        state, arrays = found.state, found.arrays
        try:
            self._session.restore(nested(state["session"], arrays))
            self._session.records[:] = restore_records(state["records"], arrays)
            self._callbacks.restore(state["callbacks"], arrays)
            restore_random(state["random"], arrays)
            last = nested(state["logs"], arrays)
        except UserError:
            raise
        except Exception as error:  # of whatever takes a value that somebody has changed
            raise self._foreign(f"{type(error).__name__}: {error}") from error
        if self._session.epochs_done != found.epochs_done or len(last) != len(peers):
            raise self._foreign("it is of another epoch, or of other peers")
        self._told, self._ended, self._begun = state["told"], state["ended"], state["begun"]
        rest = range(self._told, self._told if self._ended else self._epochs.stop)
        if rest and self._lost:
            _log.warning("%s", self._lost)
        _log.log(
            logging.INFO if rest else logging.WARNING,
            "the checkpoint in %s holds %d epochs: %s",
            self._where,
            found.epochs_done,
            f"the training goes on with epoch {rest.start + 1} of {rest.stop}"
            if rest
            else "the training is over; remove it to begin anew",
        )
        return rest, last

    def end_of_epoch(self, told: int, logs: list[Logs], *, ended: bool) -> None:
        """Save, where it is time to.

        Args:
            told: the epoch that callbacks were told.
            logs: the peers'.
            ended: whether somebody has stopped the training.

        Raises:
            StorageError: an earlier one could not be written.
        """
        self._told, self._ended, self._logs = told + 1, ended, logs
        last = ended or self._told == self._epochs.stop
        self._keeper.end_of_epoch(self._session.epochs_done, last=last)

    def _take(self) -> Taken:
        arrays = values_of(self._variables)
        state = {
            "identity": asdict(self._identity),
            "begun": self._begun,
            "told": self._told,
            "ended": self._ended,
            "logs": flat(self._logs, arrays),
            "session": flat(self._session.save(), arrays),
            "records": save_records(self._session.records, arrays),
            "callbacks": self._callbacks.save(arrays),
            "random": save_random(arrays),
        }
        return arrays, state

    def _foreign(self, wrong: str) -> UserError:
        return UserError(
            f"the checkpoint in {self._where} is not as kgraft writes it ({wrong}): give another "
            "directory, or remove it to begin anew."
        )

    def _check(self, state: dict[str, Any]) -> None:
        kept, own = state["identity"], self._identity
        for name, value in own.must.items():
            if kept["must"].get(name) != value:
                raise UserError(
                    f"the checkpoint in {self._where} is of a training with {name} = "
                    f"{kept['must'].get(name)!r}, this one has {value!r}: give another directory, "
                    "or remove it to begin anew."
                )
        if state["told"] > self._epochs.stop:
            raise UserError(
                f"the checkpoint in {self._where} has {state['told']} epochs, epochs = "
                f"{self._epochs.stop} are fewer: give another directory, or remove it to begin "
                "anew."
            )
        found = differences(kept["should"], own.should)
        if not self._again and state["begun"] == 0:  # else callbacks may have changed it
            found += differences(kept["at_first"], own.at_first)
        if found:
            _log.warning(
                "the training that goes on is not the one that began: %s%s. It goes on with what "
                "it is given now, and with the learning rates that were saved.",
                "; ".join(found[:3]),
                f"; and {len(found) - 3} more" if len(found) > 3 else "",
            )
