"""Run files: TOML -> typed settings -> TOML.

One table a dataclass below or a method's class, one key a field; what a value may be stands in the
field's type and `setting`.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kgraft.data.order import HELD_OUT
from kgraft.errors import UserError, suggest
from kgraft.kinds import to_toml
from kgraft.runs.identities import Retrieval
from kgraft.runs.methods import METHODS, method_of, reads
from kgraft.runs.methods import tables as tables_of_methods
from kgraft.runs.old_files import MOVED, modern
from kgraft.runs.optimizers import OPTIMIZERS
from kgraft.runs.own import checked as own_value
from kgraft.runs.own import moot, takes_more
from kgraft.runs.photographs import Photographs
from kgraft.runs.toml_text import text_of, toml
from kgraft.settings import checked, default_of, keys_of, setting, words_of

_MOST_NETWORKS = 1024  # all of them are in memory at once


@dataclass(frozen=True)
class Run:
    """Which method, how long, in which batches, and which images choose a peer's best epoch.

    Without a method it follows from the numbers of peers and teachers: baseline, graft, distill or
    graft+. To select on the test images is the authors' way; a test accuracy that was selected on
    them says too much. `tensorboard` and `csv` write event files and `metrics.csv` as the run goes
    on; `callbacks` names Keras callbacks that watch the peers, or functions that make them.
    """

    method: str | None = setting(None, choices=METHODS)
    seed: int = setting(0, low=0)
    epochs: int = setting(25, low=1)
    batch_size: int = setting(64, low=1)
    select: str = setting("validation", choices=("validation", "test"))
    engine: str = setting("auto", choices=("auto", "eager", "compiled"))
    precision: str = setting("float32", choices=("float32", "tf32", "bfloat16"))
    label_smoothing: float = setting(0.0, low=0.0, below=1.0)
    tensorboard: bool = False
    csv: bool = False
    callbacks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Data:
    """Which images, how many, how large, and how they are augmented; None is what suits the set.

    `shared` gives all peers the same batches. A name `module:function` is called with the table's
    further keys, and with `directory` where it takes that.
    """

    name: str = "digits"
    directory: str | None = None
    limit_train: int | None = setting(None, low=1)
    limit_test: int | None = setting(None, low=1)
    size: int | tuple[int, ...] | None = setting(None, low=1, high=4096)
    validation: float = setting(HELD_OUT, low=0.0, high=0.9)
    pad: int | None = setting(None, low=0)
    flip: bool | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = setting(None, above=0)
    shared: bool = False


@dataclass(frozen=True)
class Model:
    """The peers' architecture, and what all of them start from.

    A wide ResNet's `head_init` is what its classifier starts from, `last_stride` an ImageNet
    network's, of which 1 leaves its features twice as fine. A name of `keras.applications`,
    or `module:function` of one's own, takes the table's further keys as arguments. With `weights`,
    a file's, all peers start alike; the layers before `trainable_from` are frozen. Teachers of this
    architecture that the run trains have the same.
    """

    name: str = "resnet8"
    dropout: float = setting(0.0, low=0.0, high=0.99)
    head_init: str | None = setting(None, choices=("kaiming", "torch"))
    last_stride: int | None = setting(None, low=1, high=2)
    weights: str | None = None
    trainable_from: str | None = None


@dataclass(frozen=True)
class Peers:
    """How many there are."""

    count: int = setting(4, low=1, high=_MOST_NETWORKS)


@dataclass(frozen=True)
class Teachers:
    """Teachers of grafting+ and distillation: loaded first, the rest trained by the run.

    A file is a `.keras` model, or the directory of a finished run, whose best peer teaches.
    Teachers that the run trains have `epochs` (the run's by default), alone or `grafted`, as a
    ring; the method committee has defaults of its own, see `Committee`. A student's loss is
    `labels` times that of the labels, and `weight` times that of the teachers. It starts from fresh
    weights, from the first teacher's or from the teachers' soup.
    """

    count: int = setting(1, low=0, high=_MOST_NETWORKS)
    model: str = "resnet20"
    files: tuple[str, ...] = ()
    epochs: int | None = setting(None, low=1)
    grafted: bool = False
    temperature: float = setting(2.0, above=0)
    weight: float = setting(1.0, low=0.0)
    labels: float = setting(1.0, low=0.0)
    start: str = setting("fresh", choices=("fresh", "teacher", "soup"))


@dataclass(frozen=True)
class Optimizer:
    """SGD as torch does it; or one of `keras.optimizers`, or one's own, by `module:Class`.

    Those take the table's further keys as arguments, `lr` is their own default where nobody says,
    and `momentum`, `l2`, `nesterov` and `backbone` are SGD's alone: that is how many times the rate
    all layers before the classifier (and its neck) move by, which have been trained before.
    """

    name: str = setting("sgd", choices=OPTIMIZERS)
    lr: float = setting(0.1, above=0)
    momentum: float = setting(0.9, low=0.0, below=1.0)
    l2: float = setting(5e-4, low=0.0)
    nesterov: bool = False
    backbone: float = setting(1.0, low=0.0, high=1.0)


@dataclass(frozen=True)
class Schedule:
    """How learning rates fall, and whether each peer has its own."""

    name: str = setting("cosine", choices=("constant", "step", "cosine", "cosine-per-step"))
    warmup: int = setting(0, low=0)
    every: int = setting(60, low=1)
    factor: float = setting(0.1, low=1e-6, high=1.0)
    spread: bool = True


@dataclass(frozen=True)
class Checkpoint:
    """How often a run is saved, and how many of the newest states stay, see `Checkpoints`."""

    every: int | None = setting(None, low=1)
    keep: int = setting(2, low=1)


@dataclass(frozen=True)
class Ring:
    """How the processes that torchrun has started reach each other; moot for one alone.

    A rank that is not heard of for `timeout` seconds is lost, see `kgraft.RingLink`, which also
    says what `on_lost_peer` means. They meet in `directory`, or by torchrun's store. With
    `ranks_per_peer` several ranks train one peer, each on its part of every batch.
    """

    timeout: float = setting(60.0, above=0)
    on_lost_peer: str = setting("stop", choices=("stop", "skip", "wait"))
    directory: str | None = None
    ranks_per_peer: int = setting(1, low=1, high=4096)


@dataclass(frozen=True)
class Config:
    """All settings of a run; the defaults are the quickstart.

    Attributes:
        methods: settings of the methods' own tables that are not at their default, by
            `"table.key"`; the tables are those of `kgraft.runs.methods`.
        own: keys of [model], [data] and [optimizer] that only the part knows which their `name`
            names, by `"table.key"`; it is asked when the settings are settled.
        given: keys that somebody has set, as `"table.key"`; the others are defaults.
        origins: of these, where each comes from, for errors.
    """

    run: Run = Run()
    data: Data = Data()
    photos: Photographs = field(default_factory=Photographs)
    retrieval: Retrieval = field(default_factory=Retrieval)
    model: Model = Model()
    peers: Peers = Peers()
    teachers: Teachers = Teachers()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    checkpoint: Checkpoint = Checkpoint()
    ring: Ring = Ring()
    methods: Mapping[str, Any] = field(default_factory=dict)
    own: Mapping[str, Any] = field(default_factory=dict)
    given: frozenset[str] = field(default=frozenset(), compare=False, repr=False)
    origins: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    def changed(self, key: str, value: Any, source: str) -> "Config":
        """A copy with one value replaced.

        Args:
            key: `"table.key"`.
            value: the new value, of the key's type.
            source: where it comes from, for errors, e.g. `"--lr"`.

        Returns:
            The changed settings.

        Raises:
            UserError: an unknown key, a wrong type, or an impossible value.
        """
        table, _, name = key.partition(".")
        own = getattr(self, table) if table in TABLES else None
        of_methods = tables_of_methods()
        if key in MOVED:
            raise UserError(f"{source}: {key} is gone: write {MOVED[key]}.")
        if own is None and table not in of_methods:
            known = (*TABLES, *of_methods)
            raise UserError(f"{source}: unknown table {table!r}." + suggest(table, known))
        if not name:
            raise UserError(f"{source}: expected table.key=value, e.g. optimizer.lr=0.05.")
        where = f"{source}: [{table}]"
        noted = dataclasses.replace(
            self, given=self.given | {key}, origins={**self.origins, key: f"{source}:"}
        )
        if own is None:
            return noted._with_method(of_methods[table], key, value, where)
        if name not in keys_of(type(own)) and takes_more(table, getattr(own, "name", "")):
            more = {**self.own, key: own_value(name, value, where)}
            return dataclasses.replace(noted, own=more)
        value = checked(type(own), name, value, where)
        changed: dict[str, Any] = {table: dataclasses.replace(own, **{name: value})}
        return dataclasses.replace(noted, **changed)

    def _with_method(self, owner: type, key: str, value: Any, where: str) -> "Config":
        table, _, name = key.partition(".")
        others = {other: old for other, old in self.methods.items() if other != key}
        known = self.of(table)
        value = checked(owner, name, value, where, known)
        if value != default_of(owner, name, known):
            others[key] = value
        return dataclasses.replace(self, methods=others)

    def of(self, table: str) -> dict[str, Any]:
        """The settings of a method's table that are not at their default, by key."""
        prefix = f"{table}."
        return {
            key.removeprefix(prefix): value
            for key, value in self.methods.items()
            if key.startswith(prefix)
        }

    def flat(self) -> dict[str, Any]:
        """Every setting that counts, by `"table.key"`: everybody's, and those of the method."""
        found = {
            f"{table}.{own.name}": getattr(getattr(self, table), own.name)
            for table in TABLES
            for own in dataclasses.fields(getattr(self, table))
            if self._has(table)
        }
        for key in moot(self):
            del found[key]
        read = reads(method_of(self), self)  # which may bring a table of its own
        of_methods = tables_of_methods()
        for key in read:
            table, _, name = key.partition(".")
            if table in of_methods:
                found[key] = default_of(of_methods[table], name, self.of(table))
        return {**found, **self.own, **self.methods}

    def _has(self, table: str) -> bool:
        """Whether a table counts: most sets are no folder, few of identities, most runs alone."""
        usual = {"photos": Photographs(), "retrieval": Retrieval(), "ring": Ring()}
        if table not in usual or (isinstance(self.data.size, tuple) and table != "ring"):
            return True
        return getattr(self, table) != usual[table]

    def to_toml(self) -> str:
        """The settings as a run file that `parse` reads back to the same settings."""
        blocks: dict[str, list[str]] = {}
        for key, value in self.flat().items():
            table, _, name = key.partition(".")
            if value is not None:
                blocks.setdefault(f"[{table}]", []).append(f"{name} = {to_toml(value)}")
        return "\n\n".join("\n".join([table, *own]) for table, own in blocks.items()) + "\n"

    def told(self) -> dict[str, str | None]:
        """Every setting as TOML, by `table.key`; None for one that is not given."""
        flat = self.flat().items()
        return {key: None if value is None else to_toml(value) for key, value in flat}

    def resolved(self) -> str:
        """`to_toml` between two lines by which `read` knows a file that is cut off."""
        return f"{_FIRST}\n\n{self.to_toml()}\n{_LAST}\n"


_FIRST = "# As kgraft has resolved it; without its last line this file is cut off."
_LAST = "# The end."
_NO_TABLES = ("methods", "own", "given", "origins")
TABLES = tuple(f.name for f in dataclasses.fields(Config) if f.name not in _NO_TABLES)


def read(path: str | Path) -> Config:
    """The settings of a run file.

    Args:
        path: a TOML file; what it does not mention keeps its default.

    Returns:
        The settings.

    Raises:
        UserError: the file is missing, empty, cut off or no TOML, or what `parse` raises.
    """
    text = text_of(Path(path), "run file")
    lines = text.splitlines()
    if (_FIRST.startswith(text) or _FIRST in lines[:1]) and _LAST not in lines:
        raise UserError(
            f"run file {path} is cut off: its last line, {_LAST!r}, is missing. Copy it anew, or "
            "see whether it is whole, and take its first line out."
        )
    return parse(text, str(path))


def parse(text: str, source: str) -> Config:
    r"""The settings in a run file's text.

    Args:
        text: TOML.
        source: the file's name, for errors.

    Returns:
        The settings; what the text does not mention keeps its default.

    Raises:
        UserError: no TOML, an unknown table or key, a wrong type, or an impossible value.

    Example:
        >>> parse("[peers]\ncount = 2", "two.toml").peers
        Peers(count=2)
    """
    tables = toml(text, source)
    config = Config()
    tables = modern(tables, source)
    for table, settings in sorted(tables.items(), key=lambda own: own[0] != "run"):
        known = (*TABLES, *tables_of_methods())
        if table not in known:
            kind = "table" if isinstance(settings, Mapping) else "key outside any table"
            raise UserError(f"{source}: unknown {kind} {table!r}." + suggest(table, known))
        if not isinstance(settings, Mapping):
            raise UserError(f"{source}: {table} is a value; expected a table [{table}].")
        for name, value in in_order(table, settings):
            config = config.changed(f"{table}.{name}", value, source)
    return config


def in_order(table: str, settings: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """A table's settings, first those that name a part: what else may be set hangs on that."""
    return sorted(settings.items(), key=lambda own: not names_part(f"{table}.{own[0]}"))


def names_part(key: str) -> bool:
    """Whether a `"table.key"` names a part, on which it hangs what else may stand in its table."""
    table, _, name = key.partition(".")
    if table in TABLES:
        return key in ("run.method", "model.name", "data.name", "optimizer.name")
    owner = tables_of_methods().get(table)
    return owner is not None and name in words_of(owner, {})
