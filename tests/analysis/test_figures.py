"""What is drawn, read off the pictures' own objects."""

import sys

import numpy as np
import pytest

from kgraft.analysis import figures
from kgraft.analysis.filters import LayerFilters
from kgraft.errors import UserError


def layer(name, norms):
    return LayerFilters(name, np.array(norms, float), None, 1.0, 9)


LAYERS = [layer("stem/kernel", [0.01, 2.0]), layer("conv/kernel", [0.5, 3.0, 0.05, 4.0])]


def drawn(figure, tmp_path):
    figure.savefig(tmp_path / "own.png")
    assert (tmp_path / "own.png").stat().st_size > 5000
    return figure.axes[0]


def test_a_curve_is_the_mean_of_its_seeds_within_their_band(tmp_path):
    rows = [np.array([0.1, 0.2, 0.3]), np.array([0.3, 0.4, 0.7])]
    axes = drawn(figures.curves({"own": rows}, what="accuracy", percent=True), tmp_path)
    (line,) = axes.lines
    np.testing.assert_allclose(line.get_xydata(), [[1, 20], [2, 30], [3, 50]])
    (band,) = axes.collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert heights.min() == pytest.approx(10) and heights.max() == pytest.approx(70)
    assert axes.get_ylabel() == "accuracy, %" and axes.get_xlabel() == "epoch"


def test_seeds_of_different_lengths_are_drawn_as_far_as_all_go(tmp_path):
    axes = drawn(figures.curves({"own": [np.ones(4), np.ones(2)]}, what="loss"), tmp_path)
    assert len(axes.lines[0].get_xdata()) == 2


def test_many_lines_differ_in_colour_or_style(tmp_path):
    series = {str(k): [np.arange(3.0) + k] for k in range(20)}
    axes = drawn(figures.curves(series, what="loss"), tmp_path)
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == 20


def test_pictures_without_matplotlib_are_refused_in_a_line(monkeypatch):
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.colors"):
        monkeypatch.setitem(sys.modules, name, None)
    series = {"own": [np.arange(3.0)]}
    for draw in (
        lambda: figures.curves(series, what="loss"),
        lambda: figures.layer_map(np.ones((2, 1)), ["a"], np.arange(2), what=""),
        lambda: figures.filter_map(LAYERS),
    ):
        with pytest.raises(UserError, match=r"kgraft\[plots\]"):
            draw()


def test_a_map_has_a_row_a_layer_and_a_column_an_epoch(tmp_path):
    values = np.arange(24.0).reshape(12, 2)
    values[3, 1] = np.nan
    figure = figures.layer_map(values, ["a/kernel", "b/kernel"], np.arange(5, 17), what="nats")
    axes = drawn(figure, tmp_path)
    (image,) = axes.images
    np.testing.assert_array_equal(image.get_array().filled(-1), np.nan_to_num(values.T, nan=-1))
    assert [own.get_text() for own in axes.get_yticklabels()] == ["a", "b"]
    places = dict(zip(axes.get_xticks(), axes.get_xticklabels(), strict=True))
    assert all(int(text.get_text()) == place + 4 for place, text in places.items())


@pytest.mark.parametrize("epochs", [1, 9, 100, 1000])
def test_ticks_of_a_map_do_not_overlap(epochs, tmp_path):
    values = np.random.default_rng(0).uniform(size=(epochs, 3))
    axes = drawn(figures.layer_map(values, "abc", np.arange(epochs) + 1, what=""), tmp_path)
    assert len(axes.get_xticks()) <= 11


def test_invalid_filters_are_black_and_what_is_no_filter_is_white(tmp_path):
    axes = drawn(figures.filter_map(LAYERS, threshold=0.1), tmp_path)
    (image,) = axes.images
    shown = image.to_rgba(image.get_array())
    black = [(0, 0), (1, 2)]
    for row in range(2):
        for column in range(4):
            colour = shown[row, column]
            if row == 0 and column > 1:
                assert colour[3] == 0 or tuple(colour[:3]) == (1, 1, 1)
            else:
                assert (tuple(colour[:3]) == (0, 0, 0)) == ((row, column) in black)


def test_shares_of_invalid_filters_grow_with_the_threshold(tmp_path):
    axes = drawn(figures.threshold_curves({"own": LAYERS}), tmp_path)
    x, y = axes.lines[0].get_xydata().T
    for threshold, share in ((0.02, 1 / 6), (0.1, 2 / 6), (1.0, 3 / 6), (10.0, 1.0)):
        assert y[x < threshold][-1] == pytest.approx(100 * share)


def test_graftings_lie_on_the_curve(tmp_path):
    gaps = np.array([[-0.01, 0.0, 0.02, np.nan]])
    alphas = 0.4 / np.pi * np.arctan(100 * gaps) + 0.5
    axes = drawn(figures.coefficient_curve(gaps, alphas, sharpness=100.0), tmp_path)
    (line,), (points,) = axes.lines, axes.collections
    assert len(points.get_offsets()) == 3
    x, y = line.get_xydata().T
    for gap, alpha in points.get_offsets():
        assert np.interp(gap, x, y) == pytest.approx(alpha, abs=2e-3)


def test_an_interval_that_holds_zero_is_open(tmp_path):
    rows = [
        {"entry": "baseline", "against": {"baseline": None}},
        {"entry": "a", "against": {"baseline": {"mean": 0.01, "ci95": [0.005, 0.015]}}},
        {"entry": "b", "against": {"baseline": {"mean": 0.01, "ci95": [-0.005, 0.025]}}},
        {"entry": "c", "against": {"baseline": {"mean": 0.02, "ci95": [None, None]}}},
    ]
    axes = drawn(figures.differences(rows, baseline="baseline"), tmp_path)
    points = [line for line in axes.lines if line.get_marker() == "o"]
    fills = {float(p.get_ydata()[0]): p.get_markerfacecolor() for p in points}
    assert [own.get_text() for own in axes.get_yticklabels()] == ["c", "b", "a"]
    assert fills[1] == "white" and fills[2] != "white" and fills[0] != "white"
    ends = [line.get_xdata() for line in axes.lines if len(line.get_xdata()) == 2]
    assert any(np.allclose(own, [0.5, 1.5]) for own in ends)
    with pytest.raises(UserError, match="'other'"):
        figures.differences(rows, baseline="other")
