"""`kgraft plan`: what K peers on many ranks send, how long it takes, and how to start them."""

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from kgraft_cli.parameters import HERE, NOT_NEGATIVE, POSITIVE

if TYPE_CHECKING:
    from kgraft.links.cost import Epoch, Mixing, Traffic
    from kgraft.links.park import Park, Placement
    from kgraft_cli.figures import Figures

_GIGA, _MICRO = 1e9, 1e-6
_IMAGENET, _CIFAR = 224, 32  # pixels
_CLASSES = {_IMAGENET: 1000, _CIFAR: 100}
_IMAGES = {_IMAGENET: 1_281_167, _CIFAR: 50_000}
_A_RANK = 128  # images a step


def _rate(name: str, default: float, text: str) -> Any:
    """An option that is bytes a second."""
    return click.option(
        name, type=POSITIVE, default=default, show_default=True, metavar="GB/S", help=text
    )


def _wait(name: str, default: float, text: str) -> Any:
    """An option that is a time."""
    return click.option(
        name, type=NOT_NEGATIVE, default=default, show_default=True, metavar="US", help=text
    )


def _count(name: str, most: int, text: str, least: int = 1, **more: Any) -> Any:
    """An option that is a whole number; more than `most` would be counted for hours."""
    return click.option(name, type=click.IntRange(least, most), metavar="N", help=text, **more)


@click.command("plan")
@_count("--hosts", 4096, "Machines.", default=1, show_default=True)
@_count("--gpus", 64, "Ranks on each, one a GPU.", default=8, show_default=True)
@click.option(
    "--model", default="resnet50", show_default=True, metavar="NAME", help="See kgraft models."
)
@_count("--size", 4096, "Pixels of a side; default: 224 for ImageNet's networks, else 32.")
@_count("--classes", 10**6, "Default: 1000 for ImageNet's networks, else 100.", least=2)
@_count("--peers", 4096, "K.", least=2, default=8, show_default=True)
@_count("--ranks-per-peer", 4096 * 64, "R, ranks that share a peer's batches; default: all work.")
@click.option(
    "--method",
    type=click.Choice(["graft", "papa", "papa-all"]),
    default="graft",
    show_default=True,
    help="How peers meet.",
)
@_rate("--bandwidth", 10.0, "Of a host's network card, each way: 100 GbE less a fifth.")
@_rate("--host-bandwidth", 50.0, "Among a host's ranks, all together: 8 GPUs, a quarter of PCIe 4.")
@_rate("--copy-bandwidth", 10.0, "Between a GPU and host memory.")
@_rate("--graft-bandwidth", 1.0, "Weights that a rank counts and blends: two CPU cores' rate.")
@_wait("--latency", 50.0, "Microseconds until a message is at another host.")
@_wait("--host-latency", 20.0, "Microseconds until it is at another rank of the host.")
@_wait("--store-time", 20.0, "Microseconds that the key-value store takes for a request.")
@_count("--images", 10**12, "Of an epoch; default: ImageNet's 1,281,167, else 50,000.")
@_count("--batch-size", 10**9, f"Images a step of a peer; default: {_A_RANK} a rank.")
@click.option(
    "--images-per-second",
    type=POSITIVE,
    metavar="RATE",
    help="That a GPU trains one peer on, as you measured it: tells the share of an epoch.",
)
@HERE
def command(
    hosts: int,
    gpus: int,
    model: str,
    size: int | None,
    classes: int | None,
    peers: int,
    ranks_per_peer: int | None,
    method: str,
    bandwidth: float,
    host_bandwidth: float,
    copy_bandwidth: float,
    graft_bandwidth: float,
    latency: float,
    host_latency: float,
    store_time: float,
    images: int | None,
    batch_size: int | None,
    images_per_second: float | None,
    here: bool,
) -> None:
    """What K peers on many GPUs send, how long that takes an epoch, and how to start them.

    Nothing is measured: bytes are counted, and divided by the rates given here. Nothing is taken to
    overlap. What stands behind each figure: kgraft/docs/many.md.

    Ranks are numbered as torchrun does, host after host. R of them, a block, share a peer's
    batches; more peers than blocks share a rank. Without --ranks-per-peer all ranks work, and each
    peer gets as many.
    """
    from rich.console import Console

    from kgraft.errors import UserError
    from kgraft.links import cost
    from kgraft.links import park as parks
    from kgraft_cli.figures import Figures
    from kgraft_cli.messages import say

    ranks = hosts * gpus
    wide = ranks_per_peer or parks.ranks_per_peer(ranks, peers)
    placement = parks.Placement(ranks, peers, wide)
    batch = batch_size or _A_RANK * wide
    if batch < wide:
        raise UserError(
            f"--batch-size {batch} is less than an image for each of a peer's {wide} ranks: give "
            f"{wide} or more, or fewer --ranks-per-peer."
        )
    park = parks.Park(
        hosts,
        gpus,
        bandwidth * _GIGA,
        host_bandwidth * _GIGA,
        latency * _MICRO,
        host_latency * _MICRO,
        copying=copy_bandwidth * _GIGA,
        mixing=graft_bandwidth * _GIGA,
        answering=store_time * _MICRO,
    )
    usual = _usual_size(model)
    network = _Network.of(model, size or usual, classes or _CLASSES[usual])
    seen = images or _IMAGES[usual]
    steps = -(-seen // batch)
    if method == "graft":
        mixing = cost.grafting(park, placement, network.row, network.groups)
    else:
        mixing = cost.averaging(park, placement, network.row)
    gradients = cost.gradient_traffic(park, placement, network.trainable)
    epoch = cost.Epoch(
        mixing,
        _mixings(method, steps),
        steps,
        gradients.transfer(park) + gradients.latencies(park),
        cost.training_seconds(placement, seen, images_per_second or math.inf),
    )
    console = Console(markup=False, emoji=False)
    console.print(network.told, highlight=False)
    console.print(f"{_park_told(park)}; {_placement_told(placement)}", highlight=False)
    console.print(
        f"{steps:,} {_plural('step', steps)} of {batch:,} images an epoch\n", highlight=False
    )
    rows = Figures("What an epoch takes", ("", method))
    _mixing_rows(rows, park, placement, mixing, ring=method == "graft")
    _epoch_rows(rows, epoch, gradients, sharing=wide > 1)
    console.print(rows)
    where, line = _how_to_start(park, placement, method)
    console.print(f"\n{where}:\n", highlight=False)
    say(console, line)


@dataclass(frozen=True)
class _Network:
    """What of a network counts here.

    Attributes:
        told: its name, shape, classes and size.
        row: bytes of all floating-point weights.
        trainable: bytes of those that are trained.
        groups: of its graft plan.
    """

    told: str
    row: int
    trainable: int
    groups: int

    @classmethod
    def of(cls, name: str, size: int, classes: int) -> "_Network":
        """Build it, and count."""
        from kgraft import GraftPlan, models
        from kgraft.links.columns import Columns
        from kgraft.links.cost import BYTES

        model = models.build(name, input_shape=(size, size, 3), classes=classes)
        numbers, groups = Columns(model.weights).size, GraftPlan.of(model).groups
        return cls(
            f"{name}, {size}x{size}x3, {classes:,} classes: {numbers:,} weights, "
            f"{_bytes(BYTES * numbers)}, in {len(groups)} {_plural('group', len(groups))}",
            BYTES * numbers,
            BYTES * models.parameters(model),
            len(groups),
        )


def _usual_size(name: str) -> int:
    """Side of ImageNet's images for networks that were made for it, else that of CIFAR's."""
    from kgraft.models import applications, default_size, registry

    if name in applications.names():
        return _IMAGENET
    if registry.is_foreign(name):  # says nothing
        return _CIFAR
    return _IMAGENET if default_size(name) > _CIFAR else _CIFAR


def _mixings(method: str, steps: int) -> float:
    """How often peers meet in an epoch, as the method has it where nothing is set."""
    from kgraft.runs.methods import METHODS
    from kgraft.settings import default_of

    if method == "papa":
        return steps / int(default_of(METHODS[method], "every_steps"))
    return 1 / int(default_of(METHODS[method], "every"))


def _park_told(park: "Park") -> str:
    hosts = f"{park.hosts:,} {_plural('host', park.hosts)}"
    return f"{hosts}, {park.ranks:,} {_plural('rank', park.ranks)}"


def _placement_told(placement: "Placement") -> str:
    """Who is where, in words."""
    least, most, wide = placement.least, placement.most, placement.ranks_per_peer
    peers = f"{placement.peers:,} peers"
    if most > 1:
        peers += f", {least} on a rank" if least == most else f", {least} or {most} on a rank"
    if wide > 1:
        return f"{peers}, each on {wide:,} ranks that share its batches"
    return peers


def _mixing_rows(
    rows: "Figures", park: "Park", placement: "Placement", mixing: "Mixing", ring: bool
) -> None:
    """What travels when peers meet, and what each part of that takes."""
    if ring:
        for way, count in _edges(park, placement).items():
            rows.add_row(f"ring edges {way}", f"{count:,}")
    rows.add_row("a rank sends", _bytes(mixing.traffic.sent))
    rows.add_row("a rank receives", _bytes(mixing.traffic.received))
    rows.add_row("among the ranks of a host", _bytes(mixing.traffic.inside))
    rows.add_row("busiest network card, each way", _bytes(mixing.traffic.card))
    rows.add_section()
    rows.add_row("copies from and to the GPU", _seconds(mixing.copies))
    rows.add_row("busiest link", _seconds(mixing.link))
    rows.add_row("latencies", _seconds(mixing.latencies))
    rows.add_row("small values through the store", _seconds(mixing.gathers))
    rows.add_row("counting and blending", _seconds(mixing.mixing))
    rows.add_row("one mixing", _seconds(mixing.seconds))
    rows.add_section()


def _edges(park: "Park", placement: "Placement") -> dict[str, int]:
    """How many ring edges of all lanes go how far."""
    from kgraft.links.park import crossings

    ways = Counter(park.way(*pair) for pair in crossings(placement))
    return {
        "within a process": placement.peers * placement.ranks_per_peer - ways.total(),
        "within a host": ways["host"],
        "between hosts": ways["network"],
    }


def _epoch_rows(rows: "Figures", epoch: "Epoch", gradients: "Traffic", sharing: bool) -> None:
    """What all mixings, gradients and steps of an epoch take."""
    if sharing:
        rows.add_row("gradients a rank sends a step", _bytes(gradients.sent))
        rows.add_row("the same, busiest network card", _bytes(gradients.card))
        rows.add_row("gradients, a step", _seconds(epoch.gradients))
        rows.add_row("gradients, all steps", _seconds(epoch.reducing))
    rows.add_row(f"mixings, {epoch.mixings:g} an epoch", _seconds(epoch.ring))
    if epoch.training:
        rows.add_row("training", _seconds(epoch.training))
        rows.add_row("share of the mixings", f"{epoch.ring / epoch.seconds:.2%}")
        if sharing:
            rows.add_row("share of the gradients", f"{epoch.reducing / epoch.seconds:.2%}")


def _how_to_start(park: "Park", placement: "Placement", method: str) -> tuple[str, str]:
    """Where the command line is to be run that trains so, and the line itself."""
    what = f"fit RUNFILE --peers {placement.peers}"
    if method != "graft":
        what += f" --method {method}"
    if placement.ranks_per_peer > 1:
        what += f" --ranks-per-peer {placement.ranks_per_peer}"
    if park.ranks == 1:
        return "To start it", f"kgraft {what}"
    if park.hosts == 1:
        ranks = f"--standalone --nproc-per-node {park.gpus}"
        return "To start it", f"torchrun {ranks} -m kgraft_cli {what}"
    return (
        f"To start it, on each of the {park.hosts:,} hosts, HOST being one of them and NAME any "
        "word, the same everywhere",
        f"torchrun --nnodes {park.hosts} --nproc-per-node {park.gpus} --rdzv-backend c10d "
        f"--rdzv-endpoint HOST:29500 --rdzv-id NAME -m kgraft_cli {what}",
    )


def _bytes(size: float) -> str:
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= limit:
            return f"{size / limit:,.1f} {unit}"
    return f"{size:.0f} bytes" if size else "0"


def _seconds(seconds: float) -> str:
    if seconds >= 600:
        return f"{seconds / 60:,.0f} min"
    for limit, unit in ((1, "s"), (1e-3, "ms")):
        if seconds >= limit:
            return f"{seconds / limit:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs" if seconds else "0"


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"
