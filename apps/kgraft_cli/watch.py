"""`kgraft watch`: the table of a run that another process trains."""

import shlex
from pathlib import Path

import click

from kgraft_cli.parameters import PLACE


@click.command("watch")
@click.argument("run", type=PLACE)
def command(run: str) -> None:
    """Show how far a run is that another process trains, as kgraft fit shows its own.

    RUN is its directory. Nothing is written there and nobody is disturbed: any number may watch,
    from another terminal or another machine. It ends when the run does, or when nobody trains it
    any more, and says how to go on; Ctrl-C ends it, and not the run.
    """
    from rich.console import Console

    from kgraft.runs.directory import read_run
    from kgraft.runs.following import Following
    from kgraft.runs.own import called
    from kgraft_cli.messages import quiet_tensorflow
    from kgraft_cli.progress import progress_on
    from kgraft_cli.summary import print_summary

    quiet_tensorflow()
    path, console = Path(run), Console(markup=False, emoji=False)
    following = Following(path)
    with progress_on(console, clock=lambda: following.written) as progress:
        finished = following.tell(progress)
    if finished:
        print_summary(console, read_run(path)[1], path)
        return
    progress.stay()
    trust = " --trust" if called(following.config) else ""
    console.print(
        f"no process that can be seen from here trains in {path}. To go on: "
        f"kgraft fit --resume {shlex.quote(run)}{trust}",
        highlight=False,
        soft_wrap=True,
    )
