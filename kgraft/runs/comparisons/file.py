"""Comparison files: TOML -> entries that differ by their method alone.

    [comparison]
    seeds = [0, 1, 2]
    baseline = "baseline"
    against = ["soup"]          # what else every entry is compared with

    [common.run]                # tables of a run file, the same for everybody
    epochs = 15

    [entries.baseline]          # one table an entry: what sets it apart
    run.method = "baseline"

    [entries."4 peers"]
    run.method = "graft"
    peers.count = 4

    [entries.soup]              # another answer out of the same runs
    runs_of = "4 peers"
    result = "soup"             # or "peer" (the default), "ensemble", "committee" (its teachers)

Besides a run file's tables an entry may have `budget = n`, a training n times as long, and
`teachers.files = ["@NAME"]`, the best peer of an entry's run of the same seed, or
`["@NAME/peers"]`, all of its peers.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kgraft.errors import UserError, suggest, told
from kgraft.kinds import to_toml
from kgraft.runs.config import TABLES, Config, in_order
from kgraft.runs.methods import for_everybody, method_of, settled
from kgraft.runs.methods import tables as tables_of_methods
from kgraft.runs.old_files import modern
from kgraft.runs.toml_text import text_of, toml

_KEYS = ("seeds", "baseline", "against")
RESULTS = ("peer", "soup", "ensemble", "committee")
_OF_METHODS = ("schedule.spread", "data.shared")  # rates and orders over the peers
_PEERS, _PEER = "/peers", "/peers/peer-"
_MOST_SEED = 2**63  # as in a run's JSON
_SAME = (
    "run.batch_size",
    "run.select",
    "run.precision",
    "run.label_smoothing",
    "data",
    "model",
    "optimizer",
    "schedule",
)


@dataclass(frozen=True)
class Entry:
    """One line of a comparison.

    Attributes:
        name: its name, also that of its directory.
        config: its settings, with the first seed.
        result: what of the run counts: `"peer"` (the best by validation), `"soup"` (uniform),
            `"ensemble"`, or `"committee"`: what its teachers answer together.
        runs_of: the entry whose runs it reads, itself unless the file says otherwise.
        budget: how many times longer its networks train than everybody's.
    """

    name: str
    config: Config
    result: str
    runs_of: str
    budget: int

    def named_teachers(self) -> list[str]:
        """The entries whose runs teach it."""
        files = [file for file in self.config.teachers.files if file.startswith("@")]
        return [taught_by(file)[0] for file in files]

    def directory(self) -> str:
        """The name of the directory that its runs are in, one below the comparison's."""
        return self.name.replace("/", "-").replace(" ", "-")


@dataclass(frozen=True)
class Comparison:
    """A checked comparison file.

    Attributes:
        seeds: seeds of the runs of every entry.
        baseline: name of the entry that the others are compared with.
        entries: all of them, in the file's order.
        against: names of further entries that all are compared with.
    """

    seeds: tuple[int, ...]
    baseline: str
    entries: tuple[Entry, ...]
    against: tuple[str, ...] = ()

    def entry(self, name: str) -> Entry:
        """The entry of a name."""
        return next(entry for entry in self.entries if entry.name == name)


def taught_by(file: str) -> tuple[str, str]:
    """Which entry a teacher comes from, and which of its run's files it is.

    Args:
        file: of `teachers.files`, beginning with `@`.

    Returns:
        The entry's name and a path in its run, `""` for its best peer.
    """
    name, slash, number = file[1:].rpartition(_PEER)
    if slash:
        return name, f"{slash}{number}"[1:]
    return number.removesuffix(_PEERS), ""


def read_comparison(path: Path) -> Comparison:
    """Read and check a comparison file.

    Args:
        path: the TOML file.

    Raises:
        UserError: no such file, no TOML, an unknown key, or entries whose data, schedule,
            optimizer, network, batch size or epochs differ; names the difference.
    """
    return comparison_of(toml(text_of(path, "comparison"), str(path)), str(path))


def comparison_of(tables: Mapping[str, Any], source: str) -> Comparison:
    """Check the tables of a comparison.

    Args:
        tables: as a comparison file has them.
        source: where they come from, for errors.

    Raises:
        UserError: see `read_comparison`.
    """
    for name in tables:
        if name not in ("comparison", "common", "entries"):
            raise UserError(
                f"{source}: unknown table {name!r}."
                + suggest(name, ("comparison", "common", "entries"))
            )
        if not isinstance(tables[name], Mapping):
            raise UserError(f"{source}: {name} is a value; expected a table [{name}].")
    settings = tables.get("comparison", {})
    for name in settings:
        if name not in _KEYS:
            raise UserError(f"{source}: [comparison] unknown key {name!r}." + suggest(name, _KEYS))
    seeds = settings.get("seeds", [0, 1, 2])
    if (
        not isinstance(seeds, list)
        or not seeds
        or any(type(seed) is not int or not 0 <= seed < _MOST_SEED for seed in seeds)
        or len(set(seeds)) < len(seeds)
    ):
        raise UserError(
            f"{source}: [comparison] seeds = {to_toml(seeds)}: expected a list of different whole "
            "numbers, e.g. [0, 1, 2]."
        )
    common = for_everybody(_with(Config(), tables.get("common", {}), f"{source}: [common]"))
    found: list[Entry] = []
    for name, table in tables.get("entries", {}).items():
        found.append(_entry(name, table, common, seeds[0], source, found))
    entries = tuple(found)
    if not entries:
        raise UserError(
            f"{source} has no entries: expected a table [entries.NAME] for each method."
        )
    names = [entry.name for entry in entries]
    baseline, against = settings.get("baseline", names[0]), settings.get("against", [])
    if not isinstance(against, list):
        raise UserError(
            f"{source}: [comparison] against = {to_toml(against)}: expected a list of entries."
        )
    for word, name in [("baseline", baseline), *(("against", other) for other in against)]:
        if name not in names:
            near = suggest(str(name), names)
            raise UserError(f"{source}: {word} {name!r} is no entry.{near}")
    by_name = {entry.name: entry for entry in entries}
    _check_order(by_name, source)
    _check_directories(entries, source)
    entries = tuple(
        entry
        if entry.runs_of == entry.name
        else dataclasses.replace(
            by_name[entry.runs_of], name=entry.name, result=entry.result, runs_of=entry.runs_of
        )
        for entry in entries
    )
    others = tuple(name for name in dict.fromkeys(against) if name != baseline)
    _check_committees(entries, source)
    comparison = Comparison(tuple(seeds), baseline, entries, others)
    check_alike([(entry.name, entry.config, entry.budget) for entry in entries])
    return comparison


def in_directory(comparison: Comparison, data_dir: str) -> Comparison:
    """The comparison with prepared data sets looked for elsewhere."""
    entries = tuple(
        dataclasses.replace(
            entry,
            config=dataclasses.replace(
                entry.config, data=dataclasses.replace(entry.config.data, directory=data_dir)
            ),
        )
        for entry in comparison.entries
    )
    return dataclasses.replace(comparison, entries=entries)


def check_alike(runs: list[tuple[str, Config, int]]) -> None:
    """Refuse runs that do not differ by their method alone, or by their precision alone.

    Args:
        runs: name, settings and budget of each.

    Raises:
        UserError: names the first setting that differs, and its values.
    """
    (first, reference, own_budget), *others = runs
    for name, config, budget in others:
        found = [where for where, _, _ in differences("", reference, config)]
        if found == ["run.precision"]:
            continue
        for key in _SAME:
            for where, a, b in differences(
                key, _stretched(reference, budget), _stretched(config, own_budget)
            ):
                if where in _OF_METHODS:
                    continue
                raise UserError(
                    f"{first} and {name} cannot be compared: {where} is {a!r} in {first}, {b!r} "
                    f"in {name}."
                )
        if config.run.epochs * own_budget != reference.run.epochs * budget:
            raise UserError(
                f"{first} and {name} cannot be compared: run.epochs is {reference.run.epochs} in "
                f"{first}, {config.run.epochs} in {name}; a longer training is budget = n."
            )


def differences(key: str, own: Config, other: Config) -> list[tuple[str, Any, Any]]:
    """Settings that differ.

    Args:
        key: a table, `"table.key"`, or `""` for all.
        own: settings.
        other: settings to compare them with.

    Returns:
        `"table.key"` and both values of each that differs.
    """
    mine, theirs = own.flat(), other.flat()
    return [
        (name, mine.get(name), theirs.get(name))
        for name in dict.fromkeys([*mine, *theirs])
        if f"{name}.".startswith(key and f"{key}.") and mine.get(name) != theirs.get(name)
    ]


def _check_order(entries: Mapping[str, Entry], source: str) -> None:
    """Refuse entries that read the runs of one that has none, or has none yet."""
    names = list(entries)
    for position, entry in enumerate(entries.values()):
        where = f"{source}: [entries.{entry.name!r}]"
        others = [entry.runs_of] * (entry.runs_of != entry.name) + entry.named_teachers()
        for other in others:
            if other not in names:
                raise UserError(
                    f"{where} reads the runs of {other!r}, which is no entry."
                    + suggest(other, names)
                )
            if other == entry.name:
                raise UserError(f"{where} is taught by itself: expected another entry.")
            if entries[other].runs_of != other:
                raise UserError(
                    f"{where} reads the runs of {other!r}, which has none of its own: expected "
                    f"{entries[other].runs_of!r}."
                )
            if names.index(other) > position:
                raise UserError(
                    f"{where} reads the runs of {other!r}, which comes after it: move {other!r} up."
                )


def _check_committees(entries: tuple[Entry, ...], source: str) -> None:
    """Refuse entries whose result is that of teachers together, and that have not two of them."""
    for entry in entries:
        teachers = entry.config.teachers.count
        if entry.result == "committee" and teachers < 2:
            raise UserError(
                f"{source}: [entries.{entry.name!r}] result = 'committee', and its runs have "
                f"{teachers} teachers: expected 2 or more."
            )


def _check_directories(entries: tuple[Entry, ...], source: str) -> None:
    """Refuse entries whose runs would lie in one directory, on any file system, or in none."""
    owners: dict[str, str] = {}
    for entry in (entry for entry in entries if entry.runs_of == entry.name):
        directory = entry.directory()
        if not directory or directory.startswith("."):
            raise UserError(
                f"{source}: [entries.{entry.name!r}] cannot name a directory: expected a name that "
                "is not empty and begins with no dot."
            )
        other = owners.setdefault(directory.casefold(), entry.name)
        if other != entry.name:
            raise UserError(
                f"{source}: the runs of {other!r} and {entry.name!r} would share the directory "
                f"{directory}: rename one."
            )


def _stretched(config: Config, budget: int) -> Config:
    """Settings whose schedule takes so many times as long."""
    schedule = config.schedule
    longer = dataclasses.replace(
        schedule, every=schedule.every * budget, warmup=schedule.warmup * budget
    )
    return dataclasses.replace(config, schedule=longer)


def _entry(
    name: str, table: Any, common: Config, seed: int, source: str, before: list[Entry]
) -> Entry:
    where = f"{source}: [entries.{name!r}]"
    if not isinstance(table, Mapping):
        raise UserError(f"{where} is a value; expected a table.")
    own = dict(table)
    words = {"result": None, "runs_of": name, "budget": 1}
    result, runs_of, budget = (own.pop(word, usual) for word, usual in words.items())
    if type(budget) is not int or budget < 1:
        raise UserError(f"{where} budget = {budget!r}: expected a whole number, 1 or more.")
    if not isinstance(runs_of, str):
        raise UserError(f"{where} runs_of = {told(runs_of)}: expected the name of an entry.")
    if runs_of != name and (own or budget != 1):
        given = [*own, *(["budget"] if budget != 1 else [])]
        raise UserError(
            f"{where} reads the runs of {runs_of!r} and has settings of its own "
            f"({', '.join(given)}): expected only result."
        )
    config = _with(common, own, where, tuple(words)).changed("run.seed", seed, where)
    config = _with_all_peers(config, before)
    if budget > 1:
        epochs = config.run.epochs * budget
        config = _stretched(config.changed("run.epochs", epochs, where), budget)
    config = settled(config)
    result = result or method_of(config).answer
    if result not in RESULTS:
        raise UserError(f"{where} result = {result!r}." + suggest(str(result), RESULTS))
    return Entry(name, config, result, runs_of, budget)


def _with_all_peers(config: Config, entries: list[Entry]) -> Config:
    """Settings with the peers of an entry's run one by one, where all of them are to teach."""
    every = {f"@{entry.name}{_PEERS}": entry for entry in entries}
    files: list[str] = []
    for file in config.teachers.files:
        entry = every.get(file)
        count = 0 if entry is None else entry.config.peers.count
        whole = [f"{file.removesuffix(_PEERS)}{_PEER}{k}.keras" for k in range(1, count + 1)]
        files += whole or [file]
    teachers = dataclasses.replace(config.teachers, files=tuple(files))
    return dataclasses.replace(config, teachers=teachers)


def _with(
    config: Config, tables: Mapping[str, Any], source: str, words: tuple[str, ...] = ()
) -> Config:
    """Settings with the tables' own, where `words` are what else might stand beside them."""
    own = sorted(modern(tables, source).items(), key=lambda own: own[0] != "run")  # brings tables
    for table, settings in own:
        known = (*TABLES, *tables_of_methods())
        if table not in known:
            raise UserError(f"{source} unknown key {table!r}." + suggest(table, (*words, *known)))
        if not isinstance(settings, Mapping):
            raise UserError(f"{source} {table} is a value; expected a table, e.g. run.epochs = 15.")
        if table == "run" and "seed" in settings:
            raise UserError(
                f"{source} run.seed: a comparison's seeds are [comparison] seeds = [0, 1, 2]."
            )
        for name, value in in_order(table, settings):
            config = config.changed(f"{table}.{name}", value, source)
    return config
