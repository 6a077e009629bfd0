"""The methods that a run file can name: one entry says all that there is to know of each."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from kgraft import grafting
from kgraft.errors import UserError
from kgraft.grafting import Entropy, FilterEntropy, Graft, L1Norm, Mixer
from kgraft.training.mutual import Mutual

if TYPE_CHECKING:  # a run's settings ask here what a method may be called
    from kgraft.runs.config import Config

_EVERYBODYS = ("run", "data", "model", "peers", "optimizer", "schedule", "given")
_TIMES = ("graft.every", "graft.epochs", "graft.evaluate")  # of what happens at epochs' ends
_LAYERS = (
    *("graft.criterion", "graft.bins", "graft.binning", "graft.amplitude", "graft.sharpness"),
    *("graft.decimals", "graft.grouping", "graft.frozen"),
)


def _plain(config: "Config") -> Mixer:
    return Mixer()


def _never(config: "Config") -> None:
    """No mutual learning, and nothing to check."""


def _every(config: "Config") -> int:
    return config.graft.every


@dataclass(frozen=True)
class Method:
    """One method.

    Attributes:
        name: its word in a run file.
        peers: how many networks it trains where nobody says.
        least: how many it needs at least.
        taught: whether it needs teachers; it has none otherwise.
        averaged: whether a peer is the moving average of its last steps.
        answer: what answers a question after training: `"peer"` or `"ensemble"`.
        reads: settings -> those of the methods' tables that it reads, as `"table.key"`, or
            `"table"` for all of one.
        mixer: settings -> what is done to the peers' weights.
        mutual: settings -> how peers learn from each other, None where they do not.
        every: settings -> after how many epochs the peers are mixed.
        check: settings -> nothing; refuses what it cannot do.
    """

    name: str
    peers: int = 1
    least: int = 1
    taught: bool = False
    averaged: bool = False
    answer: str = "peer"
    reads: Callable[["Config"], tuple[str, ...]] = lambda _: ()
    mixer: Callable[["Config"], Mixer] = _plain
    mutual: Callable[["Config"], Mutual | None] = _never
    every: Callable[["Config"], int] = _every
    check: Callable[["Config"], None] = _never


def _graft_reads(config: "Config") -> tuple[str, ...]:
    filters = config.graft.level == "filter"
    return (*_TIMES, "graft.level", *(("graft.grouping",) if filters else _LAYERS))


def _graft(config: "Config") -> Mixer:
    wanted = config.graft
    if wanted.level == "filter":
        return grafting.FilterGraft(biases=wanted.grouping != "authors")
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
        blend_frozen=wanted.frozen,
    )


def _papa_reads(config: "Config") -> tuple[str, ...]:
    if config.papa.variant == "all":
        return ("papa.variant", "papa.every_epochs", "graft.epochs", "graft.evaluate")
    return ("papa.variant", "papa.rate", "papa.every_steps", "papa.lr_scaling")


def _papa(config: "Config") -> Mixer:
    wanted = config.papa
    if wanted.variant == "all":
        return grafting.Average()
    return grafting.Papa(
        wanted.rate,
        wanted.every_steps,
        lr_scaling=wanted.lr_scaling,  # type: ignore[arg-type]
    )


def _repr(config: "Config") -> Mixer:
    wanted = config.repr
    return grafting.RePr(
        wanted.full_epochs, wanted.pruned_epochs, wanted.cycles, wanted.share, config.run.seed
    )


def _check_repr(config: "Config") -> None:
    wanted, epochs = config.repr, config.run.epochs
    needed = wanted.cycles * (wanted.full_epochs + wanted.pruned_epochs)
    if epochs < needed:
        raise UserError(
            f"method repr: {wanted.cycles} cycles of {wanted.full_epochs} + {wanted.pruned_epochs} "
            f"epochs need {needed}, run.epochs is {epochs}: set repr.full_epochs, "
            "repr.pruned_epochs or repr.cycles."
        )


METHODS = {
    method.name: method
    for method in (
        Method("baseline"),
        Method("graft", peers=4, least=2, reads=_graft_reads, mixer=_graft),
        Method(
            "graft+",
            peers=4,
            least=2,
            taught=True,
            reads=lambda config: ("teachers", *_graft_reads(config)),
            mixer=_graft,
        ),
        Method("distill", taught=True, reads=lambda _: ("teachers",)),
        Method(
            "mutual",
            peers=2,
            least=2,
            reads=lambda _: ("mutual",),
            mutual=lambda config: Mutual(config.mutual.weight, config.mutual.temperature),
        ),
        # RePr counts every epoch by itself: grafting's times would leave filters dropped
        Method("repr", reads=lambda _: ("repr",), mixer=_repr, check=_check_repr),
        Method(
            "noise",
            reads=lambda _: ("scion", *_TIMES),
            mixer=lambda config: grafting.Noise(
                config.scion.decay, config.scion.threshold, config.run.seed
            ),
        ),
        Method(
            "internal",
            reads=lambda _: ("scion.threshold", *_TIMES),
            mixer=lambda config: grafting.Internal(config.scion.threshold),
        ),
        Method(
            "rotation",
            peers=4,
            least=2,
            reads=lambda _: _TIMES,
            mixer=lambda _: grafting.Rotation(),
        ),
        Method(
            "fixed",
            peers=4,
            least=2,
            reads=lambda _: ("graft.alpha", *_TIMES),
            mixer=lambda config: grafting.FixedGraft(config.graft.alpha),
        ),
        Method(
            "papa",
            peers=4,
            least=2,
            reads=_papa_reads,
            mixer=_papa,
            every=lambda config: config.papa.every_epochs if config.papa.variant == "all" else 1,
        ),
        Method(
            "wash",
            peers=4,
            least=2,
            reads=lambda _: ("wash",),
            mixer=lambda config: grafting.Wash(
                config.wash.share, config.wash.by_depth, config.run.seed
            ),
        ),
        Method("ema", averaged=True, reads=lambda _: ("ema",)),
        Method("ensemble", peers=4, least=2, answer="ensemble"),
    )
}


def method_of(config: "Config") -> Method:
    """The method that the settings name, or that follows from the numbers of peers and teachers.

    Args:
        config: the settings.
    """
    if config.run.method is not None:
        return METHODS[config.run.method]
    several = config.peers.count > 1
    if config.teachers.count:
        return METHODS["graft+" if several else "distill"]
    return METHODS["graft" if several else "baseline"]


def settled(config: "Config") -> "Config":
    """Settings with the method named, and with as many peers and teachers as it needs.

    What the method does not read is left at its default.

    Args:
        config: what was given; without a method it follows from the numbers.

    Raises:
        UserError: numbers that were given and that the method cannot have, or settings that were
            given and that it does not read.
    """
    method = method_of(config)
    peers, teachers = config.peers.count, config.teachers.count
    if config.run.method is not None:
        peers = peers if "peers.count" in config.given else method.peers
        if "teachers.count" not in config.given:
            teachers = max(len(config.teachers.files), 1) if method.taught else 0
    if peers < method.least:
        raise UserError(
            f"method {method.name} with peers.count = {peers}: expected {method.least} or more."
        )
    if method.taught and teachers < 1:
        raise UserError(f"method {method.name} with teachers.count = 0: expected 1 or more.")
    if not method.taught and teachers > 0:
        raise UserError(
            f"method {method.name} has no teachers, and teachers.count is {teachers}: expected 0, "
            "or the method graft+ or distill."
        )
    _check_read(config, method)
    method.check(config)
    named = replace(
        config,
        run=replace(config.run, method=method.name),
        peers=replace(config.peers, count=peers),
        teachers=replace(config.teachers, count=teachers),
        given=config.given | {"run.method", "peers.count", "teachers.count"},
    )
    return without_unread(named)


def without_unread(config: "Config") -> "Config":
    """Settings in which all that the method does not read is as if nobody had set it.

    Args:
        config: settings with a method.
    """
    unread = set(unread_by(method_of(config), config))
    tables: dict[str, Any] = {}
    for table in {key.partition(".")[0] for key in unread}:
        own = getattr(config, table)
        plain = {f.name: f.default for f in fields(own) if f"{table}.{f.name}" in unread}
        tables[table] = replace(own, **plain)
    return replace(config, given=config.given - unread, **tables)


def unread_by(method: Method, config: "Config") -> list[str]:
    """The settings of the methods' tables that a method does not read, as `"table.key"`.

    Args:
        method: the method.
        config: the settings; which others count may follow from them.
    """
    read = (*method.reads(config), "teachers.count")
    return [
        key
        for table in (f.name for f in fields(config) if f.name not in _EVERYBODYS)
        for key in (f"{table}.{f.name}" for f in fields(getattr(config, table)))
        if table not in read and key not in read
    ]


def for_everybody(config: "Config") -> "Config":
    """Settings that entries with different methods share: no method has to read all of them.

    Args:
        config: the settings that are shared.
    """
    own = {key for key in config.given if key.partition(".")[0] not in _EVERYBODYS}
    return replace(config, given=config.given - (own - {"teachers.count"}))


def _check_read(config: "Config", method: Method) -> None:
    """Refuse settings that somebody has given and that nothing would read.

    Where the method follows from the numbers of peers and teachers, a run file may describe the
    grafting and the teachers that it would have with more of them; and `teachers.count = 0` says
    what becomes of the teachers' other settings.
    """
    moot: Iterable[str] = ()
    if config.run.method is None:
        moot = METHODS["graft+"].reads(config)
    elif "teachers.count" in config.given and not config.teachers.count:
        moot = ("teachers",)
    wrong = [
        key
        for key in unread_by(method, config)
        if key in config.given and key not in moot and key.partition(".")[0] not in moot
    ]
    if wrong:
        read = [key if "." in key else f"[{key}]" for key in method.reads(config)]
        raise UserError(
            f"method {method.name} does not read {', '.join(wrong)}: take that out. It reads "
            + (f"{', '.join(read)}." if read else "no method's settings.")
        )
