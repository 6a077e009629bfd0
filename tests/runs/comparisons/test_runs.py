"""Comparisons: what they refuse, what they train, what they read."""

import dataclasses
import json
from pathlib import Path

import pytest

from kgraft import models
from kgraft.errors import UserError
from kgraft.files import only_writer
from kgraft.runs.comparisons.cost import cost, given_teachers
from kgraft.runs.comparisons.file import read_comparison
from kgraft.runs.comparisons.runs import read_results, train_missing
from kgraft.runs.recorder import Silent
from tests.runs.test_photographs import folder

COMMON = """
[comparison]
seeds = [0, 1]
baseline = "plain"

[common.run]
epochs = 1
batch_size = 32
[common.data]
limit_train = 96
limit_test = 40
"""
PLAIN = '[entries.plain]\nrun.method = "baseline"\n'


@pytest.fixture
def written(tmp_path):
    def write(entries, common=COMMON):
        path = tmp_path / "mine.toml"
        path.write_text(common + entries)
        return path

    return write


def test_entries_share_everything_but_their_method(written):
    found = read_comparison(
        written(PLAIN + '[entries."two peers"]\nrun.method = "graft"\npeers.count = 2\n')
    )
    plain, two = found.entries
    assert (plain.config.run.method, plain.config.peers.count, cost(found, plain, never)) == (
        *("baseline", 1),
        1.0,
    )
    assert (two.config.run.method, two.config.peers.count, cost(found, two, never)) == (
        "graft",
        2,
        2.0,
    )
    assert plain.config.run.epochs == two.config.run.epochs == 1


def test_rates_that_are_spread_over_the_peers_belong_to_the_method(written):
    two = '[entries."{name}"]\nrun.method = "graft"\npeers.count = 2\nschedule.spread = {spread}\n'
    entries = two.format(name="slr", spread="false") + two.format(name="dlr", spread="true")
    _, slr, dlr = read_comparison(written(PLAIN + entries)).entries
    assert (slr.config.schedule.spread, dlr.config.schedule.spread) == (False, True)
    with pytest.raises(UserError, match=r"schedule\.name is"):
        read_comparison(written(PLAIN + entries + 'schedule.name = "step"\n'))


def test_a_budget_trains_longer_with_a_schedule_as_much_longer(written):
    entry = '[entries.long]\nrun.method = "baseline"\nbudget = 4\n'
    found = read_comparison(written(PLAIN + entry))
    long = found.entry("long")
    assert (long.config.run.epochs, long.config.schedule.every) == (4, 240)
    assert cost(found, long, never) == 4.0


def never(model):
    raise AssertionError(f"{model}: all networks are alike")


GRAPH = """
[entries.long]
run.method = "baseline"
budget = 4
[entries."four peers"]
run.method = "graft"
peers.count = 4
[entries."by long"]
run.method = "distill"
teachers.files = ["@long"]
[entries."by four"]
run.method = "distill"
teachers.files = ["@four peers"]
[entries."own, longer"]
run.method = "distill"
budget = 3
teachers.model = "resnet8"
[entries.larger]
run.method = "graft+"
peers.count = 2
teachers.count = 3
teachers.model = "resnet20"
teachers.files = ["@long"]
[entries."by all"]
run.method = "distill"
teachers.count = 3
teachers.files = ["@by long", "@long", "given.keras"]
[entries."soup of larger"]
runs_of = "larger"
result = "soup"
"""


def test_a_line_costs_all_networks_that_were_trained_for_it(written):
    """FLOPs an image x epochs, in those of one plain network: 10 a resnet8, 35 a resnet20."""
    found = read_comparison(written(PLAIN + GRAPH))
    flops = {"resnet8": 10, "resnet20": 35}.__getitem__
    costs = {entry.name: cost(found, entry, flops) for entry in found.entries}
    assert costs == {
        "plain": 1.0,
        "long": 4.0,
        "four peers": 4.0,
        "by long": 1.0 + 4.0,  # a teacher trained four times longer
        "by four": 1.0 + 4.0,  # the best peer of four
        "own, longer": 3.0 + 3.0,  # a run's own teacher has the run's epochs
        "larger": 2.0 + 2 * 3.5 + 4.0,
        "by all": 1.0 + (1.0 + 4.0),  # long is there once; a file was there before
        "soup of larger": 13.0,
    }
    given = {entry.name: given_teachers(found, entry) for entry in found.entries}
    assert {name: count for name, count in given.items() if count} == {"by all": 1}


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ("schedule.name = 'step'", "schedule.name is 'cosine' in plain, 'step' in other"),
        ("optimizer.lr = 0.2", "optimizer.lr is 0.1 in plain, 0.2 in other"),
        ("data.limit_train = 50", "data.limit_train is 96 in plain, 50 in other"),
        ("data.validation = 0.2", "data.validation is 0.1 in plain, 0.2 in other"),
        (
            "run.precision = 'tf32'\nrun.method = 'graft'\npeers.count = 2",
            "run.precision is 'float32' in plain, 'tf32' in other",
        ),
        ("run.epochs = 2", "run.epochs is 1 in plain, 2 in other"),
        ("run.metod = 'graft'", "unknown key 'metod'"),
        ("result = 'soop'", "Did you mean 'soup'"),
        ("runs_of = 'plane'", "Did you mean 'plain'"),
        ("budget = 0", "budget = 0"),
        ("runs_of = 'plain'\nrun.seed = 3", "(run): expected only result"),
        ("runs_of = 'later'\n[entries.later]", "comes after it: move 'later' up"),
        ("teachers.files = ['@other']\nrun.method = 'distill'", "'other'] is taught by itself"),
        (
            "runs_of = 'plain'\n[entries.third]\n"
            "run.method = 'distill'\nteachers.files = ['@other']",
            "reads the runs of 'other', which has none of its own: expected 'plain'",
        ),
        ("[entries.'a b']\n[entries.'a-b']", "of 'a b' and 'a-b' would share the directory a-b"),
        ("[entries.'Other']", "of 'other' and 'Other' would share the directory Other"),
        ("[entries.'..']", "'..'] cannot name a directory"),
        ("[entries.'']", "''] cannot name a directory"),
        ("teachers.files = ['@plane']\nrun.method = 'distill'", "Did you mean 'plain'"),
    ],
)
def test_what_makes_a_comparison_unfair_or_unclear_is_refused(written, entry, text):
    with pytest.raises(UserError) as refused:
        read_comparison(written(PLAIN + "[entries.other]\n" + entry + "\n"))
    assert text in str(refused.value)


def test_precisions_of_one_method_may_be_compared(written):
    found = read_comparison(
        written(PLAIN + "[entries.halves]\nrun = {method = 'baseline', precision = 'bfloat16'}\n")
    )
    assert [own.config.run.precision for own in found.entries] == ["float32", "bfloat16"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[comparison]\nseeds = [0, 0]\n", "seeds = [0, 0]"),
        ("[comparison]\nseed = [0]\n", "unknown key 'seed'"),
        ("[entry.x]\n", "unknown table 'entry'"),
        ('[comparison]\nseeds = "0"\n', '[comparison] seeds = "0": expected a list of different'),
        ("", "is empty: expected TOML"),
        ("[comparison]\n", "has no entries"),
        ("entries = 3\n", "entries is a value; expected a table [entries]"),
        ("[common.run]\nseed = 3\n" + PLAIN, "[common] run.seed: a comparison's seeds are"),
        (PLAIN + "run.seed = 3\n", "[entries.'plain'] run.seed: a comparison's seeds are"),
        (PLAIN + "bugdet = 3\n", "unknown key 'bugdet'. Did you mean 'budget'?"),
        (PLAIN + "run2.epochs = 3\n", "unknown key 'run2'. Did you mean 'run'?"),
        ("[common]\nrun = 3\n" + PLAIN, "run is a value; expected a table"),
        ("[comparison]\nbaseline = 'x'\n" + PLAIN, "baseline 'x' is no entry"),
        ("[comparison]\nagainst = ['x']\n" + PLAIN, "against 'x' is no entry"),
        (
            PLAIN + "[entries.c]\nruns_of = 'plain'\nresult = 'committee'\n",
            "[entries.'c'] result = 'committee', and its runs have 0 teachers: expected 2 or more",
        ),
        (
            PLAIN + "[entries.c]\nruns_of = 'plain'\nbudget = 2\n",
            "has settings of its own (budget): expected only result",
        ),
        (
            "[entries.s]\nrun.method = 'distill'\nteachers.files = ['@plain/peers']\n" + PLAIN,
            "reads the runs of 'plain', which comes after it: move 'plain' up",
        ),
        (
            PLAIN + "[entries.s]\nrun.method = 'distill'\nteachers.files = ['@s/peers']\n",
            "is taught by itself: expected another entry",
        ),
        (
            PLAIN + "[entries.s]\nrun.method = 'distill'\nteachers.files = ['@plane/peers']\n",
            "reads the runs of 'plane', which is no entry. Did you mean 'plain'?",
        ),
        ("[comparison]\nagainst = 'x'\n" + PLAIN, 'against = "x": expected a list of entries'),
    ],
)
def test_a_wrong_file_is_told_in_one_line(written, text, message):
    with pytest.raises(UserError) as refused:
        read_comparison(written("", common=text))
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.slow
def test_runs_are_done_once_and_read_many_times(written, tmp_path):
    entries = (
        PLAIN
        + '[entries.two]\nrun.method = "ensemble"\npeers.count = 2\n'
        + '[entries.soup]\nruns_of = "two"\nresult = "soup"\n'
        + '[entries.taught]\nrun.method = "distill"\nteachers.files = ["@plain"]\n'
    )
    comparison = read_comparison(written(entries))
    out, told = tmp_path / "out", []
    train_missing(comparison, out, Silent(), told.append)
    assert len(told) == 6 and all(text.endswith("training") for text in told)
    rows = read_results(comparison, out)
    assert [(row["entry"], row["seed"]) for row in rows] == [
        (name, seed) for name in ("plain", "two", "soup", "taught") for seed in (0, 1)
    ]
    by_name = {(row["entry"], row["seed"]): row for row in rows}
    assert by_name["two", 0]["last"] == by_name["two", 0]["ensemble"]
    assert by_name["soup", 0]["last"] == by_name["two", 0]["uniform_soup"]
    assert (by_name["two", 0]["networks"], by_name["soup", 0]["networks"]) == (2, 1)
    assert by_name["taught", 1]["trainings"] == 2.0  # its teacher is plain's

    marks = {path: path.stat().st_mtime_ns for path in Path(out).rglob("summary.json")}
    (out / "two" / "seed-1" / "summary.json").unlink()
    told.clear()
    train_missing(comparison, out, Silent(), told.append)
    assert [text for text in told if "found" not in text] == ["two, seed 1: going on"]
    again = {path: path.stat().st_mtime_ns for path in Path(out).rglob("summary.json")}
    assert [path.parent.parent.name for path in marks if again[path] != marks[path]] == ["two"]
    moved = out.rename(tmp_path / "moved")
    assert len(read_results(comparison, moved)) == 8  # "@plain" is where plain now lies
    out = moved

    skips = COMMON + "[common.ring]\ntimeout = 5\non_lost_peer = 'skip'\n"
    assert len(read_results(read_comparison(written(entries, skips)), out)) == 8  # is no matter
    file = out / "two" / "seed-0" / "summary.json"
    summary = json.loads(file.read_text())
    file.write_text(json.dumps({**summary, "peers": summary["peers"][1:], "lost": [1]}))
    told.clear()
    train_missing(comparison, out, Silent(), told.append)
    assert "two, seed 0: found, peer 1 was lost on the way, and did not come back" in told
    lost = {(row["entry"], row["seed"]): row.get("lost") for row in read_results(comparison, out)}
    assert {key for key, own in lost.items() if own == [1]} == {("two", 0), ("soup", 0)}

    other = read_comparison(written(entries, COMMON.replace("batch_size = 32", "batch_size = 16")))
    with pytest.raises(UserError, match=r"run\.batch_size = 32, the comparison wants 16"):
        read_results(other, out)
    taught = entries.replace("@plain", "@two")
    with pytest.raises(UserError, match=r"taught.*teachers\.files = .*plain.*wants.*two"):
        read_results(read_comparison(written(taught)), out)


def test_runs_on_photographs_are_read_again(written, tmp_path):
    """What is seen of them is filled in by the run, as padding is."""
    root = folder(tmp_path / "photos", classes=2, train=12, test=4)
    common = COMMON.replace("limit_train = 96\nlimit_test = 40", f'name = "{root}"\nsize = 16')
    common = common.replace("batch_size = 32", "batch_size = 8").replace("[0, 1]", "[0]")
    common += f'directory = "{tmp_path / "known"}"\n'
    comparison = read_comparison(written(PLAIN, common))
    train_missing(comparison, tmp_path / "out", Silent(), lambda text: None)
    assert len(read_results(comparison, tmp_path / "out")) == 1
    other = read_comparison(written(PLAIN, common + "[common.photos]\nresize = 20\n"))
    with pytest.raises(UserError, match=r"photos\.resize = 18, the comparison wants 20"):
        read_results(other, tmp_path / "out")


def test_only_runs_are_removed(written, tmp_path):
    mine = tmp_path / "out" / "plain" / "seed-0" / "thesis.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("years of work")
    with pytest.raises(UserError, match="is not empty"):
        train_missing(read_comparison(written(PLAIN)), tmp_path / "out", Silent(), lambda _: None)
    assert mine.read_text() == "years of work"


def test_results_that_are_not_there_yet_are_left_out(written, tmp_path):
    comparison = read_comparison(written(PLAIN))
    with pytest.raises(UserError, match="no finished run"):
        read_results(comparison, tmp_path / "nothing")


def test_a_larger_teacher_costs_its_flops_on_the_runs_images(written, tmp_path):
    entry = '[entries.taught]\nrun.method = "distill"\nteachers.model = "wrn-10-1"\n'
    comparison = read_comparison(written(PLAIN + entry))
    comparison = dataclasses.replace(comparison, seeds=(0,))
    train_missing(comparison, tmp_path / "out", Silent(), lambda _: None)
    rows = {row["entry"]: row for row in read_results(comparison, tmp_path / "out")}
    small, large = (
        models.flops(models.build(name, input_shape=(8, 8, 1), classes=10))
        for name in ("resnet8", "wrn-10-1")
    )
    assert rows["plain"]["trainings"] == 1.0
    assert rows["taught"]["trainings"] == pytest.approx(1 + large / small)


def test_a_second_process_leaves_a_live_run_alone(written, tmp_path):
    live = tmp_path / "out" / "plain" / "seed-0" / "run.toml"
    live.parent.mkdir(parents=True)
    live.touch()
    with only_writer(tmp_path / "out"), pytest.raises(UserError, match="another process is train"):
        train_missing(read_comparison(written(PLAIN)), tmp_path / "out", Silent(), lambda _: None)
    assert live.is_file()
