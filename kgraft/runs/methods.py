"""The methods that a run file can name: what each does to the peers."""

from dataclasses import replace

from kgraft import grafting
from kgraft.errors import UserError
from kgraft.grafting import Entropy, FilterEntropy, Graft, L1Norm, Mixer
from kgraft.runs.config import Config
from kgraft.runs.needs import METHODS
from kgraft.training.mutual import Mutual


def settled(config: Config) -> Config:
    """Settings with the method named, and with as many peers and teachers as it needs.

    Args:
        config: what was given; without a method it follows from the numbers.

    Raises:
        UserError: numbers that were given and that the method cannot have.
    """
    name = config.run.method or _implied(config)
    method = METHODS[name]
    peers, teachers = config.peers.count, config.teachers.count
    if config.run.method is not None:
        peers = peers if "peers.count" in config.given else method.peers
        if "teachers.count" not in config.given:
            teachers = max(len(config.teachers.files), 1) if method.taught else 0
    if peers < method.least:
        raise UserError(
            f"method {name} with peers.count = {peers}: expected {method.least} or more."
        )
    if method.taught and teachers < 1:
        raise UserError(f"method {name} with teachers.count = 0: expected 1 or more.")
    if not method.taught and teachers > 0:
        raise UserError(
            f"method {name} has no teachers, and teachers.count is {teachers}: expected 0, or the "
            "method graft+ or distill."
        )
    if name == "repr":
        _check_repr(config)
    return replace(
        config,
        run=replace(config.run, method=name),
        peers=replace(config.peers, count=peers),
        teachers=replace(config.teachers, count=teachers),
        given=config.given | {"run.method", "peers.count", "teachers.count"},
    )


def mixer_of(config: Config) -> Mixer:
    """What the method does to the peers' weights.

    Args:
        config: settled settings.
    """
    seed = config.run.seed
    match config.run.method:
        case "graft" | "graft+":
            return graft_of(config)
        case "rotation":
            return grafting.Rotation()
        case "fixed":
            return grafting.FixedGraft(config.graft.alpha)
        case "papa" if config.papa.variant == "all":
            return grafting.Average()
        case "papa":
            return grafting.Papa(config.papa.rate, config.papa.every_steps)
        case "wash":
            return grafting.Wash(config.wash.share, config.wash.by_depth, seed)
        case "noise":
            return grafting.Noise(config.scion.decay, config.scion.threshold, seed)
        case "internal":
            return grafting.Internal(config.scion.threshold)
        case "repr":
            wanted = config.repr
            return grafting.RePr(
                wanted.full_epochs, wanted.pruned_epochs, wanted.cycles, wanted.share, seed
            )
        case _:
            return Mixer()


def mutual_of(config: Config) -> Mutual | None:
    """Mutual learning where the method is that, None otherwise.

    Args:
        config: settled settings.
    """
    if config.run.method != "mutual":
        return None
    return Mutual(config.mutual.weight, config.mutual.temperature)


def every_of(config: Config) -> int:
    """After how many epochs the peers are mixed."""
    averages = config.run.method == "papa" and config.papa.variant == "all"
    return config.papa.every_epochs if averages else config.graft.every


def graft_of(config: Config) -> Mixer:
    """The grafting that the settings describe."""
    wanted = config.graft
    if wanted.level == "filter":
        return grafting.FilterGraft()
    criterion: Entropy | FilterEntropy | L1Norm
    if wanted.criterion == "entropy":
        criterion = Entropy(wanted.bins, wanted.binning)  # type: ignore[arg-type]
    elif wanted.criterion == "filter-entropy":
        criterion = FilterEntropy(wanted.bins)
    else:
        criterion = L1Norm()
    return Graft(
        criterion=criterion,
        amplitude=wanted.amplitude,
        sharpness=wanted.sharpness,
        grouping=wanted.grouping,  # type: ignore[arg-type]
        decimals=wanted.decimals,
    )


def _implied(config: Config) -> str:
    if config.teachers.count:
        return "graft+" if config.peers.count > 1 else "distill"
    return "graft" if config.peers.count > 1 else "baseline"


def _check_repr(config: Config) -> None:
    wanted, epochs = config.repr, config.run.epochs
    needed = wanted.cycles * (wanted.full_epochs + wanted.pruned_epochs)
    if epochs < needed:
        raise UserError(
            f"method repr: {wanted.cycles} cycles of {wanted.full_epochs} + {wanted.pruned_epochs} "
            f"epochs need {needed}, run.epochs is {epochs}: set repr.full_epochs, "
            "repr.pruned_epochs or repr.cycles."
        )
