"""Run files: TOML -> typed settings -> TOML.

One table a dataclass below, one key a field; what a value may be stands in the field's type and
metadata, and one function checks them all.
"""

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kgraft.errors import UserError, suggest
from kgraft.runs.methods import METHODS, method_of, unread_by
from kgraft.runs.values import checked_value, to_toml


def _number(default: Any, *, low: float, high: float | None = None) -> Any:
    return field(default=default, metadata={"low": low, "high": high})


def _positive(default: float | None) -> Any:
    return field(default=default, metadata={"above": 0})


def _one_of(default: str | None, *choices: str) -> Any:
    return field(default=default, metadata={"choices": choices})


@dataclass(frozen=True)
class Run:
    """Which method, how long, in which batches, and which images choose a peer's best epoch.

    Without a method it follows from the numbers of peers and teachers: baseline, graft, distill or
    graft+. To select on the test images is the authors' way; a test accuracy that was selected on
    them says too much.
    """

    method: str | None = field(default=None, metadata={"choices": METHODS})
    seed: int = _number(0, low=0)
    epochs: int = _number(25, low=1)
    batch_size: int = _number(64, low=1)
    select: str = _one_of("validation", "validation", "test")
    engine: str = _one_of("auto", "auto", "eager", "compiled")
    precision: str = _one_of("float32", "float32", "tf32", "bfloat16")


@dataclass(frozen=True)
class Data:
    """Which images, how many, and how they are augmented; None is what suits the set.

    `shared` gives all peers the same batches.
    """

    name: str = "digits"
    directory: str | None = None
    limit_train: int | None = _number(None, low=1)
    limit_test: int | None = _number(None, low=1)
    validation: float = _number(0.1, low=0.0, high=0.9)
    pad: int | None = _number(None, low=0)
    flip: bool | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = _positive(None)
    shared: bool = False


@dataclass(frozen=True)
class Model:
    """The peers' architecture; a wide ResNet's `head_init` is what its classifier starts from."""

    name: str = "resnet8"
    dropout: float = _number(0.0, low=0.0, high=0.99)
    head_init: str | None = _one_of(None, "kaiming", "torch")


@dataclass(frozen=True)
class Peers:
    """How many there are."""

    count: int = _number(4, low=1)


@dataclass(frozen=True)
class Teachers:
    """Teachers of grafting+ and distillation: loaded first, the rest trained by the run.

    A file is a `.keras` model, or the directory of a finished run, whose best peer teaches.
    """

    count: int = _number(1, low=0)
    model: str = "resnet20"
    files: tuple[str, ...] = ()
    temperature: float = _positive(2.0)
    weight: float = _number(1.0, low=0.0)


@dataclass(frozen=True)
class Optimizer:
    """SGD as torch does it."""

    lr: float = _positive(0.1)
    momentum: float = _number(0.9, low=0.0, high=1.0)
    l2: float = _number(5e-4, low=0.0)
    nesterov: bool = False


@dataclass(frozen=True)
class Schedule:
    """How learning rates fall, and whether each peer has its own."""

    name: str = _one_of("cosine", "constant", "step", "cosine", "cosine-per-step")
    warmup: int = _number(0, low=0)
    every: int = _number(60, low=1)
    factor: float = _number(0.1, low=1e-6, high=1.0)
    spread: bool = True


@dataclass(frozen=True)
class Graft:
    """What a grafting does, and when; `alpha` is that of the method fixed.

    `frozen` blends weights that do not train, too.
    """

    level: str = _one_of("layer", "layer", "filter")
    alpha: float = _number(0.5, low=0.0, high=1.0)
    criterion: str = _one_of("entropy", "entropy", "filter-entropy", "l1")
    bins: int = _number(10, low=1)
    binning: str = _one_of("closed", "closed", "authors")
    amplitude: float = _number(0.4, low=0.0, high=1.0)
    sharpness: float = _positive(500.0)
    decimals: int | None = _number(None, low=1)
    grouping: str = _one_of("default", "default", "authors")
    frozen: bool = False
    every: int = _number(1, low=1)
    epochs: int | None = _number(None, low=0)
    evaluate: str = _one_of("after", "after", "before")


@dataclass(frozen=True)
class Mutual:
    """Deep mutual learning."""

    weight: float = _number(1.0, low=0.0)
    temperature: float = _positive(1.0)


@dataclass(frozen=True)
class Papa:
    """PAPA: a pull towards the mean every n steps, or (variant all) the mean every n epochs.

    `lr_scaling` is what the pull shrinks by: the learning rate, as in the authors' code, or none.
    """

    variant: str = _one_of("gradual", "gradual", "all")
    rate: float = _number(0.99, low=0.0, high=1.0)
    every_steps: int = _number(10, low=1)
    lr_scaling: str = _one_of("linear", "linear", "none")
    every_epochs: int = _number(5, low=1)


@dataclass(frozen=True)
class Wash:
    """WASH: the share of parameters that is shuffled after every step."""

    share: float = _number(0.001, low=0.0, high=1.0)
    by_depth: bool = True


@dataclass(frozen=True)
class Scion:
    """The methods noise and internal: which filters are invalid, how fast the noise falls."""

    threshold: float = _positive(0.1)
    decay: float = _number(0.975, low=1e-6, high=0.999999)


@dataclass(frozen=True)
class RePr:
    """RePr's schedule: S1, S2, N and p."""

    full_epochs: int = _number(20, low=1)
    pruned_epochs: int = _number(10, low=1)
    cycles: int = _number(3, low=1)
    share: float = _number(0.3, low=0.001, high=0.999)


@dataclass(frozen=True)
class Ema:
    """The method ema: share of the moving average that a step keeps."""

    decay: float = _number(0.99, low=0.0, high=0.999999)


@dataclass(frozen=True)
class Config:
    """All settings of a run; the defaults are the quickstart.

    Attributes:
        given: keys that somebody has set, as `"table.key"`; the others are defaults.
    """

    run: Run = Run()
    data: Data = Data()
    model: Model = Model()
    peers: Peers = Peers()
    teachers: Teachers = Teachers()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    graft: Graft = Graft()
    mutual: Mutual = Mutual()
    papa: Papa = Papa()
    wash: Wash = Wash()
    scion: Scion = Scion()
    repr: RePr = RePr()
    ema: Ema = Ema()
    given: frozenset[str] = field(default=frozenset(), compare=False, repr=False)

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
        tables = _tables()
        if table not in tables:
            raise UserError(f"{source}: unknown table {table!r}." + suggest(table, tables))
        if not name:
            raise UserError(f"{source}: expected table.key=value, e.g. optimizer.lr=0.05.")
        old = getattr(self, table)
        checked = checked_value(type(old), table, name, value, source)
        changed: dict[str, Any] = {table: dataclasses.replace(old, **{name: checked})}
        return dataclasses.replace(self, given=self.given | {key}, **changed)

    def to_toml(self) -> str:
        """The settings as a run file that `parse` reads back to the same settings.

        Once the method has been named, defaults that it does not read are left out.
        """
        unread = () if self.run.method is None else unread_by(method_of(self), self)
        blocks = []
        for table in _tables():
            lines = []
            for setting in dataclasses.fields(getattr(self, table)):
                value = getattr(getattr(self, table), setting.name)
                left_out = f"{table}.{setting.name}" in unread and value == setting.default
                if value is not None and not left_out:
                    lines.append(f"{setting.name} = {to_toml(value)}")
            if lines:
                blocks.append("\n".join([f"[{table}]", *lines]))
        return "\n\n".join(blocks) + "\n"


def read(path: str | Path) -> Config:
    """The settings of a run file.

    Args:
        path: a TOML file; what it does not mention keeps its default.

    Returns:
        The settings.

    Raises:
        UserError: the file is missing or no TOML, or what `parse` raises.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"run file {path}: no such file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"run file {path} cannot be read: {error}") from None
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
    try:
        tables = tomllib.loads(text)
    except ValueError as error:
        raise UserError(f"{source} is not TOML: {error}.") from None
    config = Config()
    known = _tables()
    for table, settings in tables.items():
        if table not in known:
            kind = "table" if isinstance(settings, Mapping) else "key outside any table"
            raise UserError(f"{source}: unknown {kind} {table!r}." + suggest(table, known))
        if not isinstance(settings, Mapping):
            raise UserError(f"{source}: {table} is a value; expected a table [{table}].")
        for name, value in settings.items():
            config = config.changed(f"{table}.{name}", value, source)
    return config


def _tables() -> list[str]:
    return [f.name for f in dataclasses.fields(Config) if f.name != "given"]


def parse_assignment(text: str) -> tuple[str, Any]:
    """`key=value` of the command line; the value is TOML, a bare word is a string.

    Args:
        text: e.g. `"optimizer.lr=0.05"`.

    Returns:
        Key and value.

    Raises:
        UserError: there is no `=`.

    Example:
        >>> parse_assignment("model.name=resnet20")
        ('model.name', 'resnet20')
    """
    key, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--set {text}: expected table.key=value, e.g. optimizer.lr=0.05.")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except ValueError:
        return key.strip(), value.strip()
