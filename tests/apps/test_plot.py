"""`kgraft plot` on a run, on one that is not finished, and on a comparison."""

import json
import shutil
import sys

import pytest
from PIL import Image

from kgraft.analysis import figures
from tests.apps.test_fit import kgraft  # noqa: F401
from tests.runs.test_peer_counts import finished

SMALL = ("--teachers", "0", "--epochs", "2", "--limit-train", "64", "--batch-size", "16")


def names(out):
    return [line.rpartition("/")[2] for line in out.splitlines()]


def test_a_run_is_drawn_from_its_records_and_weights(kgraft, tmp_path):  # noqa: F811
    code, _, err = kgraft("fit", "--peers", "2", *SMALL, "--out", "own")
    assert code == 0, err
    code, out, err = kgraft("plot", "own", "-o", "pictures")
    assert (code, err) == (0, "")
    of_peers = [f"{what}-peer-{k}.png" for k in (1, 2) for what in ("alpha", "information")]
    weights = ["filters-peer-1.png", "filters-peer-2.png", "thresholds.png"]
    curves = ["accuracy.png", "loss.png", "held-out-loss.png"]
    assert names(out) == [*curves, *of_peers, "coefficients.png", *weights]
    for name in names(out):
        with Image.open(tmp_path / "pictures" / name) as picture:
            assert min(picture.size) > 200
    shutil.copytree(tmp_path / "own", tmp_path / "other")
    code, out, _ = kgraft("plot", "own", "other", "-o", "both")
    assert code == 0 and "thresholds.png" in names(out)
    assert {"own-thresholds.png", "other-filters-peer-2.png"} <= {*names(out)}
    code, out, _ = kgraft("plot", "own", "other", "-o", "both", "--records-only")
    assert code == 0 and "thresholds.png" not in names(out)
    (tmp_path / "other/peers/peer-2.keras").write_bytes(b"torn")
    code, _, err = kgraft("plot", "other", "-o", "torn")
    assert code == 2 and "peer-2.keras" in err and "--records-only" in err
    (tmp_path / "other/metrics.jsonl").unlink()
    code, _, err = kgraft("plot", "other", "-o", "torn")
    assert code == 2 and "other has no metrics.jsonl" in err
    (tmp_path / "own/summary.json").unlink()  # as of one that still trains
    code, out, _ = kgraft("plot", "own", "-o", "again", "--format", "svg")
    assert code == 0 and names(out) == [
        "accuracy.svg", "loss.svg", "held-out-loss.svg",
        *(own.replace("png", "svg") for own in of_peers),
        "coefficients.svg",
    ]  # fmt: skip


def test_a_comparison_is_drawn_with_its_seeds(kgraft, tmp_path):  # noqa: F811
    runs = tmp_path / "runs"
    for entry in ("baseline", "graft,-2-peers"):
        for seed in (0, 1):
            place = runs / entry / f"seed-{seed}"
            place.mkdir(parents=True)
            rows = [
                {"phase": "peers", "model": 1, "epoch": e, "loss": 1 / e, "val_accuracy": e / 10}
                for e in (1, 2, 3)
            ]
            (place / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = {
        "entries": [
            {"entry": "baseline", "against": {"baseline": None}},
            {
                "entry": "graft, 2 peers",
                "against": {"baseline": {"mean": 0.01, "ci95": [0.0, 0.02]}},
            },
        ]
    }
    (runs / "comparison.json").write_text(json.dumps(told))
    code, out, err = kgraft("plot", "runs", "-o", "pictures")
    assert (code, err) == (0, "")
    assert names(out) == ["accuracy.png", "loss.png", "differences.png"]


def records(path, peers, sick=False):
    path.mkdir()
    rows = [
        {"phase": "peers", "model": k, "epoch": e, "loss": None if sick else k / e}
        for e in (1, 2, 3)
        for k in range(1, peers + 1)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_of_many_runs_each_is_a_line_with_a_band(kgraft, tmp_path, monkeypatch):  # noqa: F811
    drawn = []
    curves = figures.curves
    monkeypatch.setattr(figures, "curves", lambda *a, **k: drawn.append((a, k)) or curves(*a, **k))
    for k in range(8):
        records(tmp_path / f"run{k}", 2)
    code, out, err = kgraft("plot", *(f"run{k}" for k in range(7)), "-o", "pictures")
    assert (code, err, names(out)) == (0, "", ["loss.png"])
    assert len(drawn[-1][0][0]) == 14 and drawn[-1][1]["note"] == ""
    kgraft("plot", *(f"run{k}" for k in range(8)), "-o", "pictures")
    (series,), told = drawn[-1]
    assert [*series] == [f"run{k}" for k in range(8)] and "band" in told["note"]
    assert [own.tolist() for own in series["run3"]] == [[1, 1 / 2, 1 / 3], [2, 1, 2 / 3]]


def test_epochs_without_a_figure_are_drawn_without_a_word(kgraft, tmp_path):  # noqa: F811
    (tmp_path / "runs/a").mkdir(parents=True)
    records(tmp_path / "runs/a/seed-0", 2)
    records(tmp_path / "runs/a/seed-1", 2)
    file = tmp_path / "runs/a/seed-1/metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[4]["loss"] = rows[5]["loss"] = None  # epoch 3, both peers
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "runs/comparison.json").write_text('{"entries": []}')
    code, out, err = kgraft("plot", "runs", "-o", "pictures")
    assert (code, err, names(out)) == (0, "", ["loss.png"])


def test_accuracy_and_entropy_are_drawn_against_peers(kgraft, tmp_path):  # noqa: F811
    for k, method in ((1, "baseline"), (2, "graft"), (3, "graft")):
        finished(tmp_path / f"run{k}", method, k, entropy=k * 1.0)
        (tmp_path / f"run{k}/metrics.jsonl").unlink()
        records(tmp_path / "moved", k)
        (tmp_path / "moved/metrics.jsonl").rename(tmp_path / f"run{k}/metrics.jsonl")
        (tmp_path / "moved").rmdir()
    code, out, err = kgraft("plot", "run1", "run2", "run3", "-o", "pictures", "--records-only")
    assert (code, err) == (0, "")
    assert names(out)[-2:] == ["accuracy-by-peers.png", "entropy-by-peers.png"]


def test_mistakes_are_told_in_a_line(kgraft, tmp_path, monkeypatch):  # noqa: F811
    code, _, err = kgraft("plot", "nothing", "-o", "pictures")
    assert code == 2 and "nothing: neither a run's directory nor a comparison's" in err
    code, _, err = kgraft("plot", "nothing")
    assert code == 2 and "Missing option" in err
    (tmp_path / "own").mkdir()
    (tmp_path / "own/metrics.jsonl").write_text("{\n")
    code, _, err = kgraft("plot", "own", "-o", "pictures")
    assert code == 2 and "line 1: no JSON" in err and not (tmp_path / "pictures").exists()
    row = {"phase": "peers", "model": 1, "epoch": 1, "loss": 1.0, "val_accuracy": 0.5}
    (tmp_path / "own/metrics.jsonl").write_text(json.dumps(row) + "\n")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, _, err = kgraft("plot", "own", "-o", "pictures")
    assert code == 2 and "pip install 'kgraft[plots]'" in err


@pytest.mark.parametrize("kind", ["gif", "PNG"])
def test_other_kinds_of_pictures_are_refused(kgraft, kind):  # noqa: F811
    code, _, err = kgraft("plot", "own", "-o", "pictures", "--format", kind)
    assert code == 2 and "is not one of" in err
