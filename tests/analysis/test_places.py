"""Where invalid filters sit, counted by hand."""

import numpy as np
import pytest

from kgraft.analysis.filters import LayerFilters, overlap
from kgraft.analysis.places import by_depth, ranges, shared_places
from kgraft.errors import UserError

pytestmark = pytest.mark.core


def network(*layers):
    """A layer each, a letter a filter: x for an invalid one."""
    return [
        LayerFilters(f"{k}/kernel", np.array([0.0 if c == "x" else 2.0 for c in own]), None, 1.0, 9)
        for k, own in enumerate(layers)
    ]


def test_depth_is_counted_in_parts_of_as_many_layers():
    found = by_depth(network("xo", "oo", "xx", "xooo", "o"))  # floor(i 3 / 5): 0 0 1 1 2
    assert [part.layers for part in found] == [2, 2, 1]
    assert [part.filters for part in found] == [4, 6, 1]
    assert [part.invalid for part in found] == [1, 3, 0]
    assert [part.share for part in found] == [0.25, 0.75, 0.0]


def test_of_few_layers_each_is_a_part_and_of_valid_ones_none_is_a_share():
    assert [part.invalid for part in by_depth(network("xx", "o"))] == [2, 0]
    assert np.isnan([part.share for part in by_depth(network("o", "o", "o"))]).all()
    assert [part.invalid for part in by_depth(network("xo", "oo"), threshold=3.0)] == [2, 2]


def test_places_that_two_networks_share_are_counted_layer_by_layer():
    own, other = network("xxo", "oo", "x"), network("oxx", "ox", "x")
    found = shared_places(own, other)
    assert [(layer.name, layer.both, layer.either) for layer in found] == [
        ("0/kernel", 1, 3), ("1/kernel", 0, 1), ("2/kernel", 1, 1),
    ]  # fmt: skip
    assert overlap(own, other) == pytest.approx(2 / 5)
    with pytest.raises(UserError, match="one architecture"):
        shared_places(own, other[:2])


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([], ""), ([4], "4"), ([0, 1], "0-1"), ([1, 3, 4, 5, 9], "1, 3-5, 9")],
)
def test_neighbours_are_written_together(numbers, text):
    assert ranges(numbers) == text


def test_filters_that_are_not_finite_are_at_no_depth():
    layers = network("xo", "oxx")
    layers[1].norms[:2] = np.nan
    found = by_depth(layers)
    assert [(part.filters, part.invalid, part.share) for part in found] == [
        (2, 1, 0.5),
        (1, 1, 0.5),
    ]


def test_no_parts_and_no_layers_are_refused():
    with pytest.raises(UserError, match="parts 0: expected 1 or more"):
        by_depth(network("xo"), parts=0)
    with pytest.raises(UserError, match="layers: none"):
        by_depth([])


def test_places_that_are_not_finite_in_either_network_are_not_shared():
    own, other = network("xxxo"), network("xoxx")
    own[0].norms[2], other[0].norms[3] = np.nan, np.inf  # "xx.o" and "xox." remain: "xx", "xo"
    (found,) = shared_places(own, other)
    assert (found.both, found.either) == (1, 2)
    assert overlap(own, other) == 0.5
