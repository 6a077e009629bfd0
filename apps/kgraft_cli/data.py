"""`kgraft data`: which sets there are, how one is made ready, and what is in a folder."""

from typing import TYPE_CHECKING

import click

from kgraft_cli.main import Commands
from kgraft_cli.parameters import DATA_DIR, PLACE

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from kgraft.data.examine import Findings, Progress
    from kgraft.data.photo_sets import Checked
    from kgraft.retrieval.folders import IdentityFolder
    from kgraft_cli.figures import Figures

_NAMED = 10  # files that a list shows


@click.group("data", cls=Commands)
def command() -> None:
    """List data sets, prepare one, or check a folder of photographs."""


@command.command("list")
@DATA_DIR
def list_sets(data_dir: str | None) -> None:
    """List kgraft's own data sets and those that TFDS has prepared."""
    from rich.console import Console

    from kgraft import data
    from kgraft_cli.figures import Figures

    table = Figures(
        "data sets",
        ("name", "train", "test", "image", "classes", "ready", "licence"),
        left=("image", "ready", "licence"),
    )
    for entry in data.describe(data_dir):
        table.add_row(
            entry.name,
            f"{entry.train:,}",
            f"{entry.test:,}",
            "x".join("?" if side is None else str(side) for side in entry.shape),
            str(entry.classes),
            "no" if entry.prepared is None else "yes",
            entry.licence,
        )
    console = Console(markup=False, emoji=False)
    console.print(table)
    console.print(f"prepared sets are kept in {data.data_directory(data_dir)}", highlight=False)


@command.command("prepare")
@click.argument("name")
@click.option(
    "--archive", type=PLACE, metavar="PATH", help="The published archive, instead of a download."
)
@click.option("--data-dir", type=PLACE, metavar="DIR", help="Where prepared data sets are kept.")
def prepare(name: str, archive: str | None, data_dir: str | None) -> None:
    """Make data set NAME ready to train on."""
    from kgraft import data

    path = data.prepare(name, archive=archive, data_dir=data_dir)
    click.echo(f"{name} is ready in {path}")


@command.command("check")
@click.argument("folder", type=PLACE)
@click.option("--data-dir", type=PLACE, metavar="DIR", help="Where what was found is kept.")
@click.option(
    "--camera", metavar="EXPRESSION", help="In folders of identities: its group is the camera."
)
def check(folder: str, data_dir: str | None, camera: str | None) -> None:
    """Look at every file of FOLDER, a folder of photographs, before training does.

    Counts, sizes, files that cannot be read, files with the same bytes in training and test, and
    the pixels' mean and deviation. Of a folder of identities, as Market-1501, instead: images,
    identities and cameras of each part, beside the published numbers, and queries of which nothing
    is to be found. Ends with 1 where files cannot be read, or nothing at all is to be found.
    """
    from pathlib import Path

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from kgraft import data
    from kgraft.data.photo_sets import check_folder
    from kgraft.retrieval.folders import has_identities

    console = Console(markup=False, emoji=False)
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("files", total=None)

        def progress(done: int, count: int) -> None:
            bar.update(task, completed=done, total=count)

        place = data.data_directory(data_dir)
        people = None
        if has_identities(Path(folder)):
            people = _checked_people(Path(folder), camera, place, progress)
        else:
            found = check_folder(Path(folder), place, progress=progress)
    if people is not None:
        _tell_people(console, *people)
        return
    console.print(_parts(found))
    mean, std = (", ".join(f"{own:.3f}" for own in part) for part in (found.mean, found.std))
    said = f"pixels to learn from, 0..1: mean {mean}; deviation {std}"
    console.print(said, highlight=False, soft_wrap=True)
    if found.known.folder.others:
        console.print(f"other files, passed over: {found.known.folder.others}", highlight=False)
    for what, pairs in (
        ("same bytes in training and held out", found.repeated),
        ("same bytes in two classes", found.disputed),
    ):
        _list(console, what, [f"{first} = {second}" for first, second in pairs])
    unreadable = [f"{path}: {error}" for path, error in found.unreadable]
    _list(console, "cannot be read", unreadable)
    if unreadable:
        raise SystemExit(1)


def _checked_people(
    root: "Path", camera: str | None, place: "Path", progress: "Progress"
) -> tuple["IdentityFolder", dict[str, "Findings"]]:
    from kgraft.data.photo_sets import examine_parts
    from kgraft.retrieval.folders import read_identities

    folder = read_identities(root, camera=camera)
    parts = {part.name: part.paths for part in folder.parts}
    return folder, examine_parts(root, parts, place, progress=progress)


def _tell_people(
    console: "Console", folder: "IdentityFolder", findings: dict[str, "Findings"]
) -> None:
    import numpy as np

    from kgraft.retrieval.sets import unreadable_of
    from kgraft_cli.figures import Figures

    columns = ("part", "images", "identities", "cameras", "junk", "nobody's", "unreadable")
    table = Figures(f"{folder.root}: {folder.layout}", columns)
    sought = folder.query.people
    for part in folder.parts:
        people = part.identities
        is_gallery = part is folder.gallery
        table.add_row(
            part.name,
            f"{len(part):,}",
            f"{len(part.people):,}",
            "-" if part.cameras is None else str(len(np.unique(part.cameras))),
            f"{(people == -1).sum():,}" if is_gallery else "",
            f"{(~np.isin(people, [-1, *sought])).sum():,}" if is_gallery else "",
            str(int((~findings[part.name].readable).sum())),
        )
    console.print(table)
    if folder.others:
        console.print(f"other files, passed over: {folder.others}", highlight=False)
    _list(console, "not as published", folder.differences())
    lost = folder.unmatched()
    _list(console, "queries of which nothing is to be found", lost)
    unreadable = [f"{path}: {error}" for path, error in unreadable_of(folder, findings)]
    _list(console, "cannot be read", unreadable)
    if unreadable or len(lost) == len(folder.query):
        raise SystemExit(1)


def _parts(found: "Checked") -> "Figures":
    import numpy as np

    from kgraft_cli.figures import Figures

    folder = found.known.folder
    table = Figures(
        f"{folder.root}: {len(folder.class_names)} classes",
        ("part", "images", "a class", "height", "width", "unreadable"),
    )
    for part in folder.parts:
        own = found.known.findings[part.name]
        sizes = own.sizes[own.readable]
        counts = np.bincount(part.labels, minlength=len(folder.class_names))
        spans = (
            [f"{values.min()} to {values.max()}" for values in sizes.T] if len(sizes) else ["", ""]
        )
        table.add_row(
            part.name or "all",
            f"{len(part.paths):,}",
            f"{counts.min():,} to {counts.max():,}",
            *spans,
            str(int((~own.readable).sum())),
        )
    return table


def _list(console: "Console", what: str, lines: list[str]) -> None:
    if lines:
        console.print(f"{what}: {len(lines)}", highlight=False)
        for line in lines[:_NAMED]:
            console.print(f"  {line}", highlight=False, soft_wrap=True)
        if len(lines) > _NAMED:
            console.print(f"  and {len(lines) - _NAMED} more", highlight=False)
