"""`kgraft configs`: the run files that come with kgraft."""

import shlex
import shutil
from pathlib import Path

import click

from kgraft_cli.main import Commands
from kgraft_cli.parameters import PLACE
from kgraft_cli.shipped import nearest, run_file, run_files


class _Listing(Commands):
    """Lists where there is no command, or only a word that is none."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args or ["list"])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        words = [arg for arg in args if not arg.startswith("-")]
        alone = words == args[:1] and args[0] not in self.commands
        return super().resolve_command(ctx, ["list", *args] if alone else args)


@click.group("configs", cls=_Listing)
def command() -> None:
    """List the run files that come with kgraft, or copy one to edit.

    `kgraft fit NAME` trains what a run file says, `kgraft compare NAME` a comparison. Without a
    command they are listed; with a word, e.g. kgraft configs fair, those whose name holds it.
    """


@command.command("list")
@click.argument("word", required=False)
def list_files(word: str | None) -> None:
    """List the run files, or those whose name holds WORD."""
    known = run_files()
    found = [own for name, own in known.items() if word is None or word in name]
    if word is not None and not found:
        near = nearest(word, [*known, *command.commands])
        raise click.UsageError(f"no run file that comes with kgraft is called {word!r}.{near}")
    width = shutil.get_terminal_size().columns
    for own in found:
        head = own.head()
        click.secho(own.name, bold=True)
        for text in (head.what, head.figures):
            click.echo(click.wrap_text(text, width, "    ", "    "))


@command.command("show")
@click.argument("name")
def show(name: str) -> None:
    """Print run file NAME."""
    click.echo(run_file(name).path.read_text(encoding="utf-8"), nl=False)


@command.command("copy")
@click.argument("name")
@click.argument("file", required=False, type=PLACE)
@click.option("--force", is_flag=True, help="Overwrite FILE.")
def copy(name: str, file: str | None, force: bool) -> None:
    """Copy run file NAME to FILE, to be edited.

    FILE may be a directory, and is the working directory by default; the copy is then called after
    the last part of NAME: quickstart.toml.
    """
    own = run_file(name)
    path = Path("." if file is None else file)

    from kgraft.files import check_place, storing, write_bytes

    with storing(path):
        if path.is_dir():
            path /= f"{own.last}.toml"
        if path.is_file() and not force:
            raise click.UsageError(f"{path} is there already: give another FILE, or --force.")
        check_place(path)
        write_bytes(path, own.path.read_bytes())
    click.echo(f"{path} is a copy of {name}: kgraft {own.command} {shlex.quote(str(path))}")
