"""Runs of a comparison side by side: a process a run, each with its share of the cores.

One-thread processes use all cores of a machine where a single small network does not. The parent
decides what is next, tells who watches how far everybody is, and hands a signal on; a child trains
one run and writes its directory as if it were alone.
"""

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from kgraft.engines.backends import BACKEND
from kgraft.errors import UserError
from kgraft.runs.recorder import Silent
from kgraft.runs.stopping import Stopped, Stopping

_EVERY = 1.0  # seconds between two looks at whether somebody has asked for an end


@dataclass(frozen=True)
class Job:
    """One run of a comparison.

    Attributes:
        name: what it is called.
        work: its size beside that of the others.
        epochs: how many epochs of one network it has.
        needs: names of the jobs that have to be over before.
        train: does it; called in a process of its own.
    """

    name: str
    work: float
    epochs: int
    needs: frozenset[str]
    train: Callable[[Any, Stopping], None]


class Watcher(Protocol):
    """Whoever watches several runs at once."""

    def progress(self, running: Sequence[tuple[str, float]], done: float, left: float) -> None:
        """How far each run is, of 1; how much of all is done, of 1; and the seconds left."""

    def ended(self, name: str, seconds: float) -> None:
        """A run is over."""


class _Running:
    """A job in its process, and what it has said of itself."""

    def __init__(self, job: Job, cores: int) -> None:
        self.job, self.share, self.began = job, 0.0, time.monotonic()
        context = multiprocessing.get_context("spawn")
        self.ears, mouth = context.Pipe(duplex=False)
        self._process = context.Process(target=_work, args=(job, mouth, cores), daemon=False)
        self._process.start()
        mouth.close()
        self.error: BaseException | None = None
        self.is_over = self._is_asked = False

    def listen(self) -> None:
        """Take in what the process has said."""
        try:
            while self.ears.poll():
                said = self.ears.recv()
                if isinstance(said, BaseException):
                    self.error = said
                else:
                    self.share = said / self.job.epochs
        except EOFError:
            self.ears.close()
            self._process.join()
            self.is_over = True
            if self._process.exitcode and self.error is None:
                self.error = UserError(
                    f"{self.job.name}: its process ended with code {self._process.exitcode}; call "
                    "the command again, the run goes on with its last whole epoch."
                )

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.began

    def stop(self) -> None:
        """Ask it to save its last whole epoch and to end; once, a second time ends it at once."""
        if not self._is_asked:
            self._is_asked = True
            self._process.terminate()


def side_by_side(jobs: Sequence[Job], count: int, watcher: Watcher, stopping: Stopping) -> None:
    """Do jobs, so many at a time, in their order as far as they do not wait for others.

    Args:
        jobs: all of them; what they need comes before.
        count: how many at a time.
        watcher: who is told.
        stopping: who may ask for an end.

    Raises:
        UserError: what the first job that failed has raised; those beside it have ended, saved.
        Stopped: by `stopping`, when every job that was running has saved its last whole epoch.
    """
    waiting, running, over = list(jobs), list[_Running](), set[str]()
    whole, finished, spent = sum(job.work for job in jobs), 0.0, 0.0
    cores = max(1, BACKEND.cores() // count)
    missing = {job.name for job in jobs}
    error: BaseException | None = None
    with stopping.held():
        try:
            while running or (waiting and error is None):
                ready = [job for job in waiting if not job.needs & (missing - over)]
                for job in ready[: count - len(running)] if error is None else ():
                    waiting.remove(job)
                    running.append(_Running(job, cores))
                wait([own.ears for own in running], _EVERY)
                for own in running:
                    own.listen()
                for own in [own for own in running if own.is_over]:
                    running.remove(own)
                    error = error or own.error
                    if own.error is None:
                        over.add(own.job.name)
                        finished += own.job.work
                        spent += own.seconds
                        watcher.ended(own.job.name, own.seconds)
                try:
                    stopping.check()
                except Stopped as stopped:
                    error = error or stopped
                if error is not None:
                    for own in running:
                        own.stop()
                done = finished + sum(own.share * own.job.work for own in running)
                busy = spent + sum(own.seconds for own in running)
                rest = (whole - done) * busy / done / count if done else float("nan")
                shares = [(own.job.name, own.share) for own in running]
                watcher.progress(shares, done / whole if whole else 1.0, rest)
        finally:
            for own in running:  # of an error of the watcher's: nobody would wait for them
                own.stop()
    if error is not None:
        raise error


class _Telling(Silent):
    """Tells the parent how far a run is, phase by phase."""

    def __init__(self, mouth: Connection) -> None:
        self._mouth, self._before, self._epochs, self._models = mouth, 0, 0, 0

    def begin(self, phase: str, models: int, epochs: int, steps: int) -> None:
        """See `Observer`."""
        self._before += self._models * self._epochs
        self._models, self._epochs = models, epochs

    def epoch(self, phase: str, epoch: int, rows: Sequence[dict[str, Any]]) -> None:
        """See `Observer`."""
        self._mouth.send(self._before + self._models * epoch)


def _work(job: Job, mouth: Connection, cores: int) -> None:
    """What a child does; an error of the user's goes to the parent, and so does a Ctrl-C.

    A parent that is gone ends it at its next epoch: there is nobody to tell.
    """
    if hasattr(os, "setsid"):
        os.setsid()  # the terminal's signals are the parent's
    BACKEND.use_cores(cores)
    try:
        with Stopping() as stopping:
            job.train(_Telling(mouth), stopping)
    except BrokenPipeError:
        pass
    except (UserError, OSError, Stopped) as error:
        mouth.send(error)
    finally:
        mouth.close()
