"""Files of the papers' tables: TOML -> comparisons, with what was published beside each entry.

    [table]
    title = "Two ways to graft"
    source = "Somebody et al., table 1"
    also = ["table-2"]             # what else one may call it
    shows = ["accuracy"]           # or "invalid", "norms", "entropy"
    pictures = ["curves"]          # or "thresholds", "filters", "coefficients", "peers"
    baseline = "baseline"          # of what was published

    [common]                       # tables of a run file, the same for everybody
    run.batch_size = 128

    [full]                         # and what a budget has of its own
    about = "as in the paper"
    seeds = [0, 1, 2]
    run.epochs = 200

    [small]
    about = "..."

    [sets."CIFAR-100"]             # the table's columns: image sets
    data.name = "cifar100"

    [networks.ResNet32]            # times networks
    full.model.name = "resnet32"
    small.model.name = "resnet8"

    [parts.slr]                    # times parts, whose entries share a schedule
    baseline = "baseline"
    schedule.name = "step"

    [parts.slr.entries.baseline]   # as in a comparison file
    run.method = "baseline"

    [parts.slr.entries.mutual]
    networks = ["ResNet32"]        # where there are not all of them
    run.method = "mutual"

    [published."CIFAR-100".ResNet32]
    baseline = 69.82               # percent

A set, network, part or entry may have tables `full` and `small`: what it is in one budget alone.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kgraft.errors import UserError, suggest
from kgraft.kinds import to_toml
from kgraft.runs.comparisons.file import Comparison, comparison_of, in_directory
from kgraft.runs.toml_text import text_of, toml

BUDGETS = ("full", "small")
SHOWS = ("accuracy", "invalid", "norms", "entropy")
PICTURES = ("curves", "thresholds", "filters", "coefficients", "peers")
THRESHOLDS = ("0.1", "1")
"""Of the l1 norm, at which the papers split filters."""

_TABLES = ("table", "common", *BUDGETS, "sets", "networks", "parts", "published")
_HEAD = ("title", "source", "also", "shows", "pictures", "baseline", "note")
_Tables = Mapping[str, Any]


@dataclass(frozen=True)
class Panel:
    """One comparison of a table: one image set, one network, one schedule.

    Attributes:
        images: the set, as the paper calls it.
        network: the network, as the paper calls it; in a small budget another one stands for it.
        part: the part of the table.
        comparison: what is trained.
        published: by entry, what the paper says of it: `accuracy`, percent, and by threshold of the
            l1 norm, as text, what it says of filters: of invalid ones their number, and that of
            all, or the mean norms of valid and invalid ones.
    """

    images: str
    network: str
    part: str
    comparison: Comparison
    published: Mapping[str, Mapping[str, Any]]

    @property
    def model(self) -> str:
        """The network that is trained."""
        return self.comparison.entries[0].config.model.name

    @property
    def place(self) -> str:
        """Its directory; tables that want the same runs find them there."""
        words = f"{self.images} {self.network} {self.part}"
        return re.sub(r"[^A-Za-z0-9.+]+", "-", words).strip("-").lower()


@dataclass(frozen=True)
class PaperTable:
    """A table of a paper, under a budget.

    Attributes:
        name: e.g. `"fg-table-5"`.
        title: what it compares.
        source: where it was published.
        shows: which figures it has, of `SHOWS`.
        pictures: which pictures it has, of `PICTURES`.
        baseline: the entry that published gains are on.
        note: what else has to be said, or "".
        budget: one of `BUDGETS`.
        about: what the budget is.
        panels: what is trained.
    """

    name: str
    title: str
    source: str
    shows: tuple[str, ...]
    pictures: tuple[str, ...]
    baseline: str
    note: str
    budget: str
    about: str
    panels: tuple[Panel, ...]

    def of(
        self,
        only: Sequence[str] = (),
        seeds: int | None = None,
        data_dir: str | None = None,
    ) -> "PaperTable":
        """The table with fewer columns, other seeds, or images from elsewhere.

        Args:
            only: sets and networks that count; all by default.
            seeds: how many, from 0 on; the file's by default.
            data_dir: where prepared data sets are.

        Raises:
            UserError: `only` names something that the table has not.
        """
        known = {name for panel in self.panels for name in (panel.images, panel.network)}
        for word in only:
            if word not in known:
                near = suggest(word, sorted(known))
                raise UserError(f"--only {word}: no set or network of {self.name}.{near}")
        panels = self.panels
        for kind in ("images", "network"):
            wanted = {name for panel in self.panels if (name := getattr(panel, kind)) in only}
            panels = tuple(p for p in panels if not wanted or getattr(p, kind) in wanted)
        found = []
        for panel in panels:
            comparison = panel.comparison
            if seeds is not None:
                comparison = replace(comparison, seeds=tuple(range(seeds)))
            if data_dir is not None:
                comparison = in_directory(comparison, data_dir)
            found.append(replace(panel, comparison=comparison))
        return replace(self, panels=tuple(found))


def read_table(path: Path, budget: str) -> PaperTable:
    """Read and check the file of a table.

    Args:
        path: the TOML file.
        budget: one of `BUDGETS`.

    Raises:
        UserError: no such file, no TOML, an unknown key, something published of what is not there,
            or entries that cannot be compared; names it.
    """
    source = str(path)
    tables = toml(text_of(path, "table"), source)
    for name, own in tables.items():
        if name not in _TABLES:
            raise UserError(f"{source}: unknown table {name!r}." + suggest(name, _TABLES))
        _check_tables({name: own}, source)
    for name in ("table", budget, "sets", "networks", "parts"):
        if not tables.get(name):
            raise UserError(f"{source}: expected a table [{name}].")
    head = _head(tables["table"], f"{source}: [table]")
    own = {**tables[budget]}
    about, seeds = own.pop("about", ""), own.pop("seeds", [0, 1, 2])
    common = _laid(tables.get("common", {}), own, budget, source)
    for kind in ("sets", "networks", "parts"):
        _check_tables(tables[kind], f"{source}: [{kind}]")
    _check_entries(tables, source)
    _check_published(tables, source)
    panels = [
        _panel(tables, common, seeds, names, budget, source)
        for names in _products(tables["sets"], tables["networks"], tables["parts"])
    ]
    found = tuple(panel for panel in panels if panel is not None)
    if not found:
        raise UserError(f"{source}: no part has an entry of any network.")
    return PaperTable(path.stem, **head, budget=budget, about=about, panels=found)


def _head(table: _Tables, where: str) -> dict[str, Any]:
    for name in table:
        if name not in _HEAD:
            raise UserError(f"{where} unknown key {name!r}." + suggest(name, _HEAD))
    texts = {"title": "", "source": "", "baseline": "", "note": ""}
    head = {**texts, "shows": ["accuracy"], "pictures": [], **table}
    head.pop("also", None)
    for name in texts:
        if not isinstance(head[name], str):
            raise UserError(f"{where} {name} = {to_toml(head[name])}: expected text.")
    for name, known in (("shows", SHOWS), ("pictures", PICTURES)):
        if not isinstance(head[name], list) or not {*map(str, head[name])} <= {*known}:
            raise UserError(
                f"{where} {name} = {to_toml(head[name])}: expected a list of {', '.join(known)}."
            )
    return {**head, "shows": tuple(head["shows"]), "pictures": tuple(head["pictures"])}


def _check_tables(tables: Any, where: str) -> None:
    for name, own in tables.items():
        if not isinstance(own, Mapping):
            raise UserError(f"{where}: {name} is a value; expected a table.")


def _check_entries(tables: _Tables, source: str) -> None:
    """Refuse an entry that two parts have: what was published of it would be of either."""
    owners: dict[str, str] = {}
    for part, own in tables["parts"].items():
        entries = own.get("entries", {})
        if not isinstance(entries, Mapping):
            raise UserError(f"{source}: [parts.{part}] entries is a value; expected a table.")
        _check_tables(entries, f"{source}: [parts.{part}.entries]")
        for name in entries:
            if owners.setdefault(name, part) != part:
                raise UserError(
                    f"{source}: {name!r} is an entry of the parts {owners[name]!r} and {part!r}: "
                    "expected different names."
                )


def _check_published(tables: _Tables, source: str) -> None:
    """Refuse figures of what the table has not."""
    entries = {name for part in tables["parts"].values() for name in part.get("entries", {})}
    for images, by_network in tables.get("published", {}).items():
        where = f"{source}: [published.{images!r}]"
        if images not in tables["sets"]:
            raise UserError(f"{where} is no set." + suggest(images, tables["sets"]))
        _check_tables(by_network, where)
        for network, figures in by_network.items():
            if network not in tables["networks"]:
                raise UserError(
                    f"{where} {network!r} is no network." + suggest(network, tables["networks"])
                )
            for name in figures:
                if name not in entries:
                    raise UserError(f"{where} {name!r} is no entry." + suggest(name, entries))
                if not _is_published(figures[name]):
                    raise UserError(
                        f"{where} {name!r} = {to_toml(figures[name])}: expected percent, or a "
                        "table of accuracy and of two figures by threshold."
                    )


def _is_published(figure: Any) -> bool:
    """Whether it is percent, or a table as `Panel.published` has them."""
    if not isinstance(figure, Mapping):
        return _is_number(figure)
    return all(
        _is_number(own)
        if name == "accuracy"
        else isinstance(own, list) and len(own) == 2 and all(map(_is_number, own))
        for name, own in figure.items()
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _products(*axes: _Tables) -> Iterator[tuple[str, str, str]]:
    sets, networks, parts = axes
    for images in sets:
        for network in networks:
            for part in parts:
                yield images, network, part


def _panel(
    tables: _Tables,
    common: _Tables,
    seeds: Any,
    names: tuple[str, str, str],
    budget: str,
    source: str,
) -> Panel | None:
    """One comparison; None where the network has no entry in the part."""
    images, network, part = names
    own = {**tables["parts"][part]}
    given, baseline = own.pop("entries", {}), own.pop("baseline", None)
    place = f"{source} ({images}, {network}, {part})"
    for layer in (tables["sets"][images], tables["networks"][network], own):
        common = _laid(common, layer, budget, place)
    entries = {}
    for name, entry in given.items():
        settings = {**entry}
        where = settings.pop("networks", [network])
        if not isinstance(where, list):
            raise UserError(f"{place}: networks = {to_toml(where)} of {name!r}: expected a list.")
        unknown = [word for word in where if word not in tables["networks"]]
        if unknown:
            raise UserError(
                f"{source}: [parts.{part}.entries.{name!r}] networks: {unknown[0]!r} is none."
                + suggest(str(unknown[0]), tables["networks"])
            )
        if network in where:
            entries[name] = _laid({}, settings, budget, place)
    if len(entries) < 1:
        return None
    comparison = comparison_of(
        {
            "comparison": {"seeds": seeds, **({} if baseline is None else {"baseline": baseline})},
            "common": common,
            "entries": entries,
        },
        place,
    )
    published = tables.get("published", {}).get(images, {}).get(network, {})
    return Panel(
        images,
        network,
        part,
        comparison,
        {
            name: own if isinstance(own := published[name], Mapping) else {"accuracy": own}
            for name in entries
            if name in published
        },
    )


def _laid(below: _Tables, above: _Tables, budget: str, where: str) -> dict[str, Any]:
    """Tables over others: the budget's own last, those of the other budget not at all."""
    found = {name: {**own} if isinstance(own, Mapping) else own for name, own in below.items()}
    plain = {name: own for name, own in above.items() if name not in BUDGETS}
    _check_tables({name: own for name, own in above.items() if name in BUDGETS}, where)
    for layer in (plain, above.get(budget, {})):
        for name, own in layer.items():
            both = isinstance(own, Mapping) and isinstance(found.get(name), Mapping)
            found[name] = {**found[name], **own} if both else own
    return found
