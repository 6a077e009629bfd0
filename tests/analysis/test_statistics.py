"""Means over seeds and paired intervals, against textbook values."""

import math
import statistics

import pytest

from kgraft.analysis.comparison_table import by_compute, lines, markdown, notes
from kgraft.analysis.statistics import Spread, paired_difference


@pytest.mark.parametrize(
    ("freedom", "expected"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (30, 2.0423)],
)
def test_the_interval_is_as_many_standard_errors_wide_as_the_tables_say(freedom, expected):
    values = [float(k * k) for k in range(freedom + 1)]
    found = paired_difference(values, [0.0] * len(values))
    error = statistics.stdev(values) / len(values) ** 0.5
    assert (found.high - found.mean) / error == pytest.approx(expected, abs=1e-4)
    assert found.mean - found.low == pytest.approx(found.high - found.mean)


def test_a_paired_interval_by_hand():
    # differences 2, 3, 1: mean 2, standard error 1 / sqrt(3), t = 4.3027
    found = paired_difference([3.0, 5.0, 4.0], [1.0, 2.0, 3.0])
    assert (found.mean, found.low, found.high) == pytest.approx((2.0, -0.4841, 4.4841), abs=1e-4)


def test_one_seed_has_no_spread():
    assert Spread.of([0.5]) == Spread(0.5, None, 1)
    assert paired_difference([1.0], [0.5]).low is None


def row(entry, seed, last, trainings=1.0, given=0):
    return {
        "entry": entry,
        "seed": seed,
        "networks": 1,
        "trainings": trainings,
        "given_teachers": given,
        "last": last,
        "best": last,
        "mean_peer": last,
        "uniform_soup": last,
        "ensemble": last,
    }


def test_differences_pair_the_seeds_that_both_have():
    rows = [row("plain", 0, 0.5), row("plain", 1, 0.6), row("new", 1, 0.65), row("new", 2, 0.9)]
    plain, new = lines(rows, ["plain"])
    assert plain.against == {"plain": None}
    assert new.against["plain"].mean == pytest.approx(0.05)
    assert new.last.mean == pytest.approx(0.775)


def test_every_entry_is_compared_with_each_reference_over_the_seeds_that_both_have():
    rows = [row("plain", 0, 0.5), row("plain", 1, 0.6), row("long", 1, 0.7), row("new", 1, 0.75)]
    plain, long, new = lines(rows, ["plain", "long"])
    assert new.against["plain"].mean == pytest.approx(0.15)
    assert new.against["long"].mean == pytest.approx(0.05)
    assert plain.against["long"].mean == pytest.approx(-0.1)
    assert long.against["long"] is None
    text = markdown([plain, long, new], ["plain", "long"], "test")
    assert "against plain (95 % CI) | against long (95 % CI) |" in text
    assert "| new | 1 | 1 | 1 | 75.00 | +15.00 | +5.00 | 75.00 |" in text


def test_lines_are_ordered_by_what_they_cost():
    rows = [row("dear", 0, 0.9, 4.0), row("weak", 0, 0.1), row("plain", 0, 0.5)]
    found = by_compute(lines(rows, ["plain"]))
    assert [[line.name for line in equals] for equals in found] == [["plain", "weak"], ["dear"]]


def test_markdown_has_a_row_an_entry():
    text = markdown(lines([row("plain", 0, 0.5), row("new", 0, 0.6)], ["plain"]), ["plain"], "test")
    assert sum(line.startswith("|") for line in text.splitlines()) == 4
    assert "| new | 1 | 1 | 1 | 60.00 | +10.00 | 60.00 |" in text


def test_a_teacher_whose_training_is_unknown_makes_no_line_equal_to_another():
    rows = [row("plain", 0, 0.5), row("taught", 0, 0.7, given=1), row("x", 0, 0.6, 1 / 3 * 3)]
    found = lines(rows, ["plain"])
    assert [[line.name for line in equals] for equals in by_compute(found)] == [
        ["x", "plain"],
        ["taught"],
    ]
    assert found[1].cells()[2] == "1 + 1 given"
    assert notes(found, ["plain"]) == [
        "trainings: FLOPs x images of all networks that were trained for a line, teachers "
        "included, over those of one network of plain; a given teacher's training, a file's, is "
        "not known."
    ]


def test_how_many_intervals_stand_beside_each_other_is_said_once():
    names = ("plain", "a", "b", "c")
    rows = [row(name, seed, 0.5 + seed / 10) for name in names for seed in (0, 1)]
    found = lines(rows, ["plain"])
    said = "3 comparisons with plain stand beside each other"
    assert sum(note.startswith(said) for note in notes(found, ["plain"])) == 1
    assert markdown(found, ["plain"], "test").count(said) == 1
    assert len(notes(found[:2], ["plain"])) == 1  # one interval: nothing to correct


def test_what_is_not_finite_gives_nothing_finite():
    nan, inf = float("nan"), float("inf")
    for values in ([1.0, nan], [1.0, inf], [nan, nan]):
        found = paired_difference(values, [2.0, 3.0])
        assert all(map(math.isnan, (found.mean, found.low, found.high)))
        spread = Spread.of(values)
        assert math.isnan(spread.mean) and math.isnan(spread.std) and spread.count == 2
    single = paired_difference([inf], [inf])
    assert math.isnan(single.mean) and single.low is None
