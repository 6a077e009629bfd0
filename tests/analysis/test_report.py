"""A report's parts: points that are kept, bytes of maps, tables, the page around them."""

import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from kgraft.analysis.filters import LayerFilters
from kgraft.analysis.records import Grafts, Metrics
from kgraft.analysis.report import tables
from kgraft.analysis.report.page import Curves, Maps, Page, Part, Picture, drawing, render
from kgraft.analysis.report.thin import CODES, coded, columns, thinned
from kgraft.errors import UserError
from tests.reports.pages import Parsed, images_of, lines_of, plots_of

HOSTILE = "<script>alert(1)</script>"
PNG = "data:image/png;base64,iVBORw=="
WORSE = "</script><img src=x onerror=alert(1)>&\"'{{ 7*7 }}<!--"


@given(
    arrays.arrays(float, st.integers(1, 300), elements=st.floats(-1e6, 1e6) | st.just(np.nan)),
    st.integers(4, 60),
)
def test_a_thinned_line_keeps_its_ends_and_its_extremes(values, most):
    kept = thinned(values, most)
    assert len(kept) <= max(most, 4) and kept[0] == 0 and kept[-1] == len(values) - 1
    assert (np.diff(kept) > 0).all()
    if np.isfinite(values).any():
        assert np.nanmin(values[kept]) == np.nanmin(values)
        assert np.nanmax(values[kept]) == np.nanmax(values)


def test_every_peak_of_a_thinned_line_stays():
    values = np.zeros(1000)
    values[[17, 333, 334, 998]] = [5.0, -7.0, 8.0, 3.0]
    assert {17, 333, 334, 998} <= set(thinned(values, 300).tolist())


def test_columns_are_at_even_distances_and_end_with_the_last():
    kept = columns(1000, 333)
    assert len(kept) == 333 and kept[0] == 0 and kept[-1] == 999
    assert set(np.diff(kept).tolist()) == {3, 4}
    assert columns(3, 1000).tolist() == [0, 1, 2] and columns(1, 1000).tolist() == [0]


def test_codes_of_a_map_are_within_half_a_step():
    values = np.random.default_rng(0).uniform(1.0, 3.0, (50, 7))
    values[3, 4] = np.nan
    codes = coded(values, 1.0, 3.0)
    assert codes.dtype == np.uint8 and codes[3, 4] == CODES
    back = 1.0 + codes * 2.0 / 254
    assert np.nanmax(np.abs(np.where(codes == CODES, np.nan, back) - values)) <= 1 / 254 + 1e-12
    assert coded(np.array([2.0, 2.0]), 2.0, 2.0).tolist() == [0, 0]


def metrics(**values):
    given = {name: np.asarray(own, float) for name, own in values.items()}
    epochs, models = next(iter(given.values())).shape
    return Metrics(np.arange(1, epochs + 1), np.arange(1, models + 1), given)


def test_the_last_epoch_and_the_highest_one_are_told():
    peers = metrics(loss=[[3, 4], [1, np.nan]], val_accuracy=[[0.5, 0.25], [0.25, 0.125]])
    table = tables.last_epochs({"teacher 1": metrics(loss=[[9.0]]), "peers": peers})
    assert table.header[:4] == ("network", "epoch", "loss", "val_accuracy, %")
    assert table.rows == (
        ("teacher 1", "1", "9.0000", "", ""),
        ("peer 1", "2", "1.0000", "25.00", "50.00 (epoch 1)"),
        ("peer 2", "2", "nan", "12.50", "25.00 (epoch 1)"),
    )


def test_invalid_filters_are_shares_of_all_layers():
    layers = [
        LayerFilters("a/kernel", np.array([0.00005, 0.5, 2.0]), None, 1.0, 9),
        LayerFilters("b/kernel", np.array([0.05, 0.07]), np.array([0.2, 0.01]), 0.5, 9),
    ]
    (row,) = tables.filters({"peer 1": layers}).rows
    # below 0.0001, 0.001, 0.01, 0.1, 1
    assert row[:7] == ("peer 1", "5", "20.00", "20.00", "20.00", "60.00", "80.00")
    assert row[7] == "50.00"  # of the two that batch normalisation scales
    assert row[9] == "1.5000"
    layers[1] = LayerFilters("b/kernel", np.array([0.05, np.nan]), np.array([0.2, np.nan]), 0.5, 9)
    told = tables.filters({"peer 1": layers}, 3.0)
    assert told.header[7:9] == ("l1 norm below 3, %", "folded below 3, %")
    assert told.rows[0][1] == "5 (1 not finite)" and told.rows[0][7:9] == ("100.00", "100.00")
    layers[1] = LayerFilters("b/kernel", np.array([0.05, 0.07]), None, 0.5, 9)
    by_layer = tables.invalid_by_layer({"peer 1": layers, "peer 2": layers}, 0.1)
    assert by_layer.rows == (("a", "3", "1", "1"), ("b", "2", "2", "2"))


def test_only_settings_that_differ_are_told():
    runs = {"a": {"run.epochs": "3", "run.seed": "0"}, "b": {"run.epochs": "3", "run.seed": "1"}}
    table = tables.changes(runs, "settings")
    assert table.header == ("", "a", "b") and table.rows == (("run.seed", "0", "1"),)
    runs["b"] |= {"run.seed": "0", "graft.every": "2"}
    assert tables.changes(runs, "settings").rows == (("graft.every", "", "2"),)
    assert tables.changes({"a": {"x": "1"}, "b": {"x": "1"}}, "settings") is None


def test_json_is_told_by_dotted_keys():
    found = {"a": {"b": [1, 2]}, "c": None, "d": [{"e": "x"}]}
    assert tables.flat(found) == {"a.b": "1, 2", "c": "", "d.1.e": "x"}


def test_an_interval_has_its_place_between_the_outermost_ends():
    forest = tables.Forest(
        "baseline", (tables.Interval("a", 1.0, -2.0, 4.0), tables.Interval("b", 6.0, None, None))
    )
    assert [forest.at(value) for value in (-2.0, 6.0, 2.0)] == ["8.0", "232.0", "120.0"]
    assert [own.holds_zero for own in forest.rows] == [True, False]
    assert [own.text for own in forest.rows] == ["+1.00 (-2.00 to +4.00)", "+6.00"]


def page(name="own", **changes):
    drawn = drawing()
    epochs = np.arange(1, 5)
    lines = [
        drawn.Line(0, f"{name}, peer 1", epochs, np.array([0.1, 0.2, np.nan, 0.4])),
        drawn.Line(1, f"{name}, peer 2", epochs, np.array([0.4, 0.3, 0.2, 0.1])),
    ]
    values = np.linspace(1.0, 2.0, 4 * 2 * 3).reshape(4, 2, 3)
    layers = ("a/kernel", f"{name}/kernel", "c/kernel")
    grafts = Grafts(epochs, np.array([1, 2]), layers, values, values / 4, np.ones((4, 2), int))
    told = {
        "title": name,
        "made": "now",
        "summary": tables.Table(name, ("", name), ((name, name),)),
        "findings": [name],
        "changes": tables.Table("changes", ("", name), ((name, name),), words=True),
        "results": [Part(name, notes=[name])],
        "curves": Curves(
            "Curves",
            [line.name for line in lines],
            [drawn.Plot.of("val_accuracy", "curves-0", lines)],
        ),
        "maps": [Maps(name, grafts, [drawn.Map("map-0", name, name, values, epochs, layers)])],
        "filters": [Part(name, notes=[name], pictures=[Picture(name, b"\x89PNG")])],
        "settings": {name: name},
        "environment": tables.Table("environment", ("", name), ((name, name),), words=True),
    }
    return Page(**{**told, **changes})


def test_the_lines_of_a_page_are_those_given():
    document = plots_of(Parsed(render(page())))
    lines = lines_of(document, "curves-0")
    assert list(lines) == ["own, peer 1", "own, peer 2"]
    for x, _ in lines.values():
        assert x.tolist() == [1, 2, 3, 4]
    np.testing.assert_allclose(lines["own, peer 1"][1], [10, 20, np.nan, 40])
    np.testing.assert_allclose(lines["own, peer 2"][1], [40, 30, 20, 10])


def test_a_map_of_a_page_has_a_row_a_layer_from_the_top_and_a_column_an_epoch():
    document = plots_of(Parsed(render(page())))
    first, second = images_of(document, "map-0")
    values = np.linspace(1.0, 2.0, 4 * 2 * 3).reshape(4, 2, 3)
    for k, (image, place) in enumerate((first, second)):
        assert image.shape == (3, 4)
        np.testing.assert_allclose(1 + image / 254, values[:, k].T, atol=0.5 / 254)
        assert place == {"x": 0.5, "y": -0.5, "dw": 4.0, "dh": 3}
    plot = document.get_model_by_name("map-0")
    assert (plot.y_range.start, plot.y_range.end) == (2.5, -0.5)
    assert [own.visible for own in plot.renderers] == [True, False]


@pytest.mark.parametrize("name", [HOSTILE, WORSE])
def test_whatever_stands_in_a_file_is_shown_as_text(name):
    html = render(page(name))
    parsed = Parsed(html)
    kinds = {kind for kind, _ in parsed.elements}
    assert not {"iframe", "object", "embed"} & kinds
    assert [told["src"] for kind, told in parsed.elements if kind == "img"] == [PNG]
    assert len([kind for kind, _ in parsed.elements if kind == "script"]) == 3
    assert not [key for _, told in parsed.elements for key in told if key.startswith("on")]
    assert parsed.text.count(" ".join(name.split())) >= 10
    assert f"{name}, peer 1" in lines_of(plots_of(parsed), "curves-0")


def test_a_page_asks_for_nothing():
    parsed = Parsed(render(page()))
    assert all(own.startswith(("#", "data:,")) or own == PNG for own in parsed.addresses())
    assert not any("url(" in style or "@import" in style for style in parsed.styles)
    names = {told["id"] for _, told in parsed.elements if "id" in told}
    assert {own[1:] for own in parsed.addresses() if own.startswith("#")} <= names


def test_a_page_can_be_read_aloud():
    parsed = Parsed(render(page()))
    assert ("html", {"lang": "en"}) in parsed.elements
    viewport = [told for kind, told in parsed.elements if told.get("name") == "viewport"]
    assert viewport == [{"name": "viewport", "content": "width=device-width, initial-scale=1"}]
    levels = parsed.levels()
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(later <= level + 1 for level, later in pairwise(levels))
    ids = [told["id"] for _, told in parsed.elements if "id" in told]
    assert len(ids) == len(set(ids))
    pictures = [told for _, told in parsed.elements if told.get("role") == "img"]
    assert len(pictures) == 2 and all("aria-label" in told for told in pictures)


def test_parts_that_are_missing_are_left_out():
    nothing = Page(title="own", made="now", summary=None)
    parsed = Parsed(render(nothing))
    assert parsed.levels() == [1, 2]
    assert plots_of(parsed).roots == []


@pytest.mark.parametrize("values", [[0.5], [np.nan, 0.5], [0.25, 0.25, 0.25]])
def test_lines_of_one_point_are_marked(values):
    drawn = drawing()
    line = drawn.Line(0, "own", np.arange(1, len(values) + 1), np.array(values))
    (figure,) = drawn.curves([drawn.Plot.of("loss", "curves-0", [line])], 100)
    assert {type(own.glyph).__name__ for own in figure.renderers} == {"Line", "Scatter"}
    assert figure.x_range.start < 1 < figure.x_range.end


def test_lines_differ_in_colour_or_style():
    drawn = drawing()
    assert len({drawn.Look.of(place) for place in range(28)}) == 28


def test_a_report_without_bokeh_is_refused_in_a_line(monkeypatch):
    for name in [own for own in sys.modules if own.partition(".")[0] == "bokeh"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "kgraft.analysis.report.drawn", raising=False)
    monkeypatch.delattr("kgraft.analysis.report.drawn", raising=False)
    monkeypatch.setitem(sys.modules, "bokeh", None)
    with pytest.raises(UserError, match=r"a report needs bokeh: pip install 'kgraft\[plots\]'"):
        drawing()
