"""The console script: finds a command, runs it, and tells every mistake in one line."""

import contextlib
import difflib
import errno
import importlib
import os
import sys

import click

from kgraft_cli.output import OutputError, checked_output, drop_unwritten, prefix

_COMMANDS = {
    "fit": "Train K peers, graft them after every epoch, keep what they learnt.",
    "select": "One network out of a run's peers: the best, a soup, the ensemble.",
    "compare": "Methods x seeds under one schedule, with intervals.",
    "evaluate": "Test the peers of a finished run again.",
    "watch": "Show how far a run is that another process trains.",
    "analyze": "Which filters of networks hold anything.",
    "plot": "Pictures of runs and comparisons.",
    "report": "One page about runs and comparisons.",
    "reproduce": "Tables of the papers, trained anew.",
    "configs": "List the run files that come with kgraft, or copy one.",
    "methods": "List the methods with their settings.",
    "models": "List the architectures with their cost.",
    "plan": "What K peers on many GPUs send, and how long it takes.",
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

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; click would print an empty line for a Ctrl-C that comes this far."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise click.Abort from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.command(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="kgraft")
def cli() -> None:
    """Filter grafting for Keras: K peer networks revive each other's dead filters."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line.

    Exits with 0, with 2 after a mistake, with 1 where a file or the output cannot be written, the
    memory is full or no network is alive any more, with 130 after Ctrl-C, 143 after SIGTERM and
    129 after SIGHUP, which a terminal that is closed sends.
    """
    for name in ("TF_CPP_MIN_LOG_LEVEL", "ABSL_MIN_LOG_LEVEL"):
        os.environ.setdefault(name, "3")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a rank that is lost is named by kgraft
    try:
        with checked_output():
            line, code = _outcome(arguments)
        if line:
            _tell(line)
    except Exception as error:  # also while another one is told
        if not _is_of_memory(error):
            raise
        with contextlib.suppress(OSError):
            os.write(2, b"kgraft: out of memory.\n")  # by what is there already
        code = 1
    drop_unwritten()
    sys.exit(code)


def _outcome(arguments: list[str] | None) -> tuple[str, int]:
    """Run a command; what is to be said at its end, and the exit code."""
    try:
        outcome: object = cli.main(arguments, prog_name="kgraft", standalone_mode=False)
        print(end="", flush=True)  # what cannot be written is told before the end
    except click.Abort:
        return "interrupted.", 130
    except click.ClickException as error:
        return error.format_message(), 2
    except OutputError as error:
        quietly = error.closed and not error.go_on  # as every command before `| head` ends
        return "" if quietly else str(error), 1
    except BaseException as raised:
        cause = raised.__cause__ if isinstance(raised, ValueError) else None  # of a part of theirs
        told = cause if isinstance(cause, Exception) and _is_of_memory(cause) else raised
        if (code := _code(told)) is not None:
            return str(told), code
        if not isinstance(told, Exception) or not _is_of_memory(told):
            raise
        return ": ".join(["out of memory", *str(told).splitlines()[:1]]), 1
    return "", outcome if isinstance(outcome, int) else 0


def _code(error: BaseException) -> int | None:
    """The exit code of what kgraft itself raises, None for anything else."""
    if not _is_users(error):
        return None
    if not isinstance(error, Exception):  # an end that was asked for
        return error.code  # type: ignore[attr-defined]
    if isinstance(error, ValueError | ImportError):
        return 2
    return 1 if isinstance(error, OSError | RuntimeError | MemoryError) else None


def _is_of_memory(error: Exception) -> bool:
    """Whether the machine or the accelerator had no room, in each backend's own words."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    said = (
        "can't allocate memory",
        "annot allocate memory",
        "out of memory",
        "RESOURCE_EXHAUSTED",
        "OOM when allocating",
    )
    return isinstance(error, MemoryError) or any(words in str(error) for words in said)


def _is_users(error: BaseException) -> bool:
    """Whether kgraft itself raises it: a mistake, a full disk, an end that was asked for."""
    return type(error).__module__.partition(".")[0] == "kgraft"


def _tell(message: str) -> None:
    line = " ".join(message.split())  # a file's own words may hold what would move the cursor
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
    with contextlib.suppress(OSError):  # nobody is there to be told
        click.echo(f"{prefix()}: {shown}", err=True)
