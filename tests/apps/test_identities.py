"""Folders of identities on the command line."""

import json
from pathlib import Path

import pytest

from tests.apps.test_fit import kgraft  # noqa: F401
from tests.reference import people

COMPARISON = """
[comparison]
seeds = [0, 1]
baseline = "baseline"

[common.run]
epochs = 1
batch_size = 16

[common.data]
name = "market"
size = 32
validation = 0.125

[entries.baseline]
run.method = "baseline"

[entries."2 peers"]
run.method = "graft"
peers.count = 2
"""


def test_check_counts_identities_and_cameras(kgraft, tmp_path):  # noqa: F811
    people.write(tmp_path / "market", (8, 6, 3, (96, 18, 90), 6, 8), "market1501")
    code, out, err = kgraft("data", "check", "market", "--data-dir", "known")
    assert (code, err) == (0, "")
    assert "market: Market-1501" in out and "other files, passed over: 1" in out
    assert "images 96, identities 8, cameras 3, unreadable 0" in out
    assert "images 18, identities 6, cameras 3, unreadable 0" in out
    assert "images 90, identities 8, cameras 3, junk 6, nobody's 8, unreadable 0" in out
    assert "not as published: 6" in out
    assert "bounding_box_train: 96 images, Market-1501 has 12,936" in out
    (tmp_path / "market/query/0099_c1s1_000001_00.jpg").write_bytes(b"x")
    code, out, _ = kgraft("data", "check", "market", "--data-dir", "known")
    assert code == 1
    assert "queries of which nothing is to be found: 1" in out and "cannot be read: 1" in out


def test_check_of_any_other_folder_asks_for_cameras(kgraft, tmp_path):  # noqa: F811
    for place in ("train/a", "train/b", "query/c", "gallery/c"):
        (tmp_path / "set" / place).mkdir(parents=True)
        for k in (1, 2):
            (tmp_path / "set" / place / f"cam{k}.jpg").write_bytes(people.jpeg(k, k, 1))
    code, out, _ = kgraft("data", "check", "set", "--data-dir", "known")
    assert code == 0 and "set: folders" in out and "│       - │" in out
    code, out, _ = kgraft("data", "check", "set", "--camera", "cam([0-9])", "--data-dir", "known")
    assert code == 0 and "│       2 │" in out
    code, _, err = kgraft("data", "check", "set", "--camera", "cam", "--data-dir", "known")
    assert code == 2 and "has 0 groups" in err


@pytest.mark.slow
def test_runs_and_comparisons_tell_what_is_found(kgraft, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("KGRAFT_DATA", str(tmp_path / "known"))
    people.write(tmp_path / "market", (8, 6, 3, (96, 18, 90), 6, 8), "market1501")
    options = ["--peers", 2, "--teachers", 0, "--epochs", 1, "--batch-size", 16]
    sized = ["--set", "data.size=32", "--set", "data.validation=0.125"]
    code, out, err = kgraft("fit", "--dataset", "market", *options, *sized, "--out", "run")
    assert code == 0, err
    assert "rank-10" in out and "mAP by trapezoids" in out and "mINP" in out
    summary = json.loads(Path("run/summary.json").read_text())
    own = summary["peers"][1]
    code, out, _ = kgraft("evaluate", "run", "--peer", 2)
    assert f"peer 2, mAP: {own['test_mAP']:.2%}" in out
    assert f"peer 2, rank1: {own['test_accuracy']:.2%}" in out
    code, out, _ = kgraft("evaluate", "run", "--peer", 2, "--metric", "euclidean", "--flip")
    assert code == 0 and f"peer 2, mAP: {own['test_mAP']:.2%}" not in out
    code, out, _ = kgraft("select", "run")
    assert code == 0 and "rank-1" in out

    (tmp_path / "mine.toml").write_text(COMPARISON)
    assert kgraft("compare", "mine.toml", "--out", "all")[0] == 0
    code, out, err = kgraft("compare", "mine.toml", "--out", "all")  # read again
    assert code == 0, err
    assert "mAP, %" in out and "rank-1, %" in out
    found = json.loads(Path("all/comparison.json").read_text())
    runs = [json.loads(Path(f"all/baseline/seed-{k}/summary.json").read_text()) for k in (0, 1)]
    for rows, key in ((found["mAP"]["runs"], "test_mAP"), (found["runs"], "test_accuracy")):
        lasts = [row["last"] for row in rows if row["entry"] == "baseline"]
        assert lasts == [run["peers"][0][key] for run in runs]
    text = Path("all/comparison.md").read_text()
    assert "| mAP, last epoch |" in text and "| rank-1, last epoch |" in text


def test_a_run_that_classifies_is_not_searched(kgraft):  # noqa: F811
    options = ["--peers", 1, "--teachers", 0, "--epochs", 1, "--limit-train", 100]
    assert kgraft("fit", *options, "--out", "run")[0] == 0
    code, _, err = kgraft("evaluate", "run", "--rerank")
    assert code == 2 and "its images are classified, and not searched" in err
