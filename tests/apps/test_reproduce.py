"""`kgraft reproduce` as a user types it."""

import json
import shutil
import sys

import pytest
from kgraft_cli.main import main

TABLE = """
[table]
title = "One network and two"
source = "nobody, table 1"
shows = ["accuracy", "invalid", "norms", "entropy"]
baseline = "plain"
[common]
data.limit_train = 96
data.limit_test = 40
[full]
about = "as in the paper"
run.epochs = 2
[small]
about = "a stand-in"
seeds = [0]
run.epochs = 1
[sets.Digits]
data.name = "digits"
[sets."CIFAR-10"]
data.name = "cifar10"
[networks.A]
model.name = "resnet8"
[parts.all]
schedule.name = "constant"
[parts.all.entries.plain]
run.method = "baseline"
[parts.all.entries."two, grafted"]
run.method = "graft"
peers.count = 2
[published.Digits.A]
plain = 90.0
"two, grafted" = { accuracy = 91.5, "0.1" = [12.0, 0.5] }
"""


@pytest.fixture
def kgraft(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text(TABLE)

    def run(*arguments):
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return left.value.code or 0, printed.out, printed.err

    return run


@pytest.mark.slow
def test_a_table_is_trained_once_and_kept(kgraft, tmp_path):
    code, out, err = kgraft("reproduce", "mine.toml", "--data-dir", ".")
    assert code == 0, err
    assert "SMALL BUDGET, not the paper's experiment: a stand-in" in out
    assert "Digits, A: two, grafted, seed 0: training" in out
    assert "not run: CIFAR-10 is not prepared (kgraft data prepare cifar10)" in out
    assert "2 of 4 lines were not run" in out
    kept = tmp_path / "runs/reproduce/mine.small.results.jsonl"
    rows = [json.loads(line) for line in kept.read_text().splitlines()]
    assert [(row["set"], row["entry"], row["seed"]) for row in rows] == [
        ("Digits", "plain", 0),
        ("Digits", "two, grafted", 0),
    ]
    own = tmp_path / "runs/reproduce/small/digits-a-all/two,-grafted/seed-0"
    summary = json.loads((own / "summary.json").read_text())
    assert rows[1]["last"] in [peer["test_accuracy"] for peer in summary["peers"]]
    gain = 100 * (rows[1]["last"] - rows[0]["last"])
    assert f"{gain:+.2f}" in (tmp_path / "runs/reproduce/mine.small.md").read_text()
    assert f"{gain - 1.5:+.2f}" in out
    before = (own / "summary.json").stat().st_mtime_ns
    code, out, err = kgraft("reproduce", "mine.toml", "--data-dir", ".")
    assert code == 0 and "plain, seed 0: found" in out, err
    assert (own / "summary.json").stat().st_mtime_ns == before
    code, out, err = kgraft("reproduce", "mine.toml", "--data-dir", ".", "--only-read")
    assert code == 0 and "found" not in out, err
    code, out, err = kgraft("reproduce", "mine.toml", "--seeds", 2, "--jobs", 2, "--data-dir", ".")
    assert code == 0 and "Digits, A: plain, seed 1: trained in" in out, err
    assert len(kept.read_text().splitlines()) == 4
    only = ("--only", "Digits", "--seeds", 3, "--only-read")
    code, out, err = kgraft("reproduce", "mine.toml", *only)  # whatever is shown, all is kept
    assert code == 0 and "2 of 3" in out and "CIFAR-10" not in out, err
    assert len(kept.read_text().splitlines()) == 4
    assert "## CIFAR-10, accuracy" in kept.with_name("mine.small.md").read_text()
    shutil.rmtree(own)  # of the second method's seed 0: its line stays
    code, out, err = kgraft("reproduce", "mine.toml", "--only-read")
    assert code == 0, err
    lines = [json.loads(line) for line in kept.read_text().splitlines()]
    assert len(lines) == 4 and rows[1] in lines
    code, out, err = kgraft("reproduce", "mine.toml", "--only-read", "--out", "new")
    assert code == 0 and "4 of 4 lines were not run" in out, err


def test_pictures_are_linked_and_may_be_missing(kgraft, tmp_path, monkeypatch):
    drawn = TABLE.replace(
        'baseline = "plain"', 'baseline = "plain"\npictures = ["curves", "filters"]'
    )
    (tmp_path / "mine.toml").write_text(drawn)
    only = ("--only", "Digits", "--data-dir", ".")
    code, out, err = kgraft("reproduce", "mine.toml", *only)
    assert code == 0, err
    told = (tmp_path / "runs/reproduce/mine.small.md").read_text()
    (curves,) = [line for line in told.splitlines() if line.startswith("![Digits-A-curves]")]
    file = tmp_path / "runs/reproduce" / curves.partition("(")[2].rstrip(")")
    assert file.is_file() and "of the first seed" in out
    assert "runs/reproduce/mine.small/Digits-A-curves.png" in out.splitlines()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, out, err = kgraft("reproduce", "mine.toml", *only, "--only-read")
    assert code == 0 and "no pictures: " in out and "kgraft[plots]" in out, err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("fg-table5",), "no table is called 'fg-table5'. Did you mean 'fg-table-5'?"),
        (("no.toml",), "table no.toml: no such file"),
        (("quickstart",), "no table is called 'quickstart'. kgraft reproduce lists them."),
        (("mine.toml", "--only", "Cats"), "--only Cats: no set or network of mine"),
        (
            ("mine.toml", "--only", "CIFAR-10", "--data-dir", "."),
            "none of its image sets is prepared in . (CIFAR-10: kgraft data prepare cifar10)",
        ),
        (("mine.toml", "--seeds", "0"), "--seeds"),
        (("mine.toml", "--budget", "large"), "'large' is not one of 'full', 'small'"),
    ],
)
def test_a_mistake_is_told_in_one_line(kgraft, arguments, said):
    code, out, err = kgraft("reproduce", *arguments)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert said in err


def test_tables_are_listed_with_all_their_names(kgraft):
    code, out, _ = kgraft("reproduce")
    assert code == 0 and "fg-peers, fg-figure-7\n" in out and "2 CPU" in out


def test_a_table_is_no_comparison(kgraft):
    code, _, err = kgraft("compare", "tables/fg-table-5")
    assert code == 2 and "is a table: kgraft reproduce tables/fg-table-5" in err
