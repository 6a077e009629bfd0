"""`kgraft methods`: what `--method` and `run.method` may say, and what each can be told."""

import click

from kgraft_cli.parameters import HERE


@click.command("methods")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@HERE
def command(names: tuple[str, ...], here: bool) -> None:
    """List the methods: what each does, how many peers and teachers it has, its settings.

    NAME is one of them, or module:Class of your own; without one all are listed.
    """
    import inspect
    import shutil

    from kgraft import settings
    from kgraft.errors import UserError, suggest
    from kgraft.kinds import to_toml
    from kgraft.runs.methods import METHODS

    width = shutil.get_terminal_size().columns
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise UserError(f"method {unknown[0]!r} is unknown." + suggest(unknown[0], METHODS))
    for number, name in enumerate(names or sorted(METHODS)):
        method = METHODS[name]
        usual = f"{method.teachers}, " if method.teachers > 1 else ""
        teachers = f"{usual}at least 1" if method.taught else "none"
        click.echo("\n" * bool(number) + click.style(name, bold=True))
        does = " ".join((inspect.getdoc(method) or "").partition("\n\n")[0].split())
        needs = f"Peers: {method.peers}, at least {method.least}. Teachers: {teachers}."
        for text in (does, needs):
            click.echo(click.wrap_text(text, width, "    ", "    "))
        keys = settings.keys_of(method)
        if keys:
            click.echo(f"    [{method.table}]")
        for key in keys:
            default = settings.default_of(method, key)
            click.echo(f"    {key}" + ("" if default is None else f" = {to_toml(default)}"))
