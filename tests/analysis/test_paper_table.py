"""A paper's table from runs' rows, against figures by hand."""

import pytest

from kgraft.analysis.paper_table import (
    ACCURACY,
    Wanted,
    accuracy_cells,
    by_network,
    filter_cells,
    filter_columns,
    lines,
    markdown,
)


def wanted(entry, *, network="A", published=None, base=None, part="slr"):
    return Wanted(
        "S", network, "tiny", entry, part, "plain", {} if published is None else published, base, 2
    )


def row(entry, seed, last, *, network="A", part="slr", **more):
    return {
        "set": "S",
        "network": network,
        "part": part,
        "entry": entry,
        "seed": seed,
        "last": last,
        "trainings": 2.0,
        **more,
    }


PLAIN = wanted("plain", published={"accuracy": 90.0})
GRAFT = wanted("graft", published={"accuracy": 91.5}, base=90.0)


def cells(line, **options):
    return dict(zip(ACCURACY, accuracy_cells(line, **({"same": False} | options)), strict=True))


def test_gains_are_paired_by_seed_and_stand_beside_the_published_ones():
    rows = [row("plain", 0, 0.5), row("plain", 1, 0.7), row("graft", 0, 0.54)]
    rows += [row("graft", 1, 0.72), row("graft", 2, 0.99)]  # seed 2 has no baseline
    plain, graft = map(cells, lines([PLAIN, GRAFT], rows))
    assert plain["ours, %"] == "60.00 ± 14.14" and plain["gain (95 % CI)"] == ""
    assert (plain["published"], plain["published gain"]) == ("90.00", "")
    # 4 and 2 points: mean 3, standard error 1, t of one degree of freedom 12.706
    assert graft["gain (95 % CI)"] == "+3.00 (-9.71 to +15.71)"
    assert (graft["published gain"], graft["gain less published"]) == ("+1.50", "+1.50")
    assert graft["seeds"] == "3" and graft["trainings"] == "2"


def test_ours_less_the_published_accuracy_is_told_of_equal_trainings_alone():
    (line,) = lines([PLAIN], [row("plain", 0, 0.895)])
    assert cells(line)["ours, %"] == "89.50"
    assert cells(line, same=True)["ours, %"] == "89.50 (-0.50)"


def test_what_was_not_run_is_said():
    (line,) = lines([GRAFT], [row("graft", 0, 0.5, part="dlr"), row("graft", 0, 0.5, network="B")])
    told = cells(line, same=True)
    assert told["ours, %"] == "not run" and told["published"] == "91.50"
    assert told["gain less published"] == told["seeds"] == ""


def test_filters_stand_beside_published_counts_and_norms():
    own = wanted("graft", published={"0.1": [3, 12]})
    found = {"invalid": {"0.1": 0.25, "0.01": 0.0}, "entropy": 10.04, "norms": {}}
    other = {"invalid": {"0.1": 0.35, "0.01": 0.0}, "entropy": 12.0, "norms": {}}
    rows = [row("graft", 0, 0.5, filters=found), row("graft", 1, 0.5, filters=other)]
    bounds = ["0.1", "0.01"]
    columns = filter_columns("invalid", bounds)
    assert columns[4:6] == ["invalid at 0.1, %", "published: invalid at 0.1, %"]
    told = filter_cells("invalid", own, rows, bounds)
    assert told[3:] == ["2", "30.00 ± 7.07", "25.00", "0.00 ± 0.00", ""]
    assert filter_cells("entropy", own, rows, ())[3:] == ["2", "11.0 ± 1.4"]
    norms = {"0.1": {"valid": 4.0, "invalid": None, "counts": [3, 0]}}
    rows = [row("graft", 0, 0.5, filters={**found, "norms": norms})]
    own = wanted("graft", published={"0.1": [12.086, 0.001]})
    assert filter_cells("norms", own, rows, ["0.1"])[3:] == [
        *("1 of 2", "4.000", "12.086", "", "0.001"),
    ]
    assert filter_cells("norms", own, [], ["0.1"])[3] == "not run"


def test_columns_that_nothing_stands_in_are_left_out_of_markdown():
    told = markdown(["a|<b>", "c", "d"], [["1", "", "x"], ["2", "", ""]])
    assert told == "| a\\|&lt;b> | d |\n| --- | --- |\n| 1 | x |\n| 2 |  |\n"


def test_a_row_an_entry_and_a_column_a_network():
    own = [PLAIN, GRAFT, wanted("plain", network="B")]
    columns, rows = by_network(lines(own, [row("plain", 0, 0.5)]), lambda line: line.wanted.network)
    assert columns == ["", "A", "B"]
    assert rows == [["plain", "A", "B"], ["graft", "A", ""]]


@pytest.mark.parametrize("entry", ["plain", "graft"])
def test_a_published_baseline_has_no_gain_on_itself(entry):
    own = {"plain": PLAIN, "graft": GRAFT}[entry]
    (line,) = lines([own], [])
    assert line.published_gain == (None if entry == "plain" else 1.5)
