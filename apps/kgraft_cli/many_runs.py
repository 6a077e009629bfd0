"""Runs of a comparison or a table: one after the other, or beside each other, as they are shown."""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.console import Console

from kgraft.engines.backends import BACKEND
from kgraft.runs.comparisons.jobs import Watcher
from kgraft.runs.recorder import Observer
from kgraft.runs.stopping import Stopping
from kgraft_cli.messages import messages_on, say
from kgraft_cli.output import going_on
from kgraft_cli.progress import jobs_on, progress_on

if TYPE_CHECKING:
    Alone = Callable[[Observer, Callable[[str], None], Stopping], None]
    Beside = Callable[[Watcher, Stopping], None]


def train_shown(console: Console, jobs: int, alone: "Alone", beside: "Beside") -> None:
    """Train, show it, and say how to go on where it is broken off.

    Args:
        console: where.
        jobs: how many runs at a time.
        alone: does one after the other; who is told of steps, of lines of text, and who may ask
            for an end.
        beside: does so many at a time; who is told, and who may ask for an end.
    """
    BACKEND.keep_compiled()
    with (
        Stopping(lambda: "the same command") as stopping,
        messages_on(console, logging.WARNING),
        going_on(stopping),
    ):
        if jobs > 1:
            with jobs_on(console) as watcher:
                beside(watcher, stopping)
        else:
            with progress_on(console) as progress:
                alone(progress, lambda text: say(console, text), stopping)
