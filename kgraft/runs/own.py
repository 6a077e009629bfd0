"""Keys of a run's tables that a part other than kgraft's own has, in [model], [data], [optimizer].

Which they may be says the part, which is imported when the settings are settled, not while they are
read: then its name is sure, and a run's directory that is only looked at imports none of these.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kgraft.analysis.event_files import check_installed
from kgraft.data.own import loader
from kgraft.errors import UserError
from kgraft.kinds import to_toml
from kgraft.models import registry
from kgraft.parts import Part, is_reference
from kgraft.runs import callbacks
from kgraft.runs.optimizers import SGD_ALONE, optimizer

if TYPE_CHECKING:
    from kgraft.runs.config import Config

_PARTS: Mapping[str, Callable[[str], Part | None]] = {
    "model": registry.part,
    "data": loader,
    "optimizer": optimizer,
}
_SHARED = {"model": ("dropout", "head_init", "last_stride"), "optimizer": SGD_ALONE, "data": ()}


def takes_more(table: str, name: str) -> bool:
    """Whether a table may have keys that kgraft does not know; imports nothing.

    Args:
        table: any table.
        name: what its `name` says.
    """
    if table == "model":
        return registry.is_foreign(name)
    return is_reference(name) if table == "data" else table == "optimizer" and name != "sgd"


def checked(key: str, value: Any, where: str) -> Any:
    """A value for an argument of somebody else's, which a run file can hold.

    Args:
        key: the argument.
        value: what TOML gave.
        where: where it comes from, for errors.

    Raises:
        UserError: the key is no argument's name, or the value is a table or a date, or has such.
    """
    if not key.isidentifier():
        raise UserError(f"{where} unknown key {key!r}: expected the name of an argument.")
    if not _is_plain(value):
        raise UserError(
            f"{where} {key} = {to_toml(value)}: expected a finite number, a string, true or false, "
            "or a list of such."
        )
    return value


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return isinstance(value, bool | int | str) or (
        isinstance(value, float) and math.isfinite(value)
    )


def moot(config: "Config") -> set[str]:
    """Keys of kgraft's own parts that nobody has given, where another part stands in their place.

    Args:
        config: the settings.
    """
    return {
        f"{table}.{key}"
        for table, keys in _SHARED.items()
        if takes_more(table, getattr(config, table).name)
        for key in keys
    } - config.given


def arguments(config: "Config", table: str) -> dict[str, Any]:
    """The arguments of the part that a table names, kgraft's own keys that it has too among them.

    Args:
        config: the settings.
        table: `"model"`, `"data"` or `"optimizer"`.
    """
    own = getattr(config, table)
    foreign = takes_more(table, own.name)
    shared = [key for key in _SHARED[table] if f"{table}.{key}" in config.given or not foreign]
    prefix = f"{table}."
    more = {
        key.removeprefix(prefix): value
        for key, value in config.own.items()
        if key.startswith(prefix)
    }
    return {**{key: getattr(own, key) for key in shared}, **more}


def settled(config: "Config") -> "Config":
    """Settings whose parts take what is given them, with their own learning rate where none is.

    Args:
        config: the settings, settled otherwise.

    Raises:
        UserError: a part that cannot be imported, or a key that it has not; tensorboardX is missing
            where it is asked for.
    """
    callbacks.parts(config)
    if config.run.tensorboard:
        check_installed()
    for table, find in _PARTS.items():
        name, where = getattr(config, table).name, _where(config, table)
        part = find(name)
        if part is not None:
            part.check(arguments(config, table), where)
            continue
        for key in config.own:
            own, _, argument = key.partition(".")
            if own == table:
                raise UserError(
                    f"{where(argument)} unknown key {argument!r}: {name!r} has no such setting."
                )
    if config.teachers.count > len(config.teachers.files):
        if config.teachers.model != config.model.name:
            part = registry.part(config.teachers.model)
            if part is not None:
                part.check({}, _where(config, "teachers"))
    part = optimizer(config.optimizer.name)
    if part is None or "optimizer.lr" in config.given:
        return config
    rate = part.default("learning_rate")
    if not isinstance(rate, int | float):
        raise UserError(f"{part.what} has no learning rate of its own: expected optimizer.lr.")
    return replace(config, optimizer=replace(config.optimizer, lr=float(rate)))


def used(config: "Config") -> dict[str, Part]:
    """The parts that a run imports, by what its settings call them.

    Args:
        config: the settings.
    """
    found = {
        getattr(config, table).name: find(getattr(config, table).name)
        for table, find in _PARTS.items()
    }
    if config.teachers.count > len(config.teachers.files):
        found[config.teachers.model] = registry.part(config.teachers.model)
    found |= callbacks.parts(config)
    return {name: part for name, part in found.items() if part is not None and part.reference}


def check_trusted(config: "Config", path: Path, keys: Iterable[str] | None = None) -> None:
    """Refuse to call what a run's directory names, which may come from anywhere.

    A function is called with what else the directory holds: `subprocess:run` would run it. Mixers
    and optimizers are classes of a kind, and imported at most.

    Args:
        config: the settings in it.
        path: the directory.
        keys: which settings' functions would be called; None for those of a run that goes on.

    Raises:
        UserError: names the first.
    """
    for key, reference in called(config).items():
        if keys is None or key in keys:
            raise UserError(
                f"{path / 'run.toml'}: {key} = {to_toml(reference)} is code that would be called: "
                "--trust says that it may be (--here, that it is in the current directory)."
            )


def called(config: "Config") -> dict[str, str]:
    """The references whose functions, or criteria, a run with these settings calls, by key.

    Args:
        config: the settings.
    """
    named = {
        "data.name": config.data.name,
        "model.name": config.model.name,
        "teachers.model": config.teachers.model,
        **config.methods,
    }
    found = {key: name for key, name in named.items() if is_reference(name)}
    return found | {f"run.callbacks[{k}]": name for k, name in enumerate(config.run.callbacks)}


def _where(config: "Config", table: str) -> Callable[[str], str]:
    def where(key: str) -> str:
        source = config.origins.get(f"{table}.{key}")
        return f"[{table}]" if source is None else f"{source} [{table}]"

    return where
