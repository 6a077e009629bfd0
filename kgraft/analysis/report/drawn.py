"""A page's plots: curves over epochs and maps of layers by epochs, as bokeh's figures.

Names and tags are what the page's script finds a figure and its lines by: a line's tag is its place
in the list beside the plots.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from bokeh.models import (
    BasicTicker,
    BoxZoomTool,
    ColorBar,
    ColumnDataSource,
    CustomJSHover,
    DataRange1d,
    FixedTicker,
    HoverTool,
    LinearColorMapper,
    Range1d,
)
from bokeh.models import glyphs as glyph
from bokeh.palettes import Cividis256
from bokeh.plotting import figure

from kgraft.analysis.figures import COLOURS, STYLES
from kgraft.analysis.report.thin import CODES, coded, columns, thinned

TITLES = {
    "accuracy": ("Accuracy on training images", "accuracy"),
    "val_accuracy": ("Accuracy on held-out images", "accuracy"),
    "loss": ("Loss on training images, of the labels alone", "loss"),
    "val_loss": ("Loss on held-out images", "loss"),
    "lr": ("Learning rate", "learning rate"),
    "alpha": ("Mean coefficient alpha", "alpha"),
    "student_loss": ("Loss with the part of teachers or other peers", "loss"),
    "distillation_loss": ("Part of the teachers in the loss", "loss"),
    "mutual_loss": ("Part of the other peers in the loss", "loss"),
}
"""What is measured in an epoch, by its name in `metrics.jsonl`: as a heading, and at an axis."""

_SHARES = ("accuracy", "top5")
_DASHES = dict(zip(STYLES, ("solid", "dashed", "dashdot", "dotted"), strict=True))
_INK = "#000000"  # of text, black on white and white on black
_FEW = 30  # points that are marked, not only joined
_NOTHING = "#8c8c8c"  # where there is no number
_MOST_LABELS = 60
_ROW = 15  # pixels of a layer


@dataclass(frozen=True)
class Look:
    """How a line looks: one of Okabe and Ito's colours, and a style."""

    colour: str
    style: str

    @staticmethod
    def of(place: int) -> "Look":
        """The look of the line at a place of the list: the colours come again in another style."""
        turn, colour = divmod(place, len(COLOURS))
        return Look(COLOURS[colour], _DASHES[STYLES[turn % len(STYLES)]])


@dataclass(frozen=True, eq=False)
class Line:
    """A line of a plot.

    Attributes:
        place: of its name in the list beside the plots, counted from 0.
        name: what it is of.
        epochs: int64 `(E,)`.
        values: `(E,)`; nan where nothing was measured.
        band: the lowest and the highest of several seeds, `(E,)` each, where it is their mean.
    """

    place: int
    name: str
    epochs: np.ndarray
    values: np.ndarray
    band: tuple[np.ndarray, np.ndarray] | None = None


@dataclass(frozen=True, eq=False)
class Plot:
    """Lines over epochs.

    Attributes:
        name: by which the page's script knows it.
        title: what is measured.
        short: the same in a word.
        lines: of each network.
        percent: whether the values are shares, which are shown in percent.
    """

    name: str
    title: str
    short: str
    lines: Sequence[Line]
    percent: bool = False

    @classmethod
    def of(cls, metric: str, name: str, lines: Sequence[Line]) -> "Plot":
        """The plot of a metric of `metrics.jsonl`.

        Args:
            metric: its name there.
            name: of the plot.
            lines: see `Plot`.
        """
        title, short = TITLES.get(metric, (metric, metric))
        return cls(name, title, short, lines, metric.endswith(_SHARES))

    @property
    def unit(self) -> str:
        """What the numbers are, with their unit."""
        return f"{self.short}, %" if self.percent else self.short


@dataclass(frozen=True, eq=False)
class Map:
    """Layers by epochs, of some peers.

    Attributes:
        name: by which the page's script knows it.
        title: what the values are, with their unit.
        short: the same in a word or two.
        values: `(epochs, peers, layers)`; nan where there is none.
        epochs: their numbers, int64 `(epochs,)`.
        layers: their names.
        limits: of the colours; the smallest and the largest value where it is None.
    """

    name: str
    title: str
    short: str
    values: np.ndarray
    epochs: np.ndarray
    layers: Sequence[str]
    limits: tuple[float, float] | None = None


def curves(plots: Sequence[Plot], most: int) -> list[figure]:
    """A figure for each plot; to zoom into one is to zoom into the epochs of all.

    Args:
        plots: with one line at least each.
        most: points that a line may have, see `thinned`.
    """
    ends = [own.epochs for plot in plots for own in plot.lines]
    first, last = min(int(own[0]) for own in ends), max(int(own[-1]) for own in ends)
    margin = max(0.02 * (last - first), 0.5 if last == first else 0.0)
    epochs = Range1d(first - margin, last + margin, bounds=(first - margin, last + margin))
    return [_curves(plot, epochs, most) for plot in plots]


def _curves(plot: Plot, epochs: Range1d, most: int) -> figure:
    zoom = BoxZoomTool()
    shown = figure(
        name=plot.name,
        height=300,
        sizing_mode="stretch_width",
        x_range=epochs,
        y_range=DataRange1d(only_visible=True, range_padding=0.05),
        tools=[zoom],
        active_drag=zoom,
        toolbar_location=None,
        x_axis_label="epoch",
        y_axis_label=plot.unit,
    )
    told = []
    for line in plot.lines:
        look, times = Look.of(line.place), 100 if plot.percent else 1
        kept = thinned(line.values, most)
        points = {"x": line.epochs[kept].astype(np.int32), "y": line.values[kept] * times}
        glyphs: list[Any] = [
            glyph.Line(x="x", y="y", line_color=look.colour, line_dash=look.style, line_width=2)
        ]
        if np.isfinite(points["y"]).sum() <= _FEW:
            colour = look.colour
            glyphs.append(glyph.Scatter(x="x", y="y", size=6, fill_color=colour, line_color=colour))
        if line.band is not None:
            points["low"], points["high"] = (own[kept] * times for own in line.band)
            glyphs.append(
                glyph.VArea(x="x", y1="low", y2="high", fill_color=look.colour, fill_alpha=0.18)
            )
        source = ColumnDataSource(points)
        tags = [line.place, "ink"] if look.colour == _INK else [line.place]
        drawn = [shown.add_glyph(source, own, tags=tags, name=line.name) for own in glyphs]
        told.append(drawn[0])
    said = "@y{0.00} %" if plot.percent else "@y{0.0000}"
    tips = [("", "$name"), ("epoch", "@x"), (plot.short, said)]
    shown.add_tools(HoverTool(renderers=told, tooltips=tips, line_policy="nearest"))
    _plain(shown)
    return shown


def layer_map(own: Map, most: int) -> figure:
    """A figure with an image a peer, of which the first one is shown.

    Args:
        own: with one finite value at least.
        most: columns that it may have, see `columns`.
    """
    kept = columns(len(own.epochs), most)
    epochs, values = own.epochs[kept], own.values[kept]
    low, high = own.limits or (float(np.nanmin(own.values)), float(np.nanmax(own.values)))
    step = (int(epochs[-1]) - int(epochs[0])) / (len(epochs) - 1) if len(epochs) > 1 else 1.0
    left, width, rows = float(epochs[0]) - step / 2, step * len(epochs), len(own.layers)
    zoom = BoxZoomTool()
    shown = figure(
        name=own.name,
        height=min(max(110 + _ROW * rows, 220), 900),
        sizing_mode="stretch_width",
        x_range=Range1d(left, left + width, bounds=(left, left + width)),
        y_range=Range1d(rows - 0.5, -0.5, bounds=(-0.5, rows - 0.5)),
        tools=[zoom],
        active_drag=zoom,
        toolbar_location=None,
        x_axis_label="epoch",
    )
    colours = LinearColorMapper(
        palette=Cividis256[:CODES], low=-0.5, high=CODES - 0.5, high_color=_NOTHING
    )
    for k in range(values.shape[1]):
        source = ColumnDataSource({"image": [coded(values[:, k].T, low, high)]})
        image = glyph.Image(image="image", x=left, y=-0.5, dw=width, dh=rows, color_mapper=colours)
        shown.add_glyph(source, image, tags=[k], visible=k == 0)
    names = [name.removesuffix("/kernel") for name in own.layers]
    every = -(-rows // _MOST_LABELS)
    shown.yaxis.ticker = FixedTicker(ticks=list(range(0, rows, every)))
    shown.yaxis.major_label_overrides = {row: names[row] for row in range(0, rows, every)}
    shown.yaxis.major_label_text_font_size = "10px"
    shown.yaxis.name = "layers"
    said = {
        "$x": f"const e = {epochs.tolist()}; const c = Math.floor((value - {left}) / {step});"
        " return String(e[Math.min(Math.max(c, 0), e.length - 1)]);",
        "$y": "return names[Math.min(Math.max(Math.round(value), 0), names.length - 1)];",
        "@image": f"return value == {CODES} ? 'none' : "
        f"({low} + value * {(high - low) / (CODES - 1)}).toFixed(4);",
    }
    shown.add_tools(
        HoverTool(
            tooltips=[
                ("layer", "$y{custom}"),
                ("epoch", "$x{custom}"),
                (own.short, "@image{custom}"),
            ],
            formatters={
                key: CustomJSHover(code=code, args={"names": names} if key == "$y" else {})
                for key, code in said.items()
            },
        )
    )
    scale = LinearColorMapper(
        palette=Cividis256[:CODES], low=low, high=high if high > low else low + 1
    )
    bar = ColorBar(
        color_mapper=scale,
        ticker=BasicTicker(desired_num_ticks=5),
        height=10,
        background_fill_color=None,
        margin=0,
        padding=4,
    )
    shown.add_layout(bar, "above")
    _plain(shown)
    return shown


def _plain(shown: figure) -> None:
    """Without a ground of its own: the page's is seen, light or dark."""
    shown.background_fill_color = shown.border_fill_color = None
    shown.xaxis.axis_label_text_font_style = shown.yaxis.axis_label_text_font_style = "normal"
    shown.axis.minor_tick_line_color = None
    shown.grid.grid_line_alpha = 0.5
    shown.xaxis.ticker = BasicTicker(mantissas=[1, 2, 5], min_interval=1, num_minor_ticks=0)
    shown.min_border_right = 12
    shown.output_backend = "canvas"
