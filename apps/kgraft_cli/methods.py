"""`kgraft methods`: what `--method` and `run.method` may say, and what each can be told."""

import click


@click.command("methods")
def command() -> None:
    """List the methods: what each does, how many peers and teachers it has, its settings."""
    import inspect
    import shutil

    from kgraft import settings
    from kgraft.kinds import to_toml
    from kgraft.runs.methods import METHODS

    width = shutil.get_terminal_size().columns
    for number, (name, method) in enumerate(sorted(METHODS.items())):
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
