"""Run files from before every method had a table of its own: what they said is said so now."""

from collections.abc import Mapping
from typing import Any

from kgraft.errors import UserError

_SCION = 'method = "noise" or method = "internal" under [run], and'
MOVED = {
    "graft.level": 'method = "filter-graft"',
    "graft.alpha": "[fixed] alpha",
    "graft.frozen": "[graft] blend_frozen",
    "papa.variant": 'method = "papa-all"',
    "papa.every_epochs": "[papa-all] every",
    "scion.threshold": f"{_SCION} [noise] threshold or [internal] threshold",
    "scion.decay": 'method = "noise" under [run], and [noise] decay',
}
"""Keys that are gone, and what stands for them."""

_TIMES = ("every", "epochs", "evaluate")


def modern(tables: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The tables of a run file with everything where it belongs now.

    Args:
        tables: as they are in the file.
        source: the file's name, for errors.

    Raises:
        UserError: a key that is gone, where what it meant depends on a method that is not named,
            or beside the key that stands for it now.
    """
    if not all(isinstance(own, Mapping) for own in tables.values()):
        return dict(tables)
    new: dict[str, Any] = {name: dict(own) for name, own in tables.items()}

    def put(table: str, name: str, value: Any, old: str) -> None:
        own = new.setdefault(table, {})
        if name in own:
            raise UserError(f"{source}: {old} and {table}.{name} say the same: take {old} out.")
        own[name] = value

    def move(old: str, table: str) -> None:
        for name, value in new.pop(old).items():
            put(table, name, value, f"{old}.{name}")

    graft, papa, scion = (new.get(name, {}) for name in ("graft", "papa", "scion"))
    method = new.get("run", {}).get("method")
    if method in (None, "graft", "graft+") and graft.get("level") in ("layer", "filter"):
        if graft.pop("level") == "filter":
            plain = method == "graft" or new.get("teachers", {}).get("count") == 0
            method = "filter-graft" if plain else "filter-graft+"
            new.setdefault("run", {})["method"] = method
            if graft.pop("grouping", "default") == "authors":
                put("filter-graft", "biases", False, "graft.grouping")
            if "frozen" in graft:
                put("filter-graft", "blend_frozen", graft.pop("frozen"), "graft.frozen")
            move("graft", "filter-graft")
            graft = {}
    if "frozen" in graft:
        put("graft", "blend_frozen", graft.pop("frozen"), "graft.frozen")
    if method == "papa" and papa.get("variant") in ("gradual", "all"):
        if papa.pop("variant") == "all":
            method = new["run"]["method"] = "papa-all"
            if "every_epochs" in papa:
                put("papa-all", "every", papa.pop("every_epochs"), "papa.every_epochs")
            move("papa", "papa-all")
    if method in ("noise", "internal", "rotation", "fixed", "papa-all"):
        names = _TIMES + (("alpha",) if method == "fixed" else ())
        for old, own, keys in (("graft", graft, names), ("scion", scion, ("threshold", "decay"))):
            for name in keys:
                if name in own:
                    put(method, name, own.pop(name), f"{old}.{name}")
    for key, now in MOVED.items():
        table, _, name = key.partition(".")
        if name in new.get(table, {}):
            raise UserError(f"{source}: {key} is gone: write {now}.")
    if new.get("scion"):
        raise UserError(f"{source}: [scion] is gone: write {MOVED['scion.threshold']}.")
    return {name: own for name, own in new.items() if own or name not in ("graft", "papa", "scion")}
