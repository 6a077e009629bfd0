"""`kgraft models`: the architectures and what they cost."""

import click

from kgraft_cli.parameters import HERE


@click.command("models")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--input-shape", default="32,32,3", metavar="H,W,C", show_default=True)
@click.option("--classes", default=10, metavar="N", show_default=True)
@HERE
def command(names: tuple[str, ...], input_shape: str, classes: int, here: bool) -> None:
    """List the architectures: parameters, multiply-adds (papers call them FLOPs), filters.

    NAME is one of them, one of keras.applications or of an installed package, or module:function of
    your own; without one kgraft's are listed.
    """
    from rich.console import Console

    from kgraft import models
    from kgraft.errors import UserError
    from kgraft_cli.figures import Figures

    parts = input_shape.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() for part in parts):
        raise UserError(f"--input-shape {input_shape}: expected height,width,channels: 32,32,3.")
    height, width, channels = map(int, parts)
    others = ", ".join(["wrn-D-K", "resnetN-leaky", "keras.applications", *models.packaged()])
    table = Figures(
        f"{height}x{width}x{channels}, {classes} classes; also {others}",
        ("model", "parameters", "multiply-adds", "FLOPs", "filters"),
    )
    for row in models.describe((height, width, channels), classes, names):
        table.add_row(
            row.name,
            f"{row.parameters:,}",
            f"{row.macs / 1e6:,.1f} M",
            f"{row.flops / 1e6:,.1f} M",
            f"{row.filters:,}",
        )
    Console(markup=False, emoji=False).print(table)
