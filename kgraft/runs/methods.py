"""The methods that a run file can name: mixers, each in a class that says all there is to know.

Most words are those of `kgraft.grafting`; here are the ones that in Python are said otherwise.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, ClassVar

from kgraft import settings
from kgraft.errors import UserError
from kgraft.grafting import Average, FilterGraft, Graft, Independent, Mixer
from kgraft.grafting.mixer import MIXERS
from kgraft.parts import brought_by, called, load
from kgraft.runs import own
from kgraft.settings import setting
from kgraft.training import mutual  # noqa: F401  (has a word of its own)

if TYPE_CHECKING:  # a run's settings ask here what a method may be called
    from kgraft.runs.config import Config


@dataclass(frozen=True)
class GraftPlus(Graft):
    """Grafting, and every step learns from the mean of M teachers as well (grafting+).

    Source: arXiv 2004.12311, eq. 8-12; in Python `GraftingFit(peers, teachers)`.
    """

    name = "graft+"
    table = "graft"
    taught = True


@dataclass(frozen=True)
class FilterGraftPlus(FilterGraft):
    """Grafting filter by filter, and every step learns from the mean of M teachers as well.

    Source: as `filter-graft` and `graft+`.
    """

    name = "filter-graft+"
    table = "filter-graft"
    taught = True


@dataclass(frozen=True)
class Distill(Independent):
    """Every step learns from the mean of M teachers; one student or more, left alone.

    Source: Hinton et al. 2015; arXiv 2004.12311, eq. 8-12; in Python
    `GraftingFit(peers, teachers, mixer=Independent())`.
    """

    name = "distill"
    taught = True


@dataclass(frozen=True)
class Committee(Distill):
    """K networks of the same architecture first, then one student that learns from all of them.

    The networks (`teachers.count`, four by default) are trained as the baseline is, alone or with
    `teachers.grafted` as a ring, for `teachers.epochs`; the student's loss is eq. 8-12 with M = K.
    The cost is K trainings and the student's, whose every step asks the K networks besides.

    Where nobody says more it is as in comparisons/committee, whose student was the best: under a
    cosine the networks train a third of the student's epochs, elsewhere as long as it does; the
    temperature is 4, the teachers' weight 2, and the labels are not asked. That is for networks
    that are trained to their end; where longer training still brings points, a student without
    labels ends where its teachers are, and one with them (`teachers.labels = 1`, temperature 1,
    weight 1 in comparisons/cifar100-committee) goes past them.

    Source: Bucila et al. 2006 and Hinton et al. 2015 (an ensemble put into one network); arXiv
    2004.12311, eq. 8-12; in Python two fits, `GraftingFit(committee, mixer=Independent())` and
    `GraftingFit([student], committee, mixer=Independent())`.
    """

    name = "committee"
    teachers = 4
    lesson: ClassVar[Mapping[str, float]] = {"temperature": 4.0, "weight": 2.0, "labels": 0.0}


@dataclass(frozen=True)
class Ensemble(Independent):
    """K independent networks that answer together."""

    name = "ensemble"
    peers = 4
    least = 2
    answer = "ensemble"


@dataclass(frozen=True)
class PapaAll(Average):
    """All peers go on from the mean of all (PAPA-all), every five epochs.

    Source: Jolicoeur-Martineau et al., TMLR 2024; in Python `Average(every=5)`.
    """

    name = "papa-all"
    peers = 4
    least = 2
    every: int = setting(5, low=1, kw_only=True)


@dataclass(frozen=True)
class Ema(Independent):
    """The average of the last steps' weights is validated and kept.

    Args:
        decay: share of the moving average that a step keeps.

    Source: Polyak averaging; in Python `compile(optimizer=SGD(..., use_ema=True))`.
    """

    name = "ema"
    decay: float = setting(0.99, low=0.0, high=0.999999)


class _Methods(Mapping[str, type[Mixer]]):
    """All that can be named: kgraft's, those of installed packages, and any `module:Class`."""

    def __getitem__(self, name: str) -> type[Mixer]:
        if name in MIXERS:
            return MIXERS[name]
        for entry in entry_points(group="kgraft.methods", name=name):
            whose = brought_by(entry, "method")
            return _mixer(load(f"{entry.module}:{entry.attr}", whose, _EXAMPLE), name)
        if ":" not in name:
            raise KeyError(name)
        return _mixer(load(name, "method", _EXAMPLE), name)

    def __contains__(self, name: object) -> bool:
        try:
            return isinstance(name, str) and bool(self[name])
        except KeyError:
            return False

    def __iter__(self) -> Iterator[str]:
        packaged = (entry.name for entry in entry_points(group="kgraft.methods"))
        return iter(dict.fromkeys([*MIXERS, *packaged]))

    def __len__(self) -> int:
        return len(list(iter(self)))


METHODS = _Methods()
_EXAMPLE = "my_package.swap:Swap"
_log = logging.getLogger("kgraft")


def _mixer(found: object, name: str) -> type[Mixer]:
    if isinstance(found, type) and issubclass(found, Mixer) and found.name:
        found.check_class()
        return found
    raise UserError(f"method {name!r}: expected a class of kgraft.grafting.Mixer with a name.")


def distribution_of(name: str) -> str | None:
    """The package that has brought a method, None where no entry point names it."""
    found = next(iter(entry_points(group="kgraft.methods", name=name)), None)
    return None if found is None or found.dist is None else found.dist.name


def tables() -> dict[str, type[Mixer]]:
    """The tables of run files that hold methods' settings, and of each a class that has them."""
    found: dict[str, type[Mixer]] = {}
    for mixer in MIXERS.values():
        if settings.keys_of(mixer):
            found.setdefault(mixer.table, mixer)
    return found


def method_of(config: "Config") -> type[Mixer]:
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


def taught_epochs(config: "Config") -> int:
    """How many epochs the teachers have that a run trains.

    Args:
        config: the settings.
    """
    return config.teachers.epochs or config.run.epochs


def mixer_of(config: "Config") -> Mixer:
    """The method with the run's settings.

    Args:
        config: the settings.
    """
    method = method_of(config)
    has_seed = "seed" in getattr(method, "__dataclass_fields__", {})
    seed = {"seed": config.run.seed} if has_seed else {}
    own = config.of(method.table)
    made: Mixer = (
        called(f"method {config.run.method!r}", settings.made, method, own, **seed)
        if is_foreign(method)
        else settings.made(method, own, **seed)
    )
    return made


def is_foreign(method: type[Mixer]) -> bool:
    """Whether a method is not kgraft's own."""
    return method.__module__.partition(".")[0] != "kgraft"


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
            usual = max(len(config.teachers.files), method.teachers)
            teachers = usual if method.taught else 0
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
    if issubclass(method, Committee):
        config = _as_committee(config, method, teachers)
    _check_read(config, method)
    if method.taught:
        _check_lesson(config, teachers)
    mixer_of(config).check_epochs(config.run.epochs)
    named = replace(
        config,
        run=replace(config.run, method=config.run.method or method.name),
        peers=replace(config.peers, count=peers),
        teachers=replace(config.teachers, count=teachers),
        given=config.given | {"run.method", "peers.count", "teachers.count"},
    )
    return own.settled(without_unread(named))


def _as_committee(config: "Config", method: type[Committee], count: int) -> "Config":
    """Settings in which the teachers are the committee's where nobody has said otherwise.

    Args:
        config: the settings.
        method: the committee's.
        count: how many teachers there are.
    """
    usual: dict[str, Any] = {"model": config.model.name, **method.lesson}
    if count > len(config.teachers.files) and config.schedule.name.startswith("cosine"):
        usual["epochs"] = max(1, config.run.epochs // 3)
    usual = {name: v for name, v in usual.items() if f"teachers.{name}" not in config.given}
    given = config.given | {f"teachers.{name}" for name in usual}
    return replace(config, teachers=replace(config.teachers, **usual), given=given)


def without_unread(config: "Config") -> "Config":
    """Settings in which all that the method does not read is as if nobody had set it.

    Args:
        config: settings with a method.
    """
    unread = set(unread_by(method_of(config), config))
    kept = {key: value for key, value in config.methods.items() if key not in unread}
    teachers = {
        name: getattr(type(config.teachers)(), name)
        for table, _, name in (key.partition(".") for key in unread)
        if table == "teachers"
    }
    return replace(
        config,
        given=config.given - unread,
        methods=kept,
        teachers=replace(config.teachers, **teachers),
    )


def reads(method: type[Mixer], config: "Config") -> list[str]:
    """The settings that a method has besides everybody's, as `"table.key"`.

    Args:
        method: the method.
        config: the settings; which others count may follow from them.
    """
    keys = settings.read_of(method, config.of(method.table))
    teachers = config.teachers.__dataclass_fields__ if method.taught else ()
    return [*(f"{method.table}.{key}" for key in keys), *(f"teachers.{name}" for name in teachers)]


def unread_by(method: type[Mixer], config: "Config") -> list[str]:
    """The settings of the methods' tables that a method does not read, as `"table.key"`.

    Args:
        method: the method.
        config: the settings.
    """
    read = {*reads(method, config), "teachers.count"}
    everything = [f"teachers.{name}" for name in config.teachers.__dataclass_fields__]
    of_methods = tables()
    for table, owner in of_methods.items():
        everything += [f"{table}.{key}" for key in settings.keys_of(owner)]
    given = (key for key in config.given if key.partition(".")[0] in of_methods)
    everything += sorted({*config.methods, *given} - {*everything})  # of criteria of one's own
    return [key for key in everything if key not in read]


def for_everybody(config: "Config") -> "Config":
    """Settings that entries with different methods share: no method has to read all of them.

    Args:
        config: the settings that are shared.
    """
    ones = {key for key in config.given if key.partition(".")[0] in {*tables(), "teachers"}}
    return replace(config, given=config.given - (ones - {"teachers.count"}))


def _check_lesson(config: "Config", count: int) -> None:
    """Refuse settings of teachers that a run trains where it trains none, and lessons of nothing.

    Args:
        config: the settings.
        count: how many teachers there are.
    """
    trained, wanted = count - len(config.teachers.files), config.teachers
    for name, least in (("epochs", 1), ("grafted", 2)):
        if f"teachers.{name}" in config.given and getattr(wanted, name) and trained < least:
            raise UserError(
                f"teachers.{name} is for teachers that the run trains, and it trains "
                f"{max(trained, 0)}: take it out, or train {least} or more."
            )
    if not wanted.labels and not wanted.weight:
        raise UserError(
            "teachers.labels and teachers.weight are 0: nothing would be learnt from either."
        )


def _check_read(config: "Config", method: type[Mixer]) -> None:
    """Refuse settings that somebody has given and that nothing would read.

    Where the method follows from the numbers of peers and teachers, a run file may describe the
    grafting and the teachers that it would have with more of them; and `teachers.count = 0` says
    what becomes of the teachers' other settings.
    """
    moot: list[str] = []
    if config.run.method is None:
        moot = reads(METHODS["graft+"], config)
    elif "teachers.count" in config.given and not config.teachers.count:
        moot = [f"teachers.{name}" for name in config.teachers.__dataclass_fields__]
    unread = [key for key in unread_by(method, config) if key in config.given]
    wrong = [key for key in unread if key not in moot]
    if wrong:
        read = ", ".join(reads(method, config))
        table = f"{method.table}."
        mine = any(key.removeprefix(table) in settings.keys_of(method) for key in wrong)
        words = settings.words_of(method, config.of(method.table)) if mine else {}
        chosen = "".join(f" with {table}{key} = {word!r}" for key, word in words.items())
        places = sorted({config.origins.get(key, "").rstrip(":") for key in wrong})
        file = f" of {places[0]}" if len(places) == 1 and places[0].endswith(".toml") else ""
        raise UserError(
            f"method {method.name}{chosen} does not read {', '.join(wrong)}: take that out{file}. "
            "It reads " + (f"{read}." if read else "no method's settings.")
        )
    if unread and config.run.method is None:
        _log.info(
            "%s: no part in method %s, which follows from peers.count = %d and teachers.count = %d",
            ", ".join(unread),
            method.name,
            config.peers.count,
            config.teachers.count,
        )
