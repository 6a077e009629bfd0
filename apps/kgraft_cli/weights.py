"""`kgraft weights`: PyTorch's weights into Keras models, and back."""

import click

from kgraft_cli.main import Commands
from kgraft_cli.parameters import PLACE


@click.group("weights", cls=Commands)
def command() -> None:
    """Take weights from PyTorch, or give them."""


@command.command("import")
@click.argument("source", type=PLACE)
@click.argument("model")
@click.option(
    "-o", "--out", type=PLACE, required=True, metavar="FILE.keras", help="The new Keras model."
)
@click.option("--peer", default=1, show_default=True, help="Which peer, if SOURCE is a run.")
@click.option("--size", type=click.IntRange(8), help="Side of the images, pixels.")
def import_(source: str, model: str, out: str, peer: int, size: int | None) -> None:
    """Save architecture MODEL with the weights of SOURCE.

    SOURCE is a PyTorch state dict (.pt, .pth, .safetensors), a .keras file or a run's directory.
    """
    from pathlib import Path

    from kgraft.runs.weights import import_weights

    made = import_weights(Path(source), model, Path(out), peer=peer, size=size)
    click.echo(f"{out}: {made.name}, {made.count_params():,} numbers, bit for bit")


@command.command("export")
@click.argument("source", type=PLACE)
@click.option(
    "-o",
    "--out",
    type=PLACE,
    required=True,
    metavar="FILE",
    help="A new .pt, .pth or .safetensors.",
)
@click.option("--peer", default=1, show_default=True, help="Which peer, if SOURCE is a run.")
@click.option("--layout", metavar="NAME", help="Whose names the keys have, e.g. torchvision.")
def export(source: str, out: str, peer: int, layout: str | None) -> None:
    """Save the weights of SOURCE, a .keras file or a run's directory, as a PyTorch state dict."""
    from pathlib import Path

    from kgraft.runs.weights import export_weights

    state = export_weights(Path(source), Path(out), peer=peer, layout=layout)
    click.echo(f"{out}: {len(state)} keys, the first is {next(iter(state))}")
