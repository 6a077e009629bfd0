"""What kgraft's logger says, on the terminal."""

import contextlib
import logging
from collections.abc import Iterator

import click
from rich.console import Console


class _Handler(logging.Handler):
    """Information beside the progress, warnings on stderr."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message."""
        if record.levelno >= logging.WARNING:
            click.echo(f"kgraft: {record.getMessage()}", err=True)
        else:
            self._console.print(record.getMessage(), highlight=False, soft_wrap=True)


@contextlib.contextmanager
def messages_on(console: Console) -> Iterator[None]:
    """Show kgraft's log messages, information and above, while the block runs.

    Args:
        console: where information goes.
    """
    log, handler = logging.getLogger("kgraft"), _Handler(console)
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
