"""`kgraft analyze` on files and runs."""

import csv
import json

import keras
import numpy as np
import pytest

from kgraft import models
from tests.apps.test_fit import kgraft  # noqa: F401
from tests.runs.test_peer_counts import finished


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
    assert first["norms"]["0.1"]["invalid_count"] == 4
    assert first["norms_by_baseline"]["0.1"]["invalid_count"] == 2
    shared = {"name": "stage2_block1_conv1/kernel", "both": 2, "either": 4}
    assert told["overlap"] == [
        {
            "networks": ["first.keras", "second.keras"],
            "by_threshold": {"0.1": {"share": 0.5, "layers": [shared]}},
        }
    ]
    # the fourth of seven layers is in the middle third, with the third and fifth: 16 + 2 x 32
    middle = first["depth"]["0.1"][1]
    assert middle == {"layers": 2, "filters": 64, "invalid": 4, "share": 1.0}
    (where,) = [own for own in first["layers"] if own["invalid"]["0.1"]]
    assert where["layer"] == shared["name"] and where["invalid"]["0.1"] == [0, 1, 2, 3]
    assert "100.0% (6.2%)" in out and "│ 4 of 32 │ 0-3 " in out
    assert "first.keras and second.keras │         50.0% │" in out
    assert "│ stage2_block1_conv1 │" in out
    with (tmp_path / "all.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 480
    own = np.array([float(row["l1_norm"]) for row in rows if row["network"] == "first.keras"])
    assert (own < 0.1).sum() == 4 and first["norms"]["0.1"]["valid"] == pytest.approx(
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


def test_norms_are_split_at_every_threshold_given(kgraft, files, tmp_path):  # noqa: F811
    code, out, err = kgraft(
        "analyze", "first.keras", "--threshold", "0.1", "--threshold", "3", "--json", "all.json"
    )
    assert (code, err) == (0, "")
    (own,) = json.loads((tmp_path / "all.json").read_text())["networks"]
    model = keras.models.load_model(tmp_path / "first.keras")
    kernels = [w for layer in model.layers for w in layer.get_weights() if w.ndim == 4]
    norms = np.concatenate([np.abs(kernel).sum(axis=(0, 1, 2)) for kernel in kernels])
    for at in (0.1, 3.0):
        split = own["norms"][f"{at:g}"]
        assert split["valid_count"] == (norms >= at).sum()
        assert split["valid"] == pytest.approx(norms[norms >= at].mean(), rel=1e-5)
        assert split["invalid"] == pytest.approx(norms[norms < at].mean(), rel=1e-4)
        # scale 1, variance 1, epsilon 1e-5: folded norms are the plain ones
        assert split["valid_folded"] == pytest.approx(split["valid"], rel=1e-4)
    assert "valid / invalid at an l1 norm of 3" in out


def grafts(path, epochs=3):
    """Two peers and two layers of a run that still trains; entropy 10 e + k + g / 10."""
    path.mkdir()
    (path / "run.toml").write_text('[run]\nmethod = "graft"\n')
    rows = [
        {
            "epoch": e, "peer": k, "group": f"layer{g}/kernel", "donor": None if e == 2 else 3 - k,
            "information": 10 * e + k + g / 10, "coefficient": None if e == 2 else 0.4 + g / 10,
        }
        for e in range(1, epochs + 1) for k in (1, 2) for g in (0, 1)
    ]  # fmt: skip
    (path / "grafts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_layers_over_epochs_are_told_from_records_alone(kgraft, tmp_path):  # noqa: F811
    grafts(tmp_path / "own")
    code, out, err = kgraft("analyze", "own", "--epochs", "--csv", "all.csv", "--json", "all.json")
    assert (code, err) == (0, "")
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines()]
    assert [row for row in cells if row] == [
        ["1", "1", "2", "11.050", "0.450", "0.400", "0.500"],
        ["1", "2", "1", "12.050", "0.450", "0.400", "0.500"],
        ["2", "1", "none", "21.050", "", "", ""],
        ["2", "2", "none", "22.050", "", "", ""],
        ["3", "1", "2", "31.050", "0.450", "0.400", "0.500"],
        ["3", "2", "1", "32.050", "0.450", "0.400", "0.500"],
    ]
    (told,) = json.loads((tmp_path / "all.json").read_text())["graftings"]
    assert told["information"][2] == [[31, 31.1], [32, 32.1]]
    assert told["coefficients"][1] == [[None, None], [None, None]]
    assert told["donors"] == [[2, 1], [None, None], [2, 1]]
    assert told["layers"] == ["layer0/kernel", "layer1/kernel"]
    assert (told["run"], told["phase"], told["what"]) == ("own", "peers", "entropy, nats")
    with (tmp_path / "all.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12 and rows[-1] == {
        "run": "own", "phase": "peers", "epoch": "3", "peer": "2", "donor": "1",
        "layer": "layer1/kernel", "information": "32.1", "coefficient": "0.5",
    }  # fmt: skip
    (tmp_path / "own/grafts.jsonl").unlink()
    code, _, err = kgraft("analyze", "own", "--epochs")
    assert code == 2 and "own: nothing was grafted, or not yet" in err


def test_of_a_thousand_epochs_a_few_are_shown(kgraft, tmp_path):  # noqa: F811
    grafts(tmp_path / "own", epochs=1000)
    code, out, _ = kgraft("analyze", "own", "--epochs")
    lines = [line.split("│") for line in out.splitlines() if "│" in line]
    epochs = [int(cells[1]) for cells in lines]
    assert code == 0 and len(epochs) == 12 and epochs[0] == 1 and epochs[-1] == 1000


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["nothing.keras"], "nothing.keras: no such file"),
        (["first.keras", "first.keras"], "first.keras: named twice"),
        ([], "Missing argument"),
        (["first.keras", "--threshold", "0"], "0.0 is not in the range"),
        (["first.keras", "--threshold", "1", "--threshold", "1.0"], "threshold 1: given twice"),
        (["first.keras", "--epochs"], "first.keras is no run's directory"),
        (["first.keras", "--by-peers"], "first.keras: neither a run's directory nor a comparison"),
        (["first.keras", "--epochs", "--layers"], "--epochs is told instead of --layers"),
        (["first.keras", "--by-peers", "--epochs"], "--epochs is told instead of --by-peers"),
        (["first.keras", "--answers"], "--answers and --line: expected the directory of a run"),
    ],
)
def test_mistakes_are_told_in_a_line(kgraft, files, given, said):  # noqa: F811
    code, _, err = kgraft("analyze", *given)
    assert code == 2 and said in err and "Traceback" not in err


def test_accuracy_against_peers_is_told_and_drawn(kgraft, tmp_path):  # noqa: F811
    for k, method in ((1, "baseline"), (2, "graft"), (3, "graft")):
        finished(tmp_path / f"run{k}", method, k, accuracy=k / 10, entropy=k * 1.0)
    runs = ("run1", "run2", "run3")
    code, out, err = kgraft(
        "analyze", *runs, "--by-peers", "--csv", "all.csv", "--json", "all.json"
    )
    assert (code, err) == (0, "")
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines()]
    assert [row for row in cells if row] == [
        ["1", "1", "11.00", "", "", ""],
        ["2", "1", "22.00", "90.00", "27.00", "last grafting"],
        ["3", "1", "33.00", "90.00", "30.00", "last grafting"],
    ]
    told = json.loads((tmp_path / "all.json").read_text())
    assert told["figure"] == "accuracy" and [own["count"] for own in told["points"]] == [1, 2, 3]
    with (tmp_path / "all.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[2]["line"] == "graft" and float(rows[2]["best_peer"]) == pytest.approx(0.33)
    assert (rows[2]["entropy"], rows[2]["entropy_from"]) == ("30.0", "last grafting")
    (tmp_path / "run3/summary.json").unlink()
    code, _, err = kgraft("analyze", "run2", "run3", "--by-peers")
    assert code == 2 and "run3: not finished, left out" in err and "no two finished runs" in err
