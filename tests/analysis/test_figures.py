"""What is drawn, read off the pictures' own objects."""

import sys
from itertools import pairwise

import numpy as np
import pytest

from kgraft.analysis import figures
from kgraft.analysis.filters import LayerFilters
from kgraft.analysis.peer_counts import RECORDS, WEIGHTS, Point
from kgraft.analysis.peer_figures import accuracy_by_peers, entropy_by_peers
from kgraft.analysis.statistics import Spread
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


def test_of_one_epoch_there_is_a_point_and_one_tick(tmp_path):
    axes = drawn(figures.curves({"own": [np.array([0.5])]}, what="loss"), tmp_path)
    assert axes.get_xticks().tolist() == [1] and axes.lines[0].get_marker() != ""


def test_what_is_not_known_is_left_out_of_a_line(tmp_path):
    rows = [np.array([1.0, np.nan, np.nan])]
    axes = drawn(
        figures.curves({"sick": rows, "none": [np.full(3, np.nan)]}, what="loss"), tmp_path
    )
    assert np.isfinite(axes.lines[0].get_ydata()).tolist() == [True, False, False]


@pytest.mark.parametrize("name", ["own", "a name that is long " * 6, "a-name-without-a-blank" * 6])
def test_names_lie_outside_of_the_axes_which_keep_their_size(name, tmp_path):
    series = {f"{name}{k}": [np.arange(3.0) + k] for k in range(20)}
    figure = figures.curves(series, what="loss")
    axes = drawn(figure, tmp_path)
    (legend,) = [*figure.legends, *filter(None, [axes.get_legend()])]
    box, names = axes.get_window_extent(), legend.get_window_extent()
    assert not box.overlaps(names)
    assert box.width > 5.5 * figure.dpi and box.height > 3 * figure.dpi
    assert names.x1 <= figure.bbox.x1 + 2 * figure.dpi  # what is beyond is saved with it
    assert not axes.xaxis.label.get_window_extent().overlaps(names)


def test_neighbouring_lines_differ_in_colour_style_and_marker(tmp_path):
    series = {str(k): [np.arange(3.0) + k] for k in range(8)}
    axes = drawn(figures.curves(series, what="loss"), tmp_path)
    looks = [(one.get_color(), one.get_linestyle(), one.get_marker()) for one in axes.lines]
    for first, second in pairwise(looks):
        assert all(a != b for a, b in zip(first, second, strict=True))


def test_accuracies_against_peers_have_a_bar_where_there_are_seeds(tmp_path):
    none = Spread(0.0, None, 1)
    points = [
        Point("graft", 1, Spread(0.5, None, 1), none, none, None, ""),
        Point("graft", 2, Spread(0.6, 0.02, 3), none, Spread(0.7, 0.01, 3), None, ""),
    ]
    axes = drawn(accuracy_by_peers(points, what="accuracy"), tmp_path)
    best, together = axes.containers
    np.testing.assert_allclose(best[0].get_xydata(), [[1, 50], [2, 60]], atol=0.04)
    np.testing.assert_allclose(together[0].get_xydata(), [[2, 70]], atol=0.04)
    bars = best[2][0].get_segments()
    assert not len(bars[0])  # of one seed
    np.testing.assert_allclose(bars[1][:, 1], [58, 62])
    assert axes.get_xticks().tolist() == [1, 2] and axes.get_ylabel() == "accuracy, %"
    names = [own.get_text() for own in axes.get_legend().get_texts()]
    assert names == ["graft: best peer", "graft: ensemble"]


def test_entropies_before_the_last_grafting_are_open(tmp_path):
    spread = Spread(0.5, None, 1)
    points = [
        Point("graft", 1, spread, spread, spread, None, ""),
        Point("graft", 2, spread, spread, spread, Spread(12.0, 0.5, 2), WEIGHTS),
        Point("graft", 4, spread, spread, spread, Spread(13.0, 0.25, 2), RECORDS),
    ]
    axes = drawn(entropy_by_peers(points), tmp_path)
    line, *_, marks = axes.lines
    np.testing.assert_allclose(line.get_xydata(), [[2, 12], [4, 13]])
    np.testing.assert_allclose(marks.get_xydata(), [[4, 13]])
    assert marks.get_markerfacecolor() == "white" and "open: before" in axes.get_ylabel()
    assert "open" not in entropy_by_peers(points[:2]).axes[0].get_ylabel()


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


@pytest.mark.parametrize("norms", [[np.nan, 1.0, 0.01], [np.nan] * 3])
def test_filters_of_a_diverged_layer_are_neither_black_nor_none(norms, tmp_path):
    layers = [layer("a/kernel", norms), layer("b/kernel", [np.nan])]
    figure = figures.filter_map(layers)
    axes = drawn(figure, tmp_path)
    (image,) = axes.images
    shown = image.to_rgba(image.get_array())
    np.testing.assert_allclose(shown[0, 0], shown[1, 0])
    assert np.ptp(shown[0, 0, :3]) > 0.2  # a colour
    assert tuple(shown[1, 1, :3]) == (1, 1, 1)  # no filter
    if norms[2] == 0.01:
        assert tuple(shown[0, 2, :3]) == (0, 0, 0)
    assert "not finite" in figure.axes[1].get_ylabel()
    drawn(figures.threshold_curves({"own": layers}), tmp_path)


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
        {
            "entry": "a",
            "trainings": 4.0,
            "against": {"baseline": {"mean": 0.01, "ci95": [0.005, 0.015]}},
        },
        {"entry": "b", "against": {"baseline": {"mean": 0.01, "ci95": [-0.005, 0.025]}}},
        {"entry": "c", "against": {"baseline": {"mean": 0.02, "ci95": [None, None]}}},
    ]
    axes = drawn(figures.differences(rows, baseline="baseline"), tmp_path)
    points = [line for line in axes.lines if line.get_marker() == "o"]
    fills = {float(p.get_ydata()[0]): p.get_markerfacecolor() for p in points}
    assert [own.get_text() for own in axes.get_yticklabels()] == ["c", "b", "a (4 trainings)"]
    assert fills[1] == "white" and fills[2] != "white" and fills[0] != "white"
    ends = [line.get_xdata() for line in axes.lines if len(line.get_xdata()) == 2]
    assert any(np.allclose(own, [0.5, 1.5]) for own in ends)
    with pytest.raises(UserError, match="'other'"):
        figures.differences(rows, baseline="other")


def test_a_line_without_a_number_is_named_so(tmp_path):
    series = {"well": [np.array([1.0, 2.0])], "sick": [np.array([np.inf, np.nan])]}
    axes = drawn(figures.curves(series, what="loss"), tmp_path)
    names = [own.get_text() for own in axes.get_legend().get_texts()]
    assert names == ["well", "sick (not finite)"]


def test_filters_that_are_not_finite_leave_the_others_their_curve(tmp_path):
    well = [LayerFilters("a", np.array([1.0, 4.0]), None, 1.0, 9)]
    sick = [LayerFilters("a", np.array([np.nan, np.nan]), None, np.nan, 9)]
    axes = drawn(figures.threshold_curves({"sick": sick, "well": well}), tmp_path)
    names = [own.get_text() for own in axes.get_legend().get_texts()]
    assert names == ["sick (2 of 2 not finite)", "well"]
    line = next(one for one in axes.lines if one.get_label() == "well")
    assert line.get_xydata()[1:].tolist() == [[1.0, 50.0], [4.0, 100.0]]
