"""`kgraft analyze` on files and runs."""

import csv
import json

import numpy as np
import pytest

from kgraft import models
from tests.apps.test_fit import kgraft  # noqa: F401


@pytest.fixture
def files(tmp_path):
    """Two networks; of the first four of 240 filters are dead, of the second two of them."""
    for number, dead in (("first", 4), ("second", 2)):
        model = models.resnet8(input_shape=(8, 8, 1), classes=10)
        layer = model.get_layer("stage2_block1_conv1")
        (kernel,) = layer.get_weights()
        kernel[..., :dead] = 1e-6
        layer.set_weights([kernel])
        model.save(tmp_path / f"{number}.keras")


def test_dead_filters_are_counted_and_compared(kgraft, files, tmp_path):  # noqa: F811
    code, out, err = kgraft(
        "analyze", "first.keras", "second.keras", "--baseline", "second.keras",
        "--layers", "--csv", "all.csv", "--json", "all.json",
    )  # fmt: skip
    assert (code, err) == (0, "")
    told = json.loads((tmp_path / "all.json").read_text())
    first, second = told["networks"]
    assert first["filters"] == 240 and first["invalid"]["0.1"] == pytest.approx(4 / 240)
    assert second["invalid"]["0.1"] == pytest.approx(2 / 240)
    assert first["norms"]["invalid_count"] == 4 and first["norms_by_baseline"]["invalid_count"] == 2
    assert told["overlap"] == [{"networks": ["first.keras", "second.keras"], "overlap": 0.5}]
    assert "first.keras and second.keras │ 50.0%" in out and "stage2_block1_conv1/kernel" in out
    with (tmp_path / "all.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 480
    own = np.array([float(row["l1_norm"]) for row in rows if row["network"] == "first.keras"])
    assert (own < 0.1).sum() == 4 and first["norms"]["valid"] == pytest.approx(
        own[own >= 0.1].mean()
    )


def test_a_runs_peers_count(kgraft, tmp_path):  # noqa: F811
    code, _, err = kgraft(
        "fit", "--peers", "2", "--teachers", "0", "--epochs", "1", "--limit-train", "64",
        "--batch-size", "16", "--out", "own",
    )  # fmt: skip
    assert code == 0, err
    code, out, _ = kgraft("analyze", "own")
    assert code == 0 and "own, peer 1" in out and "own, peer 2" in out
    code, _, err = kgraft("analyze", "own", "--answers", "--baseline", "own", "--json", "all.json")
    assert code == 0, err
    told = json.loads((tmp_path / "all.json").read_text())["answers"]["own"]
    summary = json.loads((tmp_path / "own/summary.json").read_text())
    assert [own["network"] for own in told["networks"]] == ["peer 1", "peer 2", "ensemble"]
    for own, expected in zip(
        told["networks"], [*summary["peers"], summary["ensemble"]], strict=True
    ):
        assert own["accuracy"] == pytest.approx(expected["test_accuracy"])
        assert 0 < own["calibration_error"] < 1
        assert (own["dead_activations"] is None) == (own["network"] == "ensemble")
    assert 0 <= told["disagreement"] <= 1
    assert [own["class"] for own in told["classes"]] == list("0123456789")
    assert {own["above_baseline"] for own in told["classes"]} == {0.0}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["nothing.keras"], "nothing.keras: no such file"),
        (["first.keras", "first.keras"], "first.keras: named twice"),
        ([], "Missing argument"),
        (["first.keras", "--threshold", "0"], "0.0 is not in the range"),
        (["first.keras", "--answers"], "--answers and --line: expected the directory of a run"),
    ],
)
def test_mistakes_are_told_in_a_line(kgraft, files, given, said):  # noqa: F811
    code, _, err = kgraft("analyze", *given)
    assert code == 2 and said in err and "Traceback" not in err
