"""`kgraft fit`: train teachers and grafted peers, and show what happened."""

import contextlib
import logging
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kgraft_cli.parameters import DATA_DIR, HERE, PLACE, TRUST
from kgraft_cli.shipped import path_of

if TYPE_CHECKING:
    from kgraft.runs.config import Config

_FLAGS = {
    "method": "run.method",
    "peers": "peers.count",
    "teachers": "teachers.count",
    "model": "model.name",
    "weights": "model.weights",
    "teacher_model": "teachers.model",
    "dataset": "data.name",
    "data_dir": "data.directory",
    "optimizer": "optimizer.name",
    "epochs": "run.epochs",
    "batch_size": "run.batch_size",
    "lr": "optimizer.lr",
    "schedule": "schedule.name",
    "seed": "run.seed",
    "engine": "run.engine",
    "precision": "run.precision",
    "limit_train": "data.limit_train",
    "limit_test": "data.limit_test",
    "tensorboard": "run.tensorboard",
    "csv": "run.csv",
    "callback": "run.callbacks",
    "ranks_per_peer": "ring.ranks_per_peer",
    "on_lost_peer": "ring.on_lost_peer",
}


@click.command("fit")
@click.argument("runfile", required=False, type=PLACE)
@click.option(
    "--set", "changes", multiple=True, metavar="TABLE.KEY=VALUE", help="Change a setting."
)
@click.option("--method", metavar="NAME", help="What the peers do, see kgraft methods.")
@click.option("--peers", type=int, metavar="K", help="Number of peers.")
@click.option("--teachers", type=int, metavar="M", help="Number of teachers; 0 for plain grafting.")
@click.option("--model", metavar="NAME", help="Architecture of the peers, see kgraft models.")
@click.option("--weights", type=PLACE, metavar="FILE", help="What all peers start from.")
@click.option("--teacher-model", metavar="NAME", help="Architecture of trained teachers.")
@click.option("--dataset", metavar="NAME", help="Data set or .npz file, see kgraft data list.")
@DATA_DIR
@click.option("--optimizer", metavar="NAME", help="sgd, or one of keras.optimizers.")
@click.option("--epochs", type=int, metavar="N", help="Epochs of teachers and peers.")
@click.option("--batch-size", type=int, metavar="N", help="Images a step.")
@click.option("--lr", type=float, metavar="RATE", help="Learning rate of the last peer.")
@click.option("--schedule", metavar="NAME", help="constant, step, cosine or cosine-per-step.")
@click.option("--seed", type=int, metavar="N", help="All random numbers follow from it.")
@click.option("--engine", metavar="NAME", help="auto, eager or compiled.")
@click.option("--precision", metavar="NAME", help="float32, tf32 or bfloat16.")
@click.option("--limit-train", type=int, metavar="N", help="Only the first N training images.")
@click.option("--limit-test", type=int, metavar="N", help="Only the first N test images.")
@click.option(
    "--tensorboard", is_flag=True, default=None, help="Write event files, see RUN/tensorboard."
)
@click.option("--csv", is_flag=True, default=None, help="Write metrics.csv beside metrics.jsonl.")
@click.option(
    "--callback",
    multiple=True,
    callback=lambda context, option, given: list(given) or None,
    metavar="MODULE:CLASS",
    help="A Keras callback for every peer, or a function that makes it.",
)
@click.option("--ranks-per-peer", type=int, metavar="R", help="Ranks that train one peer.")
@click.option("--on-lost-peer", metavar="WHAT", help="Under torchrun: stop, skip or wait.")
@click.option(
    "--out",
    type=PLACE,
    metavar="DIR",
    help="Directory of the run; a new one below runs/ by default.",
)
@click.option("--resume", type=PLACE, metavar="RUN", help="Go on with a run that was broken off.")
@HERE
@TRUST
def command(
    runfile: str | None,
    changes: tuple[str, ...],
    out: str | None,
    resume: str | None,
    here: bool,
    trust: bool,
    **flags: Any,
) -> None:
    """Train K peers, graft them after every epoch, and keep what they learnt.

    RUNFILE is a TOML file, or the name of one that comes with kgraft, see kgraft configs; without
    one the quickstart runs: four small ResNets under a teacher on the handwritten digits that come
    with kgraft. Flags win over --set, --set over the file. Ctrl-C, SIGTERM or a terminal that is
    closed ends the step and saves the last whole epoch; --resume goes on from there, also after a
    kill, to what the run would have come to.

    Parts of your own are named module:function or module:Class, in --model, --dataset, --method,
    --optimizer, --callback and graft.criterion. A callback is made once for every peer, with its
    number (peer), the run's directory (run) and all settings (settings) where it has arguments of
    these names. --trust lets --resume call those that the run's directory
    names, --here does so too.

    Under torchrun the peers are shared out over its ranks (torchrun --nproc-per-node 4 -m
    kgraft_cli fit RUNFILE); the first rank shows the run and writes it.
    """
    from rich.console import Console

    from kgraft.engines.backends import BACKEND
    from kgraft.errors import LostPeerError, UserError
    from kgraft.runs.assembly import assemble
    from kgraft.runs.directory import make_new
    from kgraft.runs.execution import execute
    from kgraft.runs.own import called
    from kgraft.runs.ranks import directory_of, link_of
    from kgraft.runs.stopping import Stopping
    from kgraft.runs.unfinished import read_unfinished
    from kgraft_cli.messages import messages_on
    from kgraft_cli.output import going_on
    from kgraft_cli.progress import progress_on
    from kgraft_cli.summary import print_summary

    console = Console(markup=False, emoji=False)
    shown = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING
    with Stopping() as stopping, messages_on(console, shown), going_on(stopping):
        BACKEND.use_device(int(os.environ.get("LOCAL_RANK", "0")))
        if resume is None:
            if trust:
                raise UserError("--trust is for --resume: what you name yourself is called.")
            config, path = _wanted(runfile, changes, out, flags)
        else:
            given = [name for name, value in flags.items() if value is not None]
            _check_alone(runfile, changes, out, given)
            path = Path(resume)
            config = read_unfinished(path, trusted=here or trust)
        more = " --here" if here else " --trust" if trust or called(config) else ""
        stopping.go_on = lambda: _go_on(path, more)
        BACKEND.keep_compiled()
        link = link_of(config)
        _say_of_devices(len(BACKEND.devices()), config.peers.count)
        with link:
            link.check = stopping.check
            assembly = assemble(config, link)
            goes_on = resume is not None
            if resume is None:
                path, goes_on = directory_of(link, path, named=out is not None)
                if out is None and link.writes and not goes_on:
                    path = make_new(path)
            with progress_on(console) if link.writes else contextlib.nullcontext() as progress:
                try:
                    summary = execute(assembly, path, progress, stopping, resume=goes_on)
                except LostPeerError as error:
                    go_on = stopping.go_on()
                    raise LostPeerError(f"{error} Go on with {go_on}" if go_on else error) from None
    if link.writes:
        print_summary(console, summary, path, config.run.epochs)


def _go_on(path: Path, more: str) -> str:
    """The command that goes on with what a directory holds, empty where there is none."""
    from kgraft.runs.ranks import launched
    from kgraft_cli.messages import program

    if (path / "run.toml").is_file() and not (path / "summary.json").is_file():
        each = os.environ.get("LOCAL_WORLD_SIZE", "N") if launched() > 1 else 1
        return f"{program(each)} fit --resume {shlex.quote(str(path))}{more}"
    return ""


def _say_of_devices(devices: int, peers: int) -> None:
    """Say how several accelerators are used, of which one process uses one."""
    from kgraft.runs.ranks import launched

    if devices > 1 and launched() == 1 and peers > 1:
        logging.getLogger("kgraft").info(
            "1 of %d accelerators is used; torchrun --nproc-per-node %d -m kgraft_cli fit ... "
            "shares the peers out over them.",
            devices,
            min(devices, peers),
        )


def _wanted(
    runfile: str | None, changes: tuple[str, ...], out: str | None, flags: dict[str, Any]
) -> tuple["Config", Path]:
    """The settings of a new run, and its directory."""
    from kgraft.runs import config as configs
    from kgraft.runs.directory import check_free, check_no_file, default_path
    from kgraft.runs.methods import settled
    from kgraft.runs.ranks import launched
    from kgraft.runs.toml_text import parse_assignment

    config = configs.read(path_of(runfile, "fit")) if runfile else configs.Config()
    given = [(*parse_assignment(change), "") for change in changes]
    given += [(_FLAGS[name], own, name) for name, own in flags.items() if own is not None]
    # first what names a part, which may bring a table, or keys of its own
    for key, value, flag in sorted(given, key=lambda own: not configs.names_part(own[0])):
        source = f"--{flag.replace('_', '-')}" if flag else f"--set {key}"
        config = config.changed(key, value, source)
    config = settled(config)
    path = default_path(config) if out is None else Path(out)
    if launched() == 1:  # else the ranks know only together whether a run goes on there
        (check_no_file if out is None else check_free)(path)
    return config, path


def _check_alone(
    runfile: str | None, changes: tuple[str, ...], out: str | None, flags: list[str]
) -> None:
    """Refuse what would change a run that goes on."""
    from kgraft.errors import UserError

    given = [f"--{name.replace('_', '-')}" for name in flags]
    given += ["--set"] if changes else []
    given += ["--out"] if out is not None else []
    given += [runfile] if runfile is not None else []
    if given:
        raise UserError(f"--resume takes all settings from its run: leave out {', '.join(given)}.")
