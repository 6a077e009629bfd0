"""The run files that come with kgraft: where they lie, what they are called, what they say.

In a wheel they are in this package, in a checkout in `configs/`. Nothing here imports kgraft, and
Keras with it: they are listed at once.
"""

import difflib
import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import click

PACKAGED = "run_files"
"""Folder of this package that a wheel has them in, see `pyproject.toml`."""

_KINDS = {"fit": "run file", "compare": "comparison", "reproduce": "table"}
_PARTS = re.compile(r"(?<=[.?]) (?=(?:Source|Cost|Result|Published|Ours)(?:: | \())")


@dataclass(frozen=True)
class Head:
    """What the comment that opens a run file says of it.

    Attributes:
        command: what runs it.
        text: all that follows.
        what: the first sentence, without what stands in brackets.
        parts: the sentences on cost, result and so on, by their first word.
    """

    command: str
    text: str
    what: str
    parts: dict[str, str]

    @property
    def figures(self) -> str:
        """Cost, result, published figures: the last without what is said of them."""
        found = [self.parts.get(word, "") for word in ("Cost", "Result", "Published", "Ours")]
        return " ".join(map(_of_figures_alone, filter(None, found)))


@dataclass(frozen=True)
class RunFile:
    """A run file, a comparison or a table that comes with kgraft.

    Attributes:
        name: what command lines call it, e.g. `"cifar/resnet20"`.
        path: where it lies.
    """

    name: str
    path: Path

    @property
    def command(self) -> str:
        """The command that takes it: `"fit"`, `"compare"` or `"reproduce"`."""
        folders = {"comparisons": "compare", "tables": "reproduce"}
        return folders.get(self.name.partition("/")[0], "fit")

    @property
    def last(self) -> str:
        """The last part of its name."""
        return self.name.rpartition("/")[2]

    def head(self) -> Head:
        """What it says of itself."""
        return head_of(self.path.read_text(encoding="utf-8"))


def run_files() -> dict[str, RunFile]:
    """All of them by name; those that lie less deep come first."""
    package = Path(str(resources.files("kgraft_cli")))
    folder = package / PACKAGED
    if not folder.is_dir():
        folder = package.parents[1] / "configs"
    paths = {
        path.relative_to(folder).with_suffix("").as_posix(): path for path in folder.rglob("*.toml")
    }
    names = sorted(paths, key=lambda name: (name.count("/"), name))
    return {name: RunFile(name, paths[name]) for name in names}


def run_file(name: str) -> RunFile:
    """The run file of a name.

    Args:
        name: e.g. `"cifar/resnet20"`.

    Raises:
        click.UsageError: there is none; says which one is near.
    """
    known = run_files()
    if name not in known:
        raise click.UsageError(
            f"no run file that comes with kgraft is called {name!r}.{nearest(name, known)}"
        )
    return known[name]


def path_of(given: str, command: str) -> Path:
    """The file that somebody means: the one that is there, else the one that comes with kgraft.

    Args:
        given: a path, or the name of a run file of kgraft's own.
        command: what is to be done with it, `"fit"`, `"compare"` or `"reproduce"`.

    Returns:
        The path, also of what is no file that can be read.

    Raises:
        click.UsageError: there is neither, or kgraft's own is for the other command.
    """
    path, beside, known = Path(given), Path(f"{given}.toml"), run_files()
    try:
        there, folder, twin = path.exists(), path.is_dir(), beside.is_file()
    except (OSError, ValueError):  # why, is told where it is read
        return path
    if there and not (folder and given in known):
        return path
    if given not in known:
        near = f" Did you mean {str(beside)!r}?" if twin else nearest(given, known)
        raise click.UsageError(f"{_KINDS[command]} {given}: no such file.{near}")
    own = known[given]
    if own.command != command:
        kind = _KINDS[own.command]
        raise click.UsageError(f"{given} is a {kind}: kgraft {own.command} {given}.")
    if twin and not beside.samefile(own.path):
        note = f"kgraft: {given} is the {_KINDS[command]} that comes with kgraft; {beside} is not."
        click.echo(note, err=True)
    return own.path


def nearest(word: str, names: Iterable[str]) -> str:
    """Sentence that points from a wrong word to the nearest name, or to where all of them are.

    Args:
        word: what somebody has given, also a path in a checkout.
        names: of run files, or other words that are valid there.

    Returns:
        The sentence, with a leading space.

    Example:
        >>> nearest("configs/cifar/resnet20.toml", ["cifar/resnet20", "quickstart"])
        " Did you mean 'cifar/resnet20'?"
        >>> nearest("resnet-20", ["cifar/resnet20", "quickstart"])
        " Did you mean 'cifar/resnet20'?"
        >>> nearest("vit", ["cifar/resnet20", "quickstart"])
        " kgraft configs lists kgraft's own."
    """
    names = list(names)
    meant = {name.rpartition("/")[2]: name for name in names} | {name: name for name in names}
    word = word.lower().removeprefix("configs/").removesuffix(".toml")
    close = difflib.get_close_matches(word, meant, n=1)
    return f" Did you mean {meant[close[0]]!r}?" if close else " kgraft configs lists kgraft's own."


def head_of(text: str) -> Head:
    r"""What the comment that opens a run file says.

    Args:
        text: of the file: comments, the first of which is the command that runs it.

    Example:
        >>> text = '''# kgraft fit two
        ... #
        ... # Two peers (of one network): a look. Digits.
        ... # Source: none. Cost: a minute.
        ... # Published (A et al., table 5): 93.9 on A, 71.2 on B, in their
        ... # code the best epoch. Ours: not measured.'''
        >>> head = head_of(text)
        >>> head.command, head.what
        ('kgraft fit two', 'Two peers: a look.')
        >>> head.parts["Cost"]
        'Cost: a minute.'
        >>> head.figures
        'Cost: a minute. Published (A et al., table 5): 93.9 on A, 71.2 on B. Ours: not measured.'
    """
    lines = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    command, *others = [line.removeprefix("#").strip() for line in lines]
    said = " ".join(filter(None, others))
    about, *parts = _PARTS.split(said)
    first = re.split(r"(?<=[.?]) ", re.sub(r" \([^)]*\)", "", about))[0]
    return Head(command, said, first, {re.split(r"\W", part)[0]: part for part in parts})


def _of_figures_alone(part: str) -> str:
    """A sentence whose figures come first, without what follows them."""
    said, colon, told = part.partition(": ")
    clauses = re.split(r"[,;] ", told.removesuffix("."))
    figures = ", ".join(itertools.takewhile(lambda clause: clause[:1].isdigit(), clauses))
    return f"{said}{colon}{figures}." if figures and said.startswith("Published") else part
