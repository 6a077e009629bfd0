"""`kgraft watch`: the table of a run that another process trains."""

import shlex
import time
from pathlib import Path

import click

from kgraft_cli.parameters import PLACE

_OFTEN = 0.5  # seconds between two looks


@click.command("watch")
@click.argument("run", type=PLACE)
@click.option("--wait", is_flag=True, help="Wait until somebody trains there.")
def command(run: str, wait: bool) -> None:
    """Show how far a run is that another process trains, as kgraft fit shows its own.

    RUN is its directory; given one that holds several, a comparison's say, it names them. Nothing
    is written there and nobody is disturbed: any number may watch, from another terminal or another
    machine. It ends when the run does, or when nobody trains it any more, and says how to go on;
    Ctrl-C ends it, and not the run.
    """
    from rich.console import Console

    from kgraft.runs.directory import checkpoints_of
    from kgraft.runs.finished import read_run
    from kgraft.runs.following import Following, is_on
    from kgraft.runs.own import called
    from kgraft.training.saved_fit import processes_of
    from kgraft_cli.messages import program, quiet_tensorflow, say
    from kgraft_cli.progress import progress_on
    from kgraft_cli.summary import print_summary

    quiet_tensorflow()
    path, console = Path(run), Console(markup=False, emoji=False)
    if wait and not is_on(path):
        say(console, f"waiting until somebody trains in {path}")
        while not is_on(path):
            time.sleep(_OFTEN)
    following = Following(path)
    with progress_on(console, clock=lambda: following.written) as progress:
        finished = following.tell(progress)
    if finished:
        print_summary(console, read_run(path)[1], path, following.config.run.epochs)
        return
    progress.stay()
    ranks = processes_of(checkpoints_of(path, "peers"))
    trust = " --trust" if called(following.config) else ""
    console.print(
        f"no process that can be seen from here trains in {path}. To go on: "
        f"{program(ranks)} fit --resume {shlex.quote(run)}{trust}",
        highlight=False,
        soft_wrap=True,
    )
