"""The console script: finds a command, runs it, and tells every mistake in one line."""

import difflib
import importlib
import os
import sys
from typing import Any

import click

_COMMANDS = {
    "fit": "Train K peers, graft them after every epoch, keep what they learnt.",
    "select": "One network out of a run's peers: the best, a soup, the ensemble.",
    "compare": "Methods x seeds under one schedule, with intervals.",
    "evaluate": "Test the peers of a finished run again.",
    "methods": "List the methods with their settings.",
    "models": "List the architectures with their cost.",
    "data": "List data sets, or prepare one.",
    "weights": "Take weights from PyTorch, or give them.",
    "bench": "Measure kgraft against other ways to train K peers.",
    "info": "Show versions, backends and devices.",
}


class Commands(click.Group):
    """A group that shows its help page without a command, and the nearest one for a wrong one."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Without a command: the help page on stderr, exit code 2, on every release of click."""
        if not args:
            click.echo(ctx.get_help(), err=True)
            ctx.exit(2)
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or say which one is near."""
        known = self.list_commands(ctx)
        if args[0] not in known and not args[0].startswith("-"):
            close = difflib.get_close_matches(args[0], known, n=1)
            hint = f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(known)}."
            raise click.UsageError(f"unknown command {args[0]!r}. {hint}", ctx)
        return super().resolve_command(ctx, args)


class _Lazy(Commands):
    """Imports a command when it runs: `kgraft --help` answers at once."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"kgraft_cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.command(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="kgraft")
def cli() -> None:
    """Filter grafting for Keras: K peer networks revive each other's dead filters."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line.

    Exits with 0, with 2 after a mistake, with 1 where a file cannot be written, the memory is full
    or no network is alive any more, with 130 after Ctrl-C and 143 after SIGTERM.
    """
    for name in ("TF_CPP_MIN_LOG_LEVEL", "ABSL_MIN_LOG_LEVEL"):
        os.environ.setdefault(name, "3")
    try:
        outcome: Any = cli.main(arguments, prog_name="kgraft", standalone_mode=False)
    except click.Abort:
        _fail("interrupted.", 130)
    except click.ClickException as error:
        _fail(error.format_message(), 2)
    except (ValueError, ImportError) as error:
        if not _is_users(error):
            raise
        _fail(str(error), 2)
    except OSError as error:
        if not _is_users(error):
            raise
        _fail(str(error), 1)
    except (MemoryError, RuntimeError) as error:
        if not _is_users(error) and not _is_of_memory(error):
            raise
        said = str(error).splitlines()
        _fail(str(error) if _is_users(error) else ": ".join(["out of memory", *said[:1]]), 1)
    except BaseException as stopped:
        if not _is_users(stopped):
            raise
        _fail(str(stopped), stopped.code)  # type: ignore[attr-defined]
    else:
        sys.exit(outcome if isinstance(outcome, int) else 0)


def _is_of_memory(error: Exception) -> bool:
    """Whether the machine or the accelerator had no room, in each backend's own words."""
    said = ("can't allocate memory", "out of memory", "RESOURCE_EXHAUSTED", "OOM when allocating")
    return isinstance(error, MemoryError) or any(words in str(error) for words in said)


def _is_users(error: BaseException) -> bool:
    """Whether kgraft itself raises it: a mistake, a full disk, an end that was asked for."""
    return type(error).__module__.partition(".")[0] == "kgraft"


def _fail(message: str, code: int) -> None:
    line = " ".join(message.split())  # a file's own words may hold what would move the cursor
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
    click.echo(f"kgraft: {shown}", err=True)
    sys.exit(code)
