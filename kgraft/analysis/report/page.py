"""The page: what it is made of, and how that becomes one file."""

from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np

from kgraft.analysis.records import Grafts
from kgraft.analysis.report.tables import Forest, Table, last_grafting, over_epochs
from kgraft.errors import UserError

if TYPE_CHECKING:
    from kgraft.analysis.report.drawn import Map, Plot

_POINTS = 60_000  # of all lines together: about 1.3 MB of the page
_MOST_POINTS, _FEWEST_POINTS = 600, 40  # of a line
_CELLS = 1_200_000  # of all maps together: 1.6 MB
_MOST_COLUMNS = 1000
_ROWS = 25  # of a plot's table


@dataclass(frozen=True, eq=False)
class Curves:
    """Plots that share a list of lines.

    Attributes:
        title: what they are of.
        names: of the lines, in the order of their places.
        plots: of these.
        note: what has to be said beside them.
    """

    title: str
    names: Sequence[str]
    plots: Sequence["Plot"]
    note: str = ""


@dataclass(frozen=True, eq=False)
class Maps:
    """A run's graftings.

    Attributes:
        title: the run's name.
        grafts: all of them.
        maps: of these, of the same peers.
    """

    title: str
    grafts: Grafts
    maps: Sequence["Map"]


@dataclass(frozen=True, eq=False)
class Comparison:
    """A comparison's part of the page.

    Attributes:
        title: its name.
        tables: its lines, and what sets its entries apart.
        forests: the differences to its references.
        notes: what has to be said beside.
        curves: of its entries; None where no run of it has left any.
    """

    title: str
    tables: Sequence[Table]
    forests: Sequence[Forest]
    notes: Sequence[str]
    curves: Curves | None


@dataclass(frozen=True)
class Picture:
    """A picture that stands in the page.

    Attributes:
        title: what it shows.
        png: its bytes.
    """

    title: str
    png: bytes

    @property
    def address(self) -> str:
        """The picture itself, as an address."""
        return f"data:image/png;base64,{b64encode(self.png).decode()}"


@dataclass(frozen=True, eq=False)
class Part:
    """What there is to say of one run under a heading: tables, pictures, and what is missing.

    Attributes:
        title: the run's name.
        tables: of it.
        notes: sentences.
        pictures: of it, which say what the tables do.
    """

    title: str
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()
    pictures: Sequence[Picture] = ()


@dataclass(frozen=True, eq=False)
class Page:
    """All that a page says.

    Attributes:
        title: what it is of.
        made: by what, and when.
        summary: of the runs; None where there are only comparisons.
        findings: sentences of the summary.
        changes: settings that differ between the runs; None where none does.
        comparisons: see `Comparison`.
        results: of each run.
        curves: of all runs; None where there are none.
        maps: of the runs that were grafted.
        unmapped: why others have none.
        filters: of each run.
        settings: by name the text of a resolved run file.
        environment: where the runs were trained; None where nobody knows.
    """

    title: str
    made: str
    summary: Table | None
    findings: Sequence[str] = ()
    changes: Table | None = None
    comparisons: Sequence[Comparison] = ()
    results: Sequence[Part] = ()
    curves: Curves | None = None
    maps: Sequence[Maps] = ()
    unmapped: Sequence[str] = ()
    filters: Sequence[Part] = ()
    settings: dict[str, str] = field(default_factory=dict)
    environment: Table | None = None


def drawing() -> Any:
    """The module that draws.

    Raises:
        UserError: bokeh is missing.
    """
    try:
        from kgraft.analysis.report import drawn
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "bokeh":
            raise
        raise UserError("a report needs bokeh: pip install 'kgraft[plots]'.") from None
    return drawn


def render(page: Page) -> str:
    """The page as HTML that needs nothing else.

    Args:
        page: what it says; whatever stands in it is shown as text.

    Raises:
        UserError: bokeh is missing.
    """
    drawing()
    from bokeh.core.json_encoder import serialize_json
    from bokeh.resources import Resources
    from jinja2 import Environment, PackageLoader

    placed = _Placed(page)
    library = "\n".join(Resources(mode="inline", components=["bokeh"], log_level="error").js_raw)
    template = Environment(
        loader=PackageLoader("kgraft.analysis.report", "."), autoescape=True, trim_blocks=True
    ).get_template("page.html")
    own = files("kgraft.analysis.report")
    return template.render(
        page=page,
        placed=placed,
        css=(own / "page.css").read_text(encoding="utf-8"),
        library=_in_script(library),
        script=(own / "page.js").read_text(encoding="utf-8"),
        plots=serialize_json(placed.document()).replace("<", "\\u003c"),
    )


@dataclass(frozen=True)
class Placed:
    """A figure's place on the page.

    Attributes:
        name: of its element, and of bokeh's figure.
        title: its heading.
        label: what it is, for who does not see it.
        table: its numbers.
    """

    name: str
    title: str
    label: str
    table: Table | None


class _Placed:
    """The page's figures as bokeh's, and where each goes."""

    def __init__(self, page: Page) -> None:
        drawn = drawing()
        self._figures: list[Any] = []
        told = [own for own in (page.curves, *(c.curves for c in page.comparisons)) if own]
        count = sum(len(plot.lines) for own in told for plot in own.plots)
        self.points = min(max(_POINTS // max(count, 1), _FEWEST_POINTS), _MOST_POINTS)
        rows = sum(own.values.shape[1] * len(own.layers) for m in page.maps for own in m.maps)
        self.columns = min(max(_CELLS // max(rows, 1), 2), _MOST_COLUMNS)
        for curves in told:
            self._figures += drawn.curves(curves.plots, self.points)
        for maps in page.maps:
            self._figures += [drawn.layer_map(own, self.columns) for own in maps.maps]
        self.looks = [drawn.Look.of(k) for k in range(max([0, *(len(c.names) for c in told)]))]

    def document(self) -> dict[str, Any]:
        """What the page's script embeds: bokeh's document, and in which element each figure is."""
        from bokeh.document import Document

        document = Document()
        for own in self._figures:
            document.add_root(own)
        roots = {own.id: own.name for own in self._figures}
        return {
            "documents": {"report": document.to_json(deferred=False)},
            "items": [{"docid": "report", "roots": roots, "root_ids": list(roots)}],
        }

    def is_thinned(self, curves: Curves) -> bool:
        """Whether lines have lost points."""
        return any(len(line.epochs) > self.points for own in curves.plots for line in own.lines)

    def of_curves(self, curves: Curves) -> Iterator[Placed]:
        """Its plots."""
        for plot in curves.plots:
            yield Placed(
                plot.name,
                plot.title,
                f"{plot.title} over epochs of {_count(len(plot.lines), 'line')}; "
                "the numbers are in the table below it",
                _numbers(plot),
            )

    def of_maps(self, maps: Maps) -> Iterator[Placed]:
        """Its maps; the first one has the numbers of all."""
        for k, own in enumerate(maps.maps):
            count = _count(len(own.layers), "layer")
            yield Placed(
                own.name,
                own.title,
                f"{own.title}: a map of {count} by {_count(len(own.epochs), 'epoch')}; "
                "the last epoch's numbers are in the table below",
                last_grafting(maps.grafts) if k == len(maps.maps) - 1 else None,
            )


def _numbers(plot: "Plot") -> Table:
    """Some epochs of a plot, the last one among them."""
    epochs = np.unique(np.concatenate([line.epochs for line in plot.lines]))
    kept = epochs[np.unique(np.linspace(0, len(epochs) - 1, _ROWS).round().astype(int))]
    times, columns = 100 if plot.percent else 1, []
    for line in plot.lines:
        known = dict(zip(line.epochs.tolist(), (times * line.values).tolist(), strict=True))
        columns.append([known.get(epoch, np.nan) for epoch in kept.tolist()])
    return over_epochs(
        f"{plot.title}, %" if plot.percent else plot.title,
        [line.name for line in plot.lines],
        list(zip(kept.tolist(), *columns, strict=True)),
    )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _in_script(text: str) -> str:
    """JavaScript that does not end the element that it stands in."""
    return text.replace("</script", "<\\/script").replace("<!--", "<\\!--")
