"""How a run shows itself: a live table on a terminal, a line an epoch elsewhere."""

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from kgraft_cli.figures import Figures
from kgraft_cli.messages import say, stderr_on

_FOR_A_BAR = 60  # columns; narrower, its numbers would be cut

_A_LINE = 60.0  # seconds between two lines of a log

Rows = Sequence[dict[str, Any]]
Jobs = Sequence[tuple[str, float]]


class PlainProgress:
    """One line an epoch, for logs and pipes.

    Args:
        console: where they go.
        clock: the time of what is told, in seconds.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._models = self._epochs = self._steps = 0
        self._began, self._before = 0.0, -1

    def __enter__(self) -> "PlainProgress":
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing to close."""

    def begin(self, phase: str, models: int, epochs: int, steps: int) -> None:
        """Say what begins."""
        self._models, self._epochs, self._steps = models, epochs, steps
        self._began, self._before = self._clock(), -1
        of = f" of {steps} steps" if steps else ""
        say(self._console, f"{phase}: {_count(models)}, {epochs} epochs{of}")

    def step(self, phase: str, epoch: int, step: int) -> None:
        """Steps are not shown."""

    def epoch(self, phase: str, epoch: int, rows: Rows) -> None:
        """One line with every model's figures."""
        if self._before < 0 and self._steps:
            self._before = epoch - 1
        elif self._before < 0:  # of a run that another process trains: nobody saw it begin
            self._began, self._before = self._clock(), epoch
        figures = [_line(row, numbered=self._models > 1) for row in rows]
        if (seen := epoch - self._before) > 0:
            left = (self._clock() - self._began) / seen * (self._epochs - epoch)
            figures.append(f"{left:.0f} s left")
        say(self._console, " | ".join([f"{phase} {epoch}/{self._epochs}", *figures]))

    def stay(self) -> None:
        """All that was said stands there."""


class _Redrawn:
    """A part of the terminal that is redrawn in place, and what is printed meanwhile above it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(
            console=console, refresh_per_second=8, transient=True, redirect_stderr=False
        )
        self._beside = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._beside.enter_context(stderr_on(self._console))
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._live.stop()
        except OSError:  # of a terminal that is gone: what has ended the block is told instead
            if error is None:
                raise
        finally:
            self._beside.close()


class LiveProgress(_Redrawn):
    """A table with a row a model, a bar and the time left, redrawn in place.

    Args:
        console: where it stands.
        clock: the time of what is told, in seconds.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(console)
        wide = console.width >= _FOR_A_BAR
        self._bar = Progress(
            TextColumn("{task.description}"),
            *([BarColumn(bar_width=None)] if wide else []),
            MofNCompleteColumn(),
            *([TextColumn("{task.fields[unit]}, left")] if wide else []),
            TimeRemainingColumn(),
            console=console,
            get_time=clock,
            speed_estimate_period=math.inf,
            expand=True,
        )
        self._rows: Rows = ()
        self._epochs = self._steps = 0

    def begin(self, phase: str, models: int, epochs: int, steps: int) -> None:
        """Start the phase's bar and an empty table."""
        for task in self._bar.task_ids:
            self._bar.remove_task(task)
        unit = "steps" if steps else "epochs"
        self._epochs, self._steps = epochs, steps or 1
        self._task = self._bar.add_task(phase, total=epochs * self._steps, unit=unit)
        self._rows = [{"model": k + 1} for k in range(models)]
        self._draw(phase, 0)

    def step(self, phase: str, epoch: int, step: int) -> None:
        """Move the bar."""
        self._bar.update(self._task, completed=(epoch - 1) * self._steps + step)

    def epoch(self, phase: str, epoch: int, rows: Rows) -> None:
        """Fill the table with the epoch's figures."""
        known = {row["model"]: dict(row) for row in rows}  # of one that is lost there is none
        self._rows = [known.get(own["model"], {"model": own["model"]}) for own in self._rows]
        self._bar.update(self._task, completed=epoch * self._steps)
        self._draw(phase, epoch)
        if epoch == self._epochs and phase != "peers":
            say(self._console, f"{phase}: {_line(rows[0], numbered=False)}")

    def _draw(self, phase: str, epoch: int) -> None:
        who = "peer" if phase == "peers" else "teacher"
        table = Figures(
            f"{phase}, epoch {epoch}/{self._epochs}",
            (who, "lr", "loss", "accuracy", "validation", "mean alpha"),
        )
        for row in self._rows:
            table.add_row(
                str(row["model"]),
                _figure(row, "lr", ".4f"),
                _loss(row),
                _figure(row, "accuracy", ".2%"),
                _figure(row, "val_accuracy", ".2%"),
                _figure(row, "alpha", ".3f"),
            )
        self._table = table
        self._live.update(self.shown())

    def stay(self) -> None:
        """Leave the last table on the terminal, when the block is over."""
        self._console.print(self._table)

    def shown(self) -> Group:
        """What stands on the terminal."""
        return Group(self._table, self._bar)


def progress_on(
    console: Console, clock: Callable[[], float] = time.monotonic
) -> PlainProgress | LiveProgress:
    """The display that suits where the output goes: a dumb terminal cannot redraw.

    Args:
        console: where the output goes.
        clock: the time of what is told, in seconds.
    """
    redraws = console.is_terminal and not console.is_dumb_terminal
    return LiveProgress(console, clock) if redraws else PlainProgress(console, clock)


class PlainJobs:
    """A line whenever a run is over, and every minute."""

    def __init__(self, console: Console) -> None:
        self._console, self._told = console, time.monotonic()

    def __enter__(self) -> "PlainJobs":
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing to close."""

    def progress(self, running: Jobs, done: float, left: float) -> None:
        """See `Watcher`."""
        if time.monotonic() - self._told >= _A_LINE:
            self._told = time.monotonic()
            say(self._console, " | ".join([_of_all(done, left), *map(_of_one, running)]))

    def ended(self, name: str, seconds: float) -> None:
        """See `Watcher`."""
        _say_ended(self._console, name, seconds)


class LiveJobs(_Redrawn):
    """A line for all runs and one for each that is on, redrawn in place."""

    def progress(self, running: Jobs, done: float, left: float) -> None:
        """See `Watcher`."""
        lines = [_of_all(done, left), *map(_of_one, running)]
        self._live.update(Text("\n".join(lines), no_wrap=True, overflow="ellipsis"))

    def ended(self, name: str, seconds: float) -> None:
        """See `Watcher`."""
        _say_ended(self._console, name, seconds)


def jobs_on(console: Console) -> PlainJobs | LiveJobs:
    """The display of several runs at once that suits where the output goes."""
    redraws = console.is_terminal and not console.is_dumb_terminal
    return LiveJobs(console) if redraws else PlainJobs(console)


def _say_ended(console: Console, name: str, seconds: float) -> None:
    say(console, f"{name}: trained in {seconds:.0f} s")


def _of_all(done: float, left: float) -> str:
    known = "" if math.isnan(left) else f", {_time(left)} left"
    return f"{done:.1%} done{known}"


def _of_one(run: tuple[str, float]) -> str:
    return f"{run[0]} {run[1]:.0%}"


def _time(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


def _line(row: dict[str, Any], *, numbered: bool) -> str:
    parts = [f"{row['model']}:"] if numbered else []
    parts += [f"loss {_loss(row)}", f"acc {_figure(row, 'accuracy', '.2%')}"]
    if "val_accuracy" in row:
        parts.append(f"val {_figure(row, 'val_accuracy', '.2%')}")
    if numbered and "alpha" in row:
        parts.append(f"alpha {_figure(row, 'alpha', '.3f')}")
    return " ".join(parts)


def _loss(row: dict[str, Any]) -> str:
    """The student's own loss: with a teacher `loss` has the distillation's constant part in it."""
    return _figure(row, "student_loss" if "student_loss" in row else "loss", ".4f")


def _figure(row: dict[str, Any], name: str, form: str) -> str:
    return format(row[name], form) if row.get(name) is not None else "-"


def _count(models: int) -> str:
    return f"{models} model" if models == 1 else f"{models} models"
