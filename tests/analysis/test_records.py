"""Records of runs as arrays, against the lines themselves."""

import json
import re

import numpy as np
import pytest

from kgraft.analysis.records import Metrics, mean_of_known, phases, read_grafts, read_metrics
from kgraft.errors import UserError


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def run(tmp_path):
    """Two epochs of three peers with two groups; the third peer is sick in the second one."""
    metrics, grafts = [], []
    for epoch in (1, 2):
        for k in (1, 2, 3):
            row = {"phase": "peers", "model": k, "epoch": epoch, "loss": epoch + k / 10}
            metrics.append(row | ({"val_accuracy": k / 10} if epoch == 2 else {}))
            sick = epoch == 2 and k == 3
            for g in ("a", "b"):
                grafts.append(
                    {
                        "epoch": epoch,
                        "peer": k,
                        "group": g,
                        "information": None if sick else epoch * 10 + k + (g == "b") / 2,
                        "donor": None if sick else (k - 2) % 3 + 1 if epoch == 1 else 3 - k,
                        "coefficient": 0.5 + k / 100,
                    }
                )
    metrics.insert(0, {"phase": "teacher 1", "model": 1, "epoch": 1, "loss": 9.0})
    grafts.insert(0, {**grafts[0], "phase": "teachers", "information": 99.0})
    lines(tmp_path / "metrics.jsonl", metrics)
    lines(tmp_path / "grafts.jsonl", grafts)
    return tmp_path


def test_metrics_are_by_epoch_and_model(run):
    found = read_metrics(run)
    assert found.epochs.tolist() == [1, 2] and found.models.tolist() == [1, 2, 3]
    np.testing.assert_allclose(found.values["loss"], [[1.1, 1.2, 1.3], [2.1, 2.2, 2.3]])
    np.testing.assert_array_equal(found.values["val_accuracy"], [[np.nan] * 3, [0.1, 0.2, 0.3]])
    assert found.accuracy == "val_accuracy"
    assert read_metrics(run, "teacher 1").values["loss"].tolist() == [[9.0]]


def test_graftings_are_by_epoch_peer_and_group(run):
    found = read_grafts(run)
    assert found.groups == ("a", "b") and found.information.shape == (2, 3, 2)
    np.testing.assert_allclose(found.information[0], [[11, 11.5], [12, 12.5], [13, 13.5]])
    assert np.isnan(found.information[1, 2]).all()
    assert found.donors.tolist() == [[3, 1, 2], [2, 1, 0]]
    np.testing.assert_allclose(found.coefficients[:, :, 0], [[0.51, 0.52, 0.53]] * 2)
    np.testing.assert_allclose(found.gaps[0, :, 0], [-2.0, 1.0, 1.0])
    assert np.isnan(found.gaps[1, 2]).all()
    assert read_grafts(run, "teachers").information.tolist() == [[[99.0]]]


def test_a_run_without_graftings_has_none(tmp_path):
    assert read_grafts(tmp_path) is None
    (tmp_path / "grafts.jsonl").write_text("")
    assert read_grafts(tmp_path) is None


@pytest.mark.parametrize(
    ("text", "said"), [("{\n", "line 1: no JSON"), ("[1]", "expected an object")]
)
def test_damaged_lines_are_named(tmp_path, text, said):
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(UserError, match=said):
        read_metrics(tmp_path)


def test_a_line_that_is_just_being_written_is_left_out(run):
    before = read_metrics(run).values["loss"]
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"phase": "peers", "mo')
    np.testing.assert_array_equal(read_metrics(run).values["loss"], before)
    (run / "summary.json").write_text("{}")  # a finished run's is damaged
    with pytest.raises(UserError, match="line 8: no JSON"):
        read_metrics(run)


def test_a_phase_that_was_not_is_named(run, tmp_path):
    with pytest.raises(UserError, match="nothing about 'teacher 7'"):
        read_metrics(run, "teacher 7")
    with pytest.raises(UserError, match="No such file"):
        read_metrics(tmp_path / "nowhere")


def test_a_loss_with_a_teachers_part_stands_apart():
    epochs, models = np.array([1]), np.array([1])
    plain = {"loss": np.array([[2.0]]), "val_loss": np.array([[1.5]])}
    taught = {**plain, "loss": np.array([[70.0]]), "student_loss": np.array([[2.1]])}
    own, other = (Metrics(epochs, models, values) for values in (plain, taught))
    assert own.comparable("loss").item() == 2 and own.comparable("student_loss") is None
    assert other.comparable("loss").item() == 2.1 and other.comparable("student_loss").item() == 70
    assert other.comparable("val_loss").item() == 1.5


def test_a_directory_that_is_not_there_is_no_run_without_graftings(tmp_path):
    with pytest.raises(UserError, match="there is no such directory"):
        read_grafts(tmp_path / "none")


def test_directories_may_be_named_by_text(run):
    assert read_metrics(str(run)).models.tolist() == [1, 2, 3]
    assert phases(str(run)) == ("teacher 1", "peers")
    assert read_grafts(str(run)).peers.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("val_accuracy", "high", "val_accuracy is 'high'; expected a number or null"),
        ("loss", [1.0], "loss is a list; expected a number or null"),
        ("epoch", 1.5, "no whole epoch and model"),
    ],
)
def test_a_metric_that_is_no_number_is_told_with_its_line(run, key, value, said):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows[3][key] = value
    lines(run / "metrics.jsonl", rows)
    with pytest.raises(UserError, match=f"metrics.jsonl, line 4: {re.escape(said)}"):
        read_metrics(run)
    assert read_metrics(run, "teacher 1").values["loss"].tolist() == [[9.0]]
    rows[3][key] = 1 if key == "epoch" else None
    lines(run / "metrics.jsonl", rows)
    own = read_metrics(run).values
    assert key == "epoch" or np.isnan(own[key][0, 2])


def test_the_epoch_that_is_about_to_be_written_is_left_out(run):
    whole = read_grafts(run)
    file = run / "grafts.jsonl"
    text = file.read_text().splitlines(keepends=True)
    more = [line.replace('"epoch": 1', '"epoch": 3') for line in text[1:7]]
    for count in (1, 2, 5):
        file.write_text("".join([*text, *more[:count]]))
        found = read_grafts(run)
        assert found.epochs.tolist() == [1, 2]
        np.testing.assert_array_equal(found.information, whole.information)
        np.testing.assert_array_equal(found.donors, whole.donors)
        assert read_grafts(run, "teachers").epochs.tolist() == [1]
    file.write_text("".join([*text, *more]))
    assert read_grafts(run).epochs.tolist() == [1, 2, 3]
    file.write_text("".join(text[:5]))
    assert read_grafts(run).information.shape == (1, 2, 2)  # between two peers: no line says more
    file.write_text("".join(text[:4]))
    assert read_grafts(run) is None


def test_a_mean_over_networks_is_of_what_is_finite():
    values = np.array([[1.0, 3.0], [np.nan, 4.0], [np.nan, np.inf]])
    np.testing.assert_array_equal(mean_of_known(values), [2.0, 4.0, np.nan])
