"""`kgraft analyze` on files and runs."""

import csv
import json

import h5py
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
    code, out, err = kgraft(
        "analyze", "own", "--answers", "--baseline", "own", "--json", "all.json"
    )
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
    together = told["networks"][-1]
    assert told["baseline"] == {
        "accuracy": together["accuracy"],
        "calibration_error": together["calibration_error"],
        "peers": 2,
    }
    assert "baseline, 2 peers together" in out
    assert "accuracy of all peers together" in " ".join(out.split())
    code, out, err = kgraft("analyze", "own", "--line", "2", "1", "--json", "all.json")
    assert code == 0 and "own: from peer 2 to peer 1; barrier" in " ".join(out.split()), err
    assert json.loads((tmp_path / "all.json").read_text())["lines"]["own"]["peers"] == [2, 1]
    code, _, err = kgraft("analyze", "own", "--line", "1", "9")
    assert code == 2 and "--line 1 9: the run in own has peers 1..2." in err


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
    assert "folded: 0.1" in out


def test_thresholds_that_are_asked_for_reach_every_table(kgraft, files, tmp_path):  # noqa: F811
    code, out, err = kgraft(
        "analyze", "first.keras", "--threshold", "3", "--threshold", "0.1", "--layers",
        "--json", "all.json",
    )  # fmt: skip
    assert (code, err) == (0, "")
    (own,) = json.loads((tmp_path / "all.json").read_text())["networks"]
    model = keras.models.load_model(tmp_path / "first.keras")
    kernels = [w for layer in model.layers for w in layer.get_weights() if w.ndim == 4]
    norms = np.concatenate([np.abs(kernel).sum(axis=(0, 1, 2)) for kernel in kernels])
    share = f"{(norms < 3).mean():.1%}"
    (head,) = [line for line in out.splitlines() if "< 3" in line]
    row = next(line for line in out.splitlines() if line.startswith("│ first.keras"))
    cells = {
        name.strip(): cell.strip()
        for name, cell in zip(head.split("┃")[1:-1], row.split("│")[1:-1], strict=True)
    }
    assert cells["< 3"] == cells["folded"] == share and cells["< 0.1"] == "1.7%"  # 4 / 240
    assert "folded: 3" in out and "not finite" not in out and own["not_finite"] == 0
    for at in ("3", "0.1"):
        assert f"layers of first.keras: filters invalid at {at}," in out


def test_filters_that_are_not_finite_are_counted_by_themselves(kgraft, tmp_path):  # noqa: F811
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(4, 3, name="own")])
    for name, sick in (("some", 1), ("all", 4)):
        kernel = np.ones((3, 3, 1, 4), "float32")
        kernel[..., 3], kernel[..., :sick] = 0.0, np.nan
        model.set_weights([kernel, np.zeros(4)])
        model.save(tmp_path / f"{name}.keras")
    code, out, err = kgraft(
        "analyze", "some.keras", "all.keras", "--layers", "--json", "all.json"
    )  # fmt: skip
    assert (code, err) == (0, "")
    told = json.loads((tmp_path / "all.json").read_text())
    some, every = told["networks"]
    assert (some["not_finite"], every["not_finite"]) == (1, 4)
    assert some["invalid"]["0.1"] == pytest.approx(1 / 3)
    assert {*every["invalid"].values()} == {None}
    assert (some["norms"]["0.1"]["valid_count"], some["norms"]["0.1"]["valid"]) == (2, 9.0)
    assert (every["norms"]["0.1"]["valid_count"], every["norms"]["0.1"]["valid"]) == (0, None)
    assert some["layers"][0]["not_finite"] == [0] and some["layers"][0]["mean_norm"] == 6.0
    assert every["layers"][0]["mean_norm"] is None
    assert told["overlap"][0]["by_threshold"]["0.1"]["share"] is None
    assert "1 of 4" in out and "4 of 4" in out and "33.3%" in out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines()]
    assert ["own", "1 of 4", "3", "1", "6.000", ""] in rows
    assert ["own", "0 of 4", "", "4", "", ""] in rows


def test_as_many_filters_are_named_as_the_terminal_has_room_for(
    kgraft, tmp_path, monkeypatch  # noqa: F811
):  # fmt: skip
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(99, 3, name="own")])
    kernel = np.ones((3, 3, 1, 99), "float32")
    kernel[..., ::2] = 0.0
    model.set_weights([kernel, np.zeros(99)])
    model.save(tmp_path / "own.keras")
    whole = ", ".join(map(str, range(0, 99, 2)))
    for width, shown in ((300, whole), (100, None), (80, None)):
        monkeypatch.setenv("COLUMNS", str(width))
        _, out, _ = kgraft("analyze", "own.keras", "--layers")
        (line,) = [line for line in out.splitlines() if line.startswith("│ own  ")]
        cell = line.split("│")[3].strip()
        assert len(line) <= width
        if shown is None:
            assert cell.endswith(", ...") and whole.startswith(cell.removesuffix(", ..."))
            assert len(line) > width - 5  # no place is left empty
        else:
            assert cell == shown


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
    with (tmp_path / "own/grafts.jsonl").open("a") as file:  # an epoch that is being written
        row = {"epoch": 4, "peer": 1, "group": "layer0/kernel", "donor": 2, "information": 1.0}
        file.write(json.dumps({**row, "coefficient": 0.5}) + '\n{"epoch": 4, "pe')
    _, more, _ = kgraft("analyze", "own", "--epochs")
    assert more == out
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
        (["first.keras", "--threshold", "nan"], "nan is no finite number"),
        (["first.keras", "--threshold", "inf"], "inf is no finite number"),
        (
            ["first.keras", "--epochs", "--threshold", "1"],
            "--epochs is told instead of --threshold",
        ),
        (["first.keras", "--by-peers", "--data-dir", "x"], "--by-peers is told instead of --data"),
        (["none.keras"], "none.keras: model 'empty' has no filters: no kernel"),
        (["old.h5"], "it is an HDF5 file; expected a .keras file"),
        (["broken.keras"], "empty, cut off or damaged; expected a .keras file"),
        (["first.keras", "--threshold", "1", "--threshold", "1.0"], "threshold 1: given twice"),
        (["first.keras", "--epochs"], "first.keras is no run's directory"),
        (["first.keras", "--by-peers"], "first.keras: neither a run's directory nor a comparison"),
        (["first.keras", "--epochs", "--layers"], "--epochs is told instead of --layers"),
        (["first.keras", "--by-peers", "--epochs"], "--epochs is told instead of --by-peers"),
        (["first.keras", "--answers"], "--answers and --line: expected the directory of a run"),
    ],
)
def test_mistakes_are_told_in_a_line(kgraft, files, tmp_path, given, said):  # noqa: F811
    empty = keras.Sequential([keras.Input((3,)), keras.layers.ReLU()], name="empty")
    empty.save(tmp_path / "none.keras")
    with h5py.File(tmp_path / "old.h5", "w") as old:
        old["kernel"] = np.zeros(3)
    (tmp_path / "broken.keras").write_text("PK")
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
    title = " ".join(out.partition("┏")[0].split())
    assert title.startswith("graft: test accuracy of the peer that is best by validation")
    assert title.endswith("1 peer: a run of baseline, the first point of every method")
    told = json.loads((tmp_path / "all.json").read_text())
    assert [own["method"] for own in told["points"]] == ["baseline", "graft", "graft"]
    assert told["figure"] == "accuracy" and [own["count"] for own in told["points"]] == [1, 2, 3]
    with (tmp_path / "all.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[2]["line"] == "graft" and float(rows[2]["best_peer"]) == pytest.approx(0.33)
    assert (rows[2]["entropy"], rows[2]["entropy_from"]) == ("30.0", "last grafting")
    (tmp_path / "run3/summary.json").unlink()
    code, _, err = kgraft("analyze", "run2", "run3", "--by-peers")
    assert code == 2 and "run3: left out, not finished" in err and "no two finished runs" in err
