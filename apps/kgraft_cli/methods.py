"""`kgraft methods`: what `--method` and `run.method` may say, and what each can be told."""

import click


@click.command("methods")
def command() -> None:
    """List the methods: what each does, how many peers and teachers it has, its settings."""
    import inspect

    from rich.console import Console
    from rich.table import Table

    from kgraft import settings
    from kgraft.runs.methods import METHODS

    table = Table()
    for name in ("method", "what happens", "peers", "teachers", "settings"):
        table.add_column(name, no_wrap=name in ("method", "settings"))
    for name, method in sorted(METHODS.items()):
        defaults = [
            key if default is None else f"{key} = {settings.to_toml(default)}"
            for key in settings.keys_of(method)
            for default in [settings.default_of(method, key)]
        ]
        rows = [f"[{method.table}]", *defaults] if defaults else []
        table.add_row(
            name,
            (inspect.getdoc(method) or "").partition("\n\n")[0].replace("\n", " "),
            f"{method.peers}, at least {method.least}",
            "at least 1" if method.taught else "none",
            "\n".join(rows).replace("[", r"\["),
            end_section=True,
        )
    Console().print(table)
