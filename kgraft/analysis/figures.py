"""Pictures of runs, for print and for colour-blind readers; the only place that draws.

Lines have colours of Okabe and Ito's palette and a style each, maps the colours of cividis, whose
lightness rises evenly.
"""

from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from itertools import cycle
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from kgraft.analysis.filters import LayerFilters
from kgraft.equations import graft_coefficient
from kgraft.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_MAP = "cividis"
_MOST_LABELS = 40
_LONG_LABEL = 28  # letters
_WIDEST_LABEL = 90
_SMALLEST = 1e-6  # threshold that is shown
_MOST_TICKS = 10
_STEPS = tuple(base * 10**power for power in range(7) for base in (1, 2, 5))
_NOTHING = "white"  # where there is no number: lighter than any
_SICK = "#CC79A7"  # no number either, but a filter
_MARKS = 8  # on a line


def curves(
    series: Mapping[str, Sequence[np.ndarray]], *, what: str, percent: bool = False, note: str = ""
) -> "Figure":
    """Lines over epochs: the mean of several seeds, and between which they lie.

    Args:
        series: by name, of each seed or network one value an epoch, `(epochs,)`.
        what: what the values are.
        percent: whether shares are shown in percent.
        note: what mean and band are, for the axis.

    Raises:
        UserError: matplotlib is missing, or there is nothing to draw.
    """
    if not series:
        raise UserError("no curves: there is nothing to draw.")
    figure, axes = empty(7.2, 4.4)
    last = 1
    for k, ((name, rows), look) in enumerate(zip(series.items(), _looks(), strict=False)):
        length = min(map(len, rows))
        values = np.stack([row[:length] for row in rows]) * (100 if percent else 1)
        epochs = np.arange(1, length + 1)
        apart = max(1, length // _MARKS)  # markers tell lines apart where dashes are too dense
        told = name if np.isfinite(values).any() else f"{name} (not finite)".lstrip()
        look |= {"markevery": (k * apart // len(series), apart), "label": told}
        axes.plot(epochs, values.mean(axis=0), lw=1.3, ms=4, **look)
        if len(rows) > 1:
            low, high = values.min(axis=0), values.max(axis=0)
            axes.fill_between(epochs, low, high, color=look["color"], alpha=0.18, lw=0)
        last = max(last, length)
    margin = max(0.5, 0.02 * last)
    axes.set_xlim(1 - margin, last + margin)
    axes.set_xlabel("epoch")
    axes.set_ylabel(f"{what}, %" if percent else what)
    axes.set_title(note, loc="left", fontsize=9)
    axes.xaxis.get_major_locator().set_params(integer=True)
    if last == 1:
        axes.set_xticks([1])
    axes.grid(alpha=0.3)
    if len(series) > 1 or next(iter(series)):
        beside(axes)
    return figure


def layer_map(
    values: np.ndarray,
    layers: Sequence[str],
    epochs: np.ndarray,
    *,
    what: str,
    limits: tuple[float, float] | None = None,
) -> "Figure":
    """A map of layers by epochs: coefficients, or information.

    Args:
        values: `(epochs, layers)`; nan where there is none, which is white.
        layers: their names.
        epochs: their numbers, counted from 1, `(epochs,)`.
        what: what the values are, with their unit.
        limits: of the colours; the smallest and the largest value by default.

    Raises:
        UserError: matplotlib is missing.
    """
    figure, axes = empty(7.2, min(2.0 + 0.18 * len(layers), 9.0))
    import matplotlib

    low, high = limits or (float(np.nanmin(values)), float(np.nanmax(values)))
    colours = matplotlib.colormaps[_MAP].with_extremes(bad=_NOTHING)
    image = axes.imshow(
        np.ma.masked_invalid(values.T),
        aspect="auto",
        interpolation="nearest",
        cmap=colours,
        vmin=low,
        vmax=high,
        extent=(0.5, len(epochs) + 0.5, len(layers) - 0.5, -0.5),
    )
    step = next(own for own in _STEPS if own * _MOST_TICKS >= len(epochs))
    places = np.unique([0, *range(step - 1, len(epochs), step)])
    axes.set_xticks(places + 1, [str(epochs[place]) for place in places])
    _name_rows(axes, layers)
    axes.set_xlabel("epoch")
    none = "" if np.isfinite(values).all() else "; white: none"
    figure.colorbar(image, ax=axes, label=f"{what}{none}", aspect=5 * figure.get_figheight())
    return figure


def filter_map(layers: Sequence[LayerFilters], *, threshold: float = 0.1) -> "Figure":
    """One cell a filter, a row a layer: the larger its l1 norm the lighter, invalid ones black.

    Pink where it is not finite, in a network that has diverged.

    As figures 9 and 11 of arXiv 2004.12311v2.

    Args:
        layers: a network's.
        threshold: the l1 norm below which a filter is invalid.

    Raises:
        UserError: matplotlib is missing.
    """
    figure, axes = empty(9.0, min(2.0 + 0.18 * len(layers), 9.0))
    import matplotlib
    from matplotlib.colors import LogNorm

    norms = np.concatenate([layer.norms for layer in layers])
    most = float(norms[np.isfinite(norms)].max(initial=2 * threshold))
    widest = max(len(layer.norms) for layer in layers)
    grid = np.full((len(layers), widest), np.nan)
    for row, layer in zip(grid, layers, strict=True):
        shown = np.maximum(layer.norms, threshold * 0.5)
        row[: len(shown)] = np.where(np.isfinite(shown), shown, 2 * most)
    colours = matplotlib.colormaps[_MAP].with_extremes(under="black", over=_SICK, bad="white")
    image = axes.imshow(
        np.ma.masked_invalid(grid),
        aspect="auto",
        interpolation="nearest",
        cmap=colours,
        norm=LogNorm(threshold, most),
    )
    for place, layer in enumerate(layers):  # where a row ends: white is no light filter
        end = len(layer.norms) - 0.5
        axes.plot([end, end], [place - 0.5, place + 0.5], color="#888888", lw=0.6)
    _name_rows(axes, [layer.name for layer in layers])
    axes.set_xlabel("filter of the layer, from 0")
    axes.xaxis.get_major_locator().set_params(integer=True)
    sick = not np.isfinite(norms).all()
    extend, aspect = "both" if sick else "min", 5 * figure.get_figheight()
    bar = figure.colorbar(image, ax=axes, extend=extend, aspect=aspect)
    told = "; pink: not finite" if sick else ""
    bar.set_label(f"l1 norm\nblack: invalid, below {threshold:g}{told}")
    return figure


def threshold_curves(networks: Mapping[str, Sequence[LayerFilters]]) -> "Figure":
    """Share of invalid filters by threshold (figure 6 of Meng et al., CVPR 2020).

    Args:
        networks: by name the layers of each.

    Raises:
        UserError: matplotlib is missing.
    """
    figure, axes = empty(7.2, 4.4)
    norms_of = {}
    for name, layers in networks.items():
        norms = np.sort(np.concatenate([layer.norms for layer in layers]))
        known = norms[np.isfinite(norms)]
        sick = f" ({len(norms) - len(known)} of {len(norms)} not finite)"
        norms_of[name + sick * (len(known) < len(norms))] = known
    least = [float(norms[0]) for norms in norms_of.values() if len(norms)]
    first = max(min(least, default=1.0) / 10, _SMALLEST)
    for (name, norms), look in zip(norms_of.items(), _looks(), strict=False):
        at = np.maximum(norms, first)
        look |= {"marker": ""}
        share = 100 * np.arange(1, len(norms) + 1) / len(norms)
        axes.step([first, *at], [0.0, *share], where="post", label=name, lw=1.3, **look)
    axes.set_xscale("log")
    axes.set_xlabel("threshold of the l1 norm")
    axes.set_ylabel("invalid filters, %")
    axes.set_ylim(0, 100)
    axes.grid(alpha=0.3)
    beside(axes)
    return figure


def coefficient_curve(
    gaps: np.ndarray, coefficients: np.ndarray, *, amplitude: float = 0.4, sharpness: float = 500.0
) -> "Figure":
    """Eq. 7 as a curve, and a run's graftings on it (figure 4 of Meng et al., CVPR 2020).

    Args:
        gaps: information of receivers less that of donors, nats; nan where there was no donor.
        coefficients: what each kept of its own, of the same shape.
        amplitude: A of the curve.
        sharpness: c of the curve, 1/nats.

    Raises:
        UserError: matplotlib is missing.
    """
    figure, axes = empty(7.2, 4.4)
    known = np.isfinite(gaps)
    reach = float(np.percentile(np.abs(gaps[known]), 99)) if known.any() else 1.0
    reach = max(reach, 10 / sharpness)
    # most change is near 0
    x = np.sinh(np.linspace(-6, 6, 801)) / np.sinh(6) * reach
    axes.plot(
        x,
        graft_coefficient(x, np.zeros_like(x), amplitude=amplitude, sharpness=sharpness),
        color="black",
        lw=1.2,
        zorder=4,
        label=f"eq. 7, A = {amplitude:g}, c = {sharpness:g}",
    )
    axes.scatter(
        gaps[known],
        coefficients[known],
        s=14,
        color=COLOURS[1],
        alpha=0.35,
        label="layers of the run",
        zorder=3,
        rasterized=True,  # there may be a million
        edgecolors="none",
    )
    axes.set_xlim(-1.05 * reach, 1.05 * reach)
    axes.set_xlabel("information of receiver less donor, nats")
    axes.set_ylabel("coefficient: share of its own that is kept")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", frameon=False)
    return figure


def differences(rows: Sequence[Mapping[str, Any]], *, baseline: str) -> "Figure":
    """Differences to a baseline with their 95 % intervals, in points.

    Args:
        rows: of each line of a comparison `"entry"`, its `"against"` and, where they are known, its
            `"trainings"`, as `comparison.json` has them.
        baseline: the entry that they are differences to.

    Raises:
        UserError: matplotlib is missing, or no line has a difference to it.
    """
    told = [(_with_cost(row), row["against"].get(baseline)) for row in rows]
    told = [(name, own) for name, own in told if own is not None]
    if not told:
        raise UserError(f"no line has a difference to {baseline!r}: there is nothing to draw.")
    figure, axes = empty(7.2, 1.4 + 0.34 * len(told))
    for place, (_, own) in enumerate(reversed(told)):
        low, high = own["ci95"]
        colour = COLOURS[0]
        if low is not None:
            axes.plot([100 * low, 100 * high], [place, place], color=colour, lw=2)
            if low <= 0 <= high:
                colour = "white"
        axes.plot(100 * own["mean"], place, "o", mfc=colour, mec=COLOURS[0])
    axes.axvline(0, color="black", lw=0.8)
    axes.set_yticks(range(len(told)), [name for name, _ in reversed(told)])
    axes.set_ylim(-0.6, len(told) - 0.4)
    axes.set_xlabel(f"points above {baseline}, with 95 % intervals (open: zero is in it)")
    axes.grid(axis="x", alpha=0.3)
    return figure


def _with_cost(row: Mapping[str, Any]) -> str:
    """An entry's name, and what it cost in trainings of one network."""
    cost = row.get("trainings")
    told = "" if cost is None else f" ({cost:.3g} training{'s' * (cost != 1)})"
    return f"{row['entry']}{told}"


def png(figure: "Figure") -> bytes:
    """A figure as it stands on a screen."""
    file = BytesIO()
    figure.savefig(file, format="png", dpi=100, bbox_inches="tight")
    return file.getvalue()


def empty(width: float, height: float) -> tuple["Figure", Any]:
    """An empty figure, of inches, and its axes."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("pictures need matplotlib: pip install 'kgraft[plots]'.") from None
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    return figure, figure.subplots()


def _looks() -> Iterator[dict[str, Any]]:
    """Colour, style and marker of each line: neighbours differ in all three, 28 in two of them."""
    for colour, style, marker in zip(cycle(COLOURS), cycle(STYLES), cycle(MARKERS), strict=False):
        yield {"color": colour, "ls": style, "marker": marker}


def beside(axes: Any) -> None:
    """A legend outside of a picture's axes, which keep their size: beside them, or below.

    Args:
        axes: what has been drawn into.
    """
    handles, labels = axes.get_legend_handles_labels()
    told = [fill(label, _WIDEST_LABEL, break_on_hyphens=False) for label in labels]
    longest = max(len(line) for label in told for line in label.splitlines())
    figure = axes.figure
    width, height = figure.get_size_inches()
    if longest <= _LONG_LABEL:
        figure.set_size_inches(width + 0.5 + 0.085 * longest, max(height, 0.8 + 0.22 * len(told)))
        place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0)}
    else:
        columns = max(1, int(width / (0.6 + 0.075 * longest)))
        lines = sum(label.count("\n") + 1 for label in told)
        figure.set_size_inches(width, height + 0.2 + 0.2 * -(-lines // columns))
        place = {"loc": "outside lower left", "ncols": columns}
    owner = figure if "ncols" in place else axes
    owner.legend(handles, told, frameon=False, fontsize=9, **place)


def _name_rows(axes: Any, names: Sequence[str]) -> None:
    """Names of rows, as many as can be read."""
    step = -(-len(names) // _MOST_LABELS)
    short = [name.removesuffix("/kernel") for name in names]
    axes.set_yticks(range(0, len(names), step), short[::step], fontsize=7)
