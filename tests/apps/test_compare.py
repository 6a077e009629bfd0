"""`kgraft compare`, `kgraft select` and `kgraft bench methods` as a user types them."""

import json

import pytest
from kgraft_cli.main import main

from kgraft.runs.methods import METHODS

COMPARISON = """
[comparison]
seeds = [0, 1]
[common.run]
epochs = 1
batch_size = 32
[common.data]
limit_train = 96
limit_test = 40
[entries.plain]
run.method = "baseline"
[entries."2 peers"]
run.method = "graft"
peers.count = 2
"""


@pytest.fixture
def kgraft(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return left.value.code or 0, printed.out, printed.err

    return run


@pytest.mark.slow
def test_a_comparison_trains_what_is_missing_and_leaves_its_table(kgraft, tmp_path):
    (tmp_path / "mine.toml").write_text(COMPARISON)
    code, out, err = kgraft("compare", "mine.toml", "--seeds", "0")
    assert code == 0, err
    assert "plain, seed 0: training" in out
    code, out, err = kgraft("compare", "mine.toml")
    assert code == 0, err
    assert "plain, seed 0: found" in out and "plain, seed 1: training" in out
    found = json.loads((tmp_path / "runs/mine/comparison.json").read_text())
    assert [entry["entry"] for entry in found["entries"]] == ["plain", "2 peers"]
    assert found["entries"][1]["against"]["plain"]["ci95"][0] is not None
    table = (tmp_path / "runs/mine/comparison.md").read_text().splitlines()
    assert table[0].startswith(
        "| method | networks | trainings | seeds | last epoch | against plain"
    )
    assert table[2].startswith("| plain | 1 | 1 | 2 | ")
    code, out, _ = kgraft("compare", "mine.toml", "--only-read")
    assert code == 0 and "training" not in out.replace("trainings", "")


@pytest.mark.multiprocess
def test_runs_are_trained_side_by_side(kgraft, tmp_path):
    (tmp_path / "mine.toml").write_text(COMPARISON)
    code, out, err = kgraft("compare", "mine.toml", "--seeds", "0", "--jobs", "2")
    assert code == 0, err
    assert "plain, seed 0: trained in" in out and "2 peers, seed 0: trained in" in out
    assert (tmp_path / "runs/mine/comparison.md").is_file()
    code, _, err = kgraft("compare", "mine.toml", "--jobs", "0")
    assert code == 2 and "--jobs" in err


@pytest.mark.slow
def test_a_run_is_selected_from(kgraft, tmp_path):
    small = ("--limit-train", "96", "--limit-test", "40", "--batch-size", "32", "--epochs", "1")
    code, _, err = kgraft("fit", "--method", "papa", "--peers", 2, *small, "--out", "here")
    assert code == 0, err
    code, out, _ = kgraft("select", "here")
    assert code == 0
    for name in ("best peer", "uniform soup", "greedy soup", "ensemble"):
        assert name in out
    assert (tmp_path / "here" / "soup-uniform.keras").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("compare", "no.toml"), "comparison no.toml: no such file"),
        (("compare", "mine.toml", "--seeds", "0,00"), "--seeds 0,00: expected different whole"),
        (("compare", "mine.toml", "--seeds", "²"), "--seeds ²: expected different whole numbers"),
        (("bench", "--peers", "²"), "--peers ²: expected whole numbers above 0"),
        (("select", "nowhere"), "nowhere is no run's directory"),
        (("fit", "--method", "grafting"), "Did you mean 'graft'"),
        (("fit", "--method", "mutual", "--peers", "1"), "expected 2 or more"),
    ],
)
def test_a_mistake_is_told_in_one_line(kgraft, tmp_path, arguments, said):
    (tmp_path / "mine.toml").write_text(COMPARISON)
    code, out, err = kgraft(*arguments)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert said in err


@pytest.mark.slow
def test_the_cost_of_every_method_is_measured(kgraft, tmp_path):
    code, out, err = kgraft(
        *("bench", "methods", "--model", "resnet8", "--peers", 2, "--batch-size", 16),
        *("--steps", 2, "--repeats", 1, "--json", "costs.json"),
    )
    assert code == 0, err
    rows = [json.loads(line) for line in (tmp_path / "costs.json").read_text().splitlines()]
    assert [row["method"] for row in rows] == list(METHODS)
    assert rows[0]["over_baseline"] == 1
    assert all(row["step_seconds"] > 0 for row in rows)
    assert "mutual" in out


def test_the_cost_of_some_methods_is_measured_beside_the_baseline(kgraft, tmp_path):
    options = ("--model", "resnet8", "--peers", 2, "--batch-size", 16, "--steps", 1)
    chosen = ("--contender", "lawa", "--contender", "online", "--repeats", 1)
    code, _, err = kgraft("bench", "methods", *options, *chosen, "--json", "costs.json")
    assert code == 0, err
    rows = [json.loads(line) for line in (tmp_path / "costs.json").read_text().splitlines()]
    assert [row["method"] for row in rows] == ["baseline", "lawa", "online"]
    code, _, err = kgraft("bench", "methods", "--contender", "onlin")
    assert code == 2 and "Did you mean 'online'?" in err
