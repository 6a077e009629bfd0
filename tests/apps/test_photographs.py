"""Folders of photographs on the command line."""

import json
import shutil
from pathlib import Path

from tests.apps.test_fit import kgraft  # noqa: F401
from tests.runs.test_photographs import folder


def test_check_says_what_a_folder_is_made_of(kgraft, tmp_path):  # noqa: F811
    root = folder(tmp_path / "set", classes=2, train=6, test=2)
    (root / "notes.txt").write_text("x")
    code, out, err = kgraft("data", "check", "set", "--data-dir", "known")
    assert (code, err) == (0, "")
    assert "set: 2 classes" in out and "20 to 25" in out and "25 to 30" in out
    assert "mean 0." in out and "cannot be read" not in out and "same bytes" not in out

    (root / "train" / "class00" / "bad.jpg").write_bytes(b"hello")
    (root / "train" / "class00" / "notes.txt").write_text("x")
    shutil.copy(root / "train" / "class01" / "train-0.jpg", root / "test" / "class01" / "twin.jpg")
    shutil.copy(root / "train" / "class01" / "train-1.jpg", root / "train" / "class00" / "two.jpg")
    code, out, _ = kgraft("data", "check", "set", "--data-dir", "known")
    assert code == 1
    lines = [line.strip() for line in out.splitlines()]
    assert "cannot be read: 1" in lines
    assert "train/class00/bad.jpg: it is no image that Pillow knows" in lines
    assert "same bytes in training and held out: 1" in lines
    assert "train/class01/train-0.jpg = test/class01/twin.jpg" in lines
    assert "same bytes in two classes: 1" in lines
    assert "other files, passed over: 1" in lines


def test_check_of_what_is_no_set_is_one_line(kgraft, tmp_path):  # noqa: F811
    (tmp_path / "empty").mkdir()
    for place, said in (("nothing", "nothing is no folder"), ("empty", "holds 0 folders")):
        code, _, err = kgraft("data", "check", place)
        assert code == 2 and said in err and err.count("\n") == 1


def test_a_folder_is_a_data_set(kgraft, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("KGRAFT_DATA", str(tmp_path / "known"))
    folder(tmp_path / "set", classes=20, train=4, test=2)
    options = ["--peers", 2, "--teachers", 0, "--epochs", 1, "--batch-size", 16]
    sized = ["--set", "data.size=16", "--set", "photos.memory=1", "--set", "data.validation=0.25"]
    code, out, err = kgraft("fit", "--dataset", "set", *options, *sized, "--out", "run")
    assert code == 0, err
    assert "top 5" in out
    summary = json.loads(Path("run/summary.json").read_text())
    code, out, _ = kgraft("evaluate", "run", "--ensemble")
    best, five = summary["ensemble"]["test_accuracy"], summary["ensemble"]["test_top5"]
    assert out == f"ensemble: {best:.2%}\nensemble, top 5: {five:.2%}\n"
    code, out, err = kgraft("fit", "--dataset", "set", *options, "--set", "photos.aria=1")
    assert code != 0 and "Did you mean 'area'?" in err
