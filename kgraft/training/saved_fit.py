"""One fit of a GraftingFit that is saved as it goes on, and goes on where a killed one was."""

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import keras

from kgraft.engines.steps import Logs
from kgraft.errors import UserError
from kgraft.files import only_writer
from kgraft.links.link import Here, Link
from kgraft.nests import flat, nested
from kgraft.structure import fault
from kgraft.training.checkpoint_files import CheckpointFiles
from kgraft.training.checkpoints import Checkpoints, Keeper, Taken
from kgraft.training.identity import Identity
from kgraft.training.joint_state import (
    Arrays,
    CallbackStates,
    assign,
    plain_attributes,
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
    "begins": [int],
    "ends": [int],
    "lost": [str],
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


def place_of(settings: Checkpoints, link: Link) -> Path:
    """Where a process keeps its checkpoints: one of several has a directory of its own.

    Args:
        settings: where all are kept.
        link: joins the processes.
    """
    where = Path(settings.directory).absolute()
    if isinstance(link, Here):
        return where
    replica = "" if link.lanes == 1 else f"-replica-{link.lane}-of-{link.lanes}"
    return where / f"rank-{link.rank}-of-{len(link.holds)}{replica}"


def processes_of(directory: Path) -> int:
    """How many processes have saved a training, 1 where one has, or none.

    Args:
        directory: where all keep their checkpoints.
    """
    kept = [path.name for path in directory.glob("rank-*-of-*")]
    return _told_by(kept[0].partition("of-")[2])[0] if kept else 1


def _told_by(name: str) -> tuple[int, int]:
    """How many processes there were, and how many for every peer: `"2"`, `"2-replica-0-of-3"`."""
    ranks, _, replicas = name.partition("-replica-")
    each = int(replicas.partition("-of-")[2] or 1)
    return int(ranks) * each, each


def check_ranks(directory: Path, own: Path) -> None:
    """Refuse to go on with what other processes have saved, or as many others.

    Args:
        directory: where all keep their checkpoints.
        own: where this one does.

    Raises:
        UserError: says how many there were.
    """
    kept = [path.name for path in directory.glob("rank-*-of-*")]
    if not kept and own != directory and CheckpointFiles(directory).epochs():
        kept = ["of-1"]
    others = {name.partition("of-")[2] for name in kept} - {own.name.partition("of-")[2]}
    if not others:
        return
    count, each = _told_by(others.pop())
    how = f"torchrun --nproc-per-node {count}" if count > 1 else "it alone, without torchrun"
    raise UserError(
        f"the checkpoint in {directory} is of {count} process{'es' if count > 1 else ''}"
        f"{f', {each} for every peer' if each > 1 else ''}: start as many ({how}), give another "
        "directory, or remove it to begin anew."
    )


class SavedFits:
    """The fits of one GraftingFit that are saved, one after the other."""

    def __init__(self) -> None:
        self._begins: list[int] = []  # the session's count at the beginning of each
        self._ends: list[int] = []  # and at the end
        self._open: SavedFit | None = None  # the last one, where it has not come to its end

    def next(
        self, settings: Checkpoints, session: Session, epochs: range, identity: Identity, lost: str
    ) -> "SavedFit":
        """The next one, or the last one once more where it was broken off; see `SavedFit`."""
        open_ = self._open
        self.forget()
        if open_ is None or open_.where != place_of(settings, session.link):
            open_ = None
        else:
            session.epochs_done = open_.begins[-1]
        begins = [*self._begins, session.epochs_done]
        saved = SavedFit(settings, session, epochs, identity, begins, self._ends, lost, open_)
        self._begins, self._open = begins, saved
        if saved.over_at is not None:
            self.end(saved.over_at)
        return saved

    def forget(self) -> None:
        """Do not go on with one that was broken off."""
        if self._open is not None:
            self._begins, self._open = self._begins[:-1], None

    def end(self, epochs_done: int) -> None:
        """The last one has come to its end.

        Args:
            epochs_done: the session's count.
        """
        if self._open is not None:
            self._ends, self._open = [*self._ends, epochs_done], None


class SavedFit:
    """What GraftingFit's loop asks of checkpoints; a block of `with` around the training.

    Args:
        settings: where and how often.
        session: the grafting; its count is that of the fit's beginning.
        epochs: what the fit's callbacks are told.
        identity: which training it is.
        begins: the session's count at the beginning of each fit that was saved, this one's at last.
        ends: its count at the end of those before.
        lost: what is said where it goes on, of data whose place is not saved; empty for nothing.
        broken: the same fit, where the peers themselves were broken off in it.

    Attributes:
        over_at: the session's count at this fit's end, where the checkpoint is of a later one of
            the same training: it is over and only counts. Else None.
        start: everything as it was when the fit began, until its first epoch is over.

    Raises:
        UserError: the checkpoint is of other fits, or another process trains there.
    """

    def __init__(
        self,
        settings: Checkpoints,
        session: Session,
        epochs: range,
        identity: Identity,
        begins: Sequence[int],
        ends: Sequence[int],
        lost: str = "",
        broken: "SavedFit | None" = None,
    ) -> None:
        self._session, self._epochs, self._identity = session, epochs, identity
        self.begins, self._ends = list(begins), list(ends)
        self.where, self._lost = place_of(settings, session.link), lost
        self._root = Path(settings.directory).absolute()
        self.start: Taken | None = None if broken is None else broken.start
        self._again = broken is not None
        alone = isinstance(session.link, Here)
        keep = settings.keep if alone else settings.keep + 1  # a rank that is killed may be behind
        settings = replace(settings, directory=self.where, keep=keep)
        self._keeper = Keeper(settings, self._take, session.link)
        self._told, self._ended, self._logs = epochs.start, False, list[Logs]()
        self._open = contextlib.ExitStack()
        self._found = self._newest(settings.keep)
        state = {"begins": []} if self._found is None else self._found.state
        later = len(state["begins"]) > len(self.begins)
        self.over_at = state["ends"][len(self.begins) - 1] if later else None

    def _newest(self, keep: int) -> _Found | None:
        """The newest checkpoint of this fit or a later one."""
        check_ranks(self._root, self.where)
        files = CheckpointFiles(self.where, keep)
        found = files.newest(after=self.begins[-1], among=self._common(files))
        if found is None:
            return None
        state = found[2]
        wrong = fault(state, _STATE)
        if not wrong and len(state["ends"]) != len(state["begins"]) - 1:
            wrong = "it has other ends than beginnings"
        if wrong:
            raise self._foreign(wrong)
        count = min(len(state["begins"]), len(self.begins))
        if state["begins"][:count] != self.begins[:count]:
            raise UserError(
                f"the checkpoint in {self.where} is of fits that began at the epochs "
                f"{state['begins']}, these at {self.begins}: give another directory, or remove it "
                "to begin anew."
            )
        return _Found(*found) if len(state["begins"]) >= len(self.begins) else None

    def _common(self, files: CheckpointFiles) -> set[int] | None:
        """The epochs that all processes have saved; None where this one decides alone."""
        link = self._session.link
        if isinstance(link, Here) or link.returning:
            return None
        own = files.whole()
        told = link.gather_small(own, opens=True)
        common = set.intersection(*map(set, told.values()))
        if link.block is not None:
            lanes = link.block.gather_small(sorted(common), opens=True)
            common = set.intersection(*map(set, lanes.values()))
        if own and not common:
            _log.warning(
                "the checkpoints in %s have no epoch in common with those of the other processes: "
                "all begin anew.",
                self.where,
            )
        return common

    def __enter__(self) -> "SavedFit":
        with contextlib.ExitStack() as opened:
            opened.enter_context(only_writer(self.where, "another directory"))
            opened.enter_context(self._keeper)
            self._open = opened.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.__exit__(kind, error, trace)

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
        self._callbacks, self._peers = CallbackStates(callbacks), peers
        self._plain = plain_attributes(peers)
        found, self._found = self._found, None
        if found is None and self.start is not None:  # broken off in its first epoch
            found = _Found(self.begins[-1], *self.start)
        if found is None:
            self._logs = [{} for _ in peers]
            self.start = self._take()
            return self._epochs, self._logs
        first = found.epochs_done == self.begins[-1]
        state, arrays = found.state, found.arrays
        try:
            changed = self._checked(state)
            assign(self._variables, arrays, f"the checkpoint in {self.where}")
            self._session.restore(nested(state["session"], arrays), begins=first)
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
        self._told, self._ended = state["told"], state["ended"]
        rest = range(self._told, self._told if self._ended else self._epochs.stop)
        self._tell(rest, changed, state["lost"])
        return rest, last

    def _tell(self, rest: range, changed: list[str], lost: list[str]) -> None:
        count = self._session.epochs_done
        if rest:
            where = f"epoch {rest.start + 1} of {rest.stop}"
            _log.info("the checkpoint in %s goes on with %s", self.where, where)
        else:
            _log.warning(
                "the checkpoint in %s holds all of this fit, %d epoch%s of the training: it is not "
                "trained again.",
                self.where,
                count,
                "" if count == 1 else "s",
            )
        if changed:
            rates = [own for own in changed if own.startswith("learning rate")]
            given = " It goes on with what it is given now." if len(rates) < len(changed) else ""
            _log.warning(
                "the training that goes on is not the one that began: %s%s.%s%s",
                "; ".join(changed[:3]),
                f"; and {len(changed) - 3} more" if len(changed) > 3 else "",
                given if rest else " That is too late for what was trained.",
                " Learning rates are as they were saved." if rates else "",
            )
        if rest and self._lost:
            _log.warning("%s", self._lost)
        if rest and (known := [name for name in lost if name in self._plain]):
            _log.warning(
                "%s: attributes of layers that are no variables are not saved: they begin anew.",
                ", ".join(known),
            )

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
        if not self._session.link.waits:  # else all may have to begin anew
            self.start = None
        last = ended or self._told == self._epochs.stop
        self._keeper.end_of_epoch(self._session.epochs_done, last=last)

    def _take(self) -> Taken:
        arrays, now = values_of(self._variables), plain_attributes(self._peers)
        state = {
            "identity": asdict(self._identity),
            "begins": self.begins,
            "ends": self._ends,
            "lost": [name for name, own in self._plain.items() if now.get(name) != own],
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
            f"the checkpoint in {self.where} is not as kgraft writes it ({wrong}): give another "
            "directory, or remove it to begin anew."
        )

    def _checked(self, state: dict[str, Any]) -> list[str]:
        """What has changed since and is not refused."""
        kept, name = state["identity"], f"the checkpoint in {self.where}"
        todo = "give another directory, or remove it to begin anew."
        if refused := self._identity.refused(kept):
            raise UserError(f"{name} is of another training ({'; '.join(refused[:3])}): {todo}")
        if state["told"] > self._epochs.stop:
            raise UserError(
                f"{name} has {state['told']} epochs, epochs={self._epochs.stop} are fewer: {todo}"
            )
        first = len(self.begins) == 1 and not self._again  # else callbacks may have changed it
        return self._identity.changed(kept, at_first=first)
