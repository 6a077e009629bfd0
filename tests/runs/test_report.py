"""Reports of directories, against the numbers that were written there."""

import json
import os

import numpy as np
import pytest

from kgraft.analysis.records import read_grafts
from kgraft.errors import UserError
from kgraft.runs import graft_cache
from kgraft.runs.report import report
from tests.reports import directories as made
from tests.reports.pages import Parsed, images_of, lines_of, plots_of


def told(*runs, **options):
    return Parsed(report(list(runs), **options))


def plot_named(parsed, title):
    """The name of the plot that stands below a heading."""
    names = [told["id"] for _, told in parsed.elements if told.get("class") == "canvas"]
    labels = [told["aria-label"] for _, told in parsed.elements if told.get("role") == "img"]
    (found,) = [n for n, own in zip(names, labels, strict=True) if own.startswith(title)]
    return found


def test_the_curves_of_a_run_are_its_records(tmp_path):
    run = made.write_run(tmp_path / "own", epochs=5, peers=3, teachers=1)
    parsed = told(run, weights=False)
    document = plots_of(parsed)
    for title, value, times in (
        ("Accuracy on training images", made.accuracy, 100),
        ("Accuracy on held-out images", made.accuracy, 50),
        ("Loss on training images", made.loss, 1),
        ("Learning rate", lambda e, k: 0.1 / e, 1),
        ("Mean coefficient alpha", lambda e, k: 0.5, 1),
    ):
        lines = lines_of(document, plot_named(parsed, title))
        assert list(lines) == ["peer 1", "peer 2", "peer 3", "teacher 1"]
        for k, (x, y) in zip((1, 2, 3, 1), lines.values(), strict=True):
            assert x.tolist() == [1, 2, 3, 4, 5]
            np.testing.assert_allclose(y, times * made.curve(value, 5, k))


def test_the_maps_of_a_run_are_its_graftings(tmp_path):
    run = made.write_run(tmp_path / "own", epochs=5, peers=2, groups=4)
    document = plots_of(told(run, weights=False))
    values = {
        name: np.array([[[value(e, k, g) for e in range(1, 6)] for g in range(4)] for k in (1, 2)])
        for name, value in (("0", made.coefficient), ("1", made.information))
    }
    for name, own in values.items():
        low, high = own.min(), own.max()
        if name == "0":  # a half in the middle
            reach = max(high - 0.5, 0.5 - low, 0.05)
            low, high = 0.5 - reach, 0.5 + reach
        for k, (image, _) in enumerate(images_of(document, f"map-0-{name}")):
            found = low + image / 254 * (high - low)
            np.testing.assert_allclose(found, own[k], atol=(high - low) / 507)


def test_the_tables_of_a_run_are_its_figures(tmp_path):
    run = made.write_run(tmp_path / "own", peers=2, teachers=1)
    chosen = {"uniform soup": {"test_accuracy": 0.575, "networks": 1, "peers": [1, 2]}}
    (run / "select.json").write_text(json.dumps(chosen))
    parsed = told(run, weights=False)
    runs = dict(parsed.tables["Runs"])
    assert runs[""] == "own" and runs["status"] == "finished" and runs["method"] == "graft"
    assert runs["best peer, on the test images"] == "51.00 % (peer 1)"  # 59 % of validation
    assert (runs["uniform soup"], runs["ensemble"]) == ("57.50 %", "58.00 %")
    header, *rows = parsed.tables["On the test images, after the last epoch"]
    assert header[1:3] == ["accuracy, %", "validation, %"]
    assert [row[:3] for row in rows] == [
        ["peer 1", "51.00", "59.00"],
        ["peer 2", "52.00", "58.00"],
        ["ensemble of 2", "58.00", ""],
        ["teacher 1", "51.00", "59.00"],
    ]
    last = parsed.tables["As recorded, in the last epoch"]
    row = dict(zip(last[0], last[2], strict=True))
    assert row["network"] == "peer 1" and row["loss"] == f"{made.loss(3, 1):.4f}"
    assert row["highest val_accuracy, %"] == f"{50 * made.accuracy(3, 1):.2f} (epoch 3)"
    grafting = parsed.tables["In epoch 3"]
    assert grafting[0][1:] == [
        f"peer {k}: {what}" for k in (1, 2) for what in ("coefficient", "information")
    ]
    assert grafting[2] == [
        "stage1_block1_conv",
        *(
            f"{value(3, k, 1):.4f}"
            for k in (1, 2)
            for value in (made.coefficient, made.information)
        ),
    ]
    assert dict(parsed.tables["Where the runs were trained"]) == {
        "": "own", "kgraft": "0.1.0", "devices": "cpu"
    }  # fmt: skip
    assert 'method = "graft"' in parsed.text


def test_a_run_that_ended_without_a_peer_says_which_the_others_are(tmp_path):
    run = made.write_run(tmp_path / "own", peers=3)
    file = run / "summary.json"
    summary = json.loads(file.read_text())
    first, _, third = summary["peers"]
    third["validation_accuracy"] = 0.99
    file.write_text(json.dumps({**summary, "peers": [first, third], "lost": [2]}))
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    rows = [json.loads(text) for text in lines]
    missed = [row["phase"] == "peers" and row["model"] == 2 and row["epoch"] > 1 for row in rows]
    left = [text for text, gone in zip(lines, missed, strict=True) if not gone]
    (run / "metrics.jsonl").write_text("".join(left))
    parsed = told(run, weights=False)
    names = [row[0] for row in parsed.tables["On the test images, after the last epoch"][1:]]
    assert names == ["peer 1", "peer 3", "ensemble of 2"]
    best = dict(parsed.tables["Runs"])["best peer, on the test images"]
    assert best == f"{100 * third['test_accuracy']:.2f} % (peer 3)"
    assert "Peer 2 was lost on the way, and did not come back." in parsed.text
    assert f"Lost, for some of the epochs: peer 2 ({sum(missed)} of 3)." in parsed.text
    assert sum(missed) == 2 and "no finite number" not in parsed.text


def test_what_differs_between_runs_is_told(tmp_path):
    first = made.write_run(tmp_path / "a", peers=2, more="seed = 1")
    second = made.write_run(tmp_path / "b", peers=3, more="seed = 2")
    parsed = told(first, second, weights=False)
    rows = parsed.tables["Settings that are not the same in all runs"]
    assert rows == [["", "a", "b"], ["run.seed", "1", "2"], ["peers.count", "2", "3"]]
    lines = lines_of(plots_of(parsed), "curves-0")
    assert list(lines) == [f"a, peer {k}" for k in (1, 2)] + [f"b, peer {k}" for k in (1, 2, 3)]


def test_runs_of_one_name_are_told_apart(tmp_path):
    runs = [made.write_run(tmp_path / name / "own") for name in "ab"]
    assert told(*runs, weights=False).tables["Runs"][0][1:] == ["a/own", "b/own"]


def test_a_comparison_is_told_with_its_intervals_and_seeds(tmp_path):
    parsed = told(made.write_comparison(tmp_path / "cmp"))
    rows = parsed.tables["Accuracy on the test images, %"]
    assert [row[0] for row in rows] == ["method", "baseline", "graft, 2 peers"]
    # seeds 0 and 1: 51 and 55 against 50 and 52, so +1 and +3; t(0.975, 1) = 12.706
    assert rows[2][4:6] == ["53.00 ± 2.83", "+2.00 (-10.71 to +14.71)"]
    (row,) = parsed.tables["Points above baseline, with 95 % intervals"]
    assert row[0] == "graft, 2 peers" and row[1] == "+2.00 (-10.71 to +14.71)"
    assert (
        "cmp: 2 methods on 2 seeds; the highest on the test images: graft, 2 peers" in parsed.text
    )
    settings = parsed.tables["Settings that are not the same in all entries"]
    assert ["peers.count", "1", "2"] in settings
    lines = lines_of(plots_of(parsed), plot_named(parsed, "Loss on training images"))
    mean = [np.mean([made.loss(e, k) for k in (1, 2)]) for e in (1, 2, 3)]
    np.testing.assert_allclose(lines["graft, 2 peers"][1], mean)


def test_a_comparison_and_runs_stand_on_one_page(tmp_path):
    run = made.write_run(tmp_path / "own")
    parsed = told(made.write_comparison(tmp_path / "cmp"), run, weights=False)
    assert {"Runs", "Accuracy on the test images, %"} <= set(parsed.tables)


def without_grafts(run):
    (run / "grafts.jsonl").unlink()
    return "own: no layer was grafted."


def without_validation(run):
    made.write_metrics(run, epochs=3, peers=2, validation=False)
    return "Accuracy on training images"


def unfinished(run):
    (run / "summary.json").unlink()
    return "not finished: peers, epoch 3 of 3"


def before_the_first_epoch(run):
    for name in ("summary.json", "metrics.jsonl", "grafts.jsonl", "environment.json"):
        (run / name).unlink()
    return "not finished: no epoch yet"


def with_a_teacher_only(run):
    (run / "summary.json").unlink()
    (run / "grafts.jsonl").unlink()
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text(lines[0].replace('"peers"', '"teacher 1"'))
    return "not finished: teacher 1, epoch 1 of 3"


def diverged(run):
    text = (run / "metrics.jsonl").read_text().replace(f'"loss": {made.loss(2, 1)}', '"loss": NaN')
    (run / "metrics.jsonl").write_text(text)
    lines = (run / "grafts.jsonl").read_text().splitlines()
    sick = {**json.loads(lines[0]), "information": None, "donor": None, "coefficient": 1.0}
    (run / "grafts.jsonl").write_text("\n".join([json.dumps(sick), *lines[1:]]) + "\n")
    return "no finite number in some epochs of: peer 1"


def nothing_finite(run):
    lines = [json.loads(line) for line in (run / "grafts.jsonl").read_text().splitlines()]
    made.write_lines(run / "grafts.jsonl", [{**own, "information": None} for own in lines])
    return "Coefficient"


def without_weights(run):
    return "Not looked into"


@pytest.mark.parametrize(
    "take",
    [
        without_grafts,
        without_validation,
        unfinished,
        before_the_first_epoch,
        with_a_teacher_only,
        diverged,
        nothing_finite,
        without_weights,
    ],
)
def test_what_is_missing_is_left_out_or_said(tmp_path, take):
    run = made.write_run(tmp_path / "own")
    said = take(run)
    assert said in told(run).text


def test_a_run_of_one_peer_and_one_epoch_has_a_page(tmp_path):
    run = made.write_run(tmp_path / "own", epochs=1, peers=1, groups=1)
    parsed = told(run, weights=False)
    assert "ensemble of 1" not in parsed.text
    ((image, place),) = images_of(plots_of(parsed), "map-0-0")
    assert image.shape == (1, 1) and (place["x"], place["dw"]) == (0.5, 1.0)


def test_names_of_runs_are_shown_as_text(tmp_path):
    run = made.write_run(tmp_path / "<script>alert(1)<")
    parsed = told(run, weights=False)
    assert parsed.text.count("<script>alert(1)<") > 5
    assert sum(kind == "script" for kind, _ in parsed.elements) == 3


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"neither a run's directory nor a comparison's"):
        report([tmp_path])
    run = made.write_run(tmp_path / "own")
    with pytest.raises(UserError, match="named twice"):
        report([run, tmp_path / "cmp" / ".." / "own"])
    (run / "metrics.jsonl").write_text('{"phase": "peers", "model": "x", "epoch": 1}\n')
    with pytest.raises(UserError, match="no whole epoch and model"):
        report([run])
    made.write_run(tmp_path / "own")
    (run / "grafts.jsonl").write_text('{"epoch": 1}\n')
    with pytest.raises(UserError, match="a line is no grafting"):
        report([run])
    (tmp_path / "cmp").mkdir()
    (tmp_path / "cmp" / "comparison.json").write_text('{"runs": [{}], "entries": []}')
    with pytest.raises(UserError, match=r"runs\[0\].entry is missing"):
        report([tmp_path / "cmp"])


@pytest.mark.slow
def test_a_long_run_of_many_peers_and_layers_stays_small_and_right(tmp_path):
    epochs, peers, groups = 1000, 8, 110
    run = tmp_path / "own"
    made.write_settings(run, epochs=epochs, peers=peers)
    made.write_metrics(run, epochs=epochs, peers=peers)
    made.write_grafts(run, epochs=2, peers=peers, groups=groups)
    grafts = read_grafts(run)
    several = np.arange(epochs) % 2
    values = np.random.default_rng(0).uniform(size=(epochs, peers, groups))  # hard to compress
    whole = graft_cache.Grafts(
        np.arange(1, epochs + 1),
        grafts.peers,
        grafts.groups,
        values,
        values,
        grafts.donors[several],
    )
    (run / ".cache").mkdir()
    with (run / "grafts.jsonl").open("ab") as lines:  # as long as one that is worth a file
        lines.truncate(graft_cache.LARGE)
    state = (run / "grafts.jsonl").stat()
    graft_cache.write_cache(
        run / ".cache" / "grafts.npz", np.array([state.st_size, state.st_mtime_ns]), whole
    )
    html = report([run])
    assert len(html.encode()) < 5e6
    parsed = Parsed(html)
    document = plots_of(parsed)
    assert f"Of {epochs} epochs" in parsed.text and "A line has at most" in parsed.text
    name = plot_named(parsed, "Accuracy on held-out images")
    for k, (x, y) in enumerate(lines_of(document, name).values(), start=1):
        assert (x[0], x[-1]) == (1, epochs) and len(x) <= 600
        np.testing.assert_allclose(y, [50 * made.accuracy(e, k) for e in x.tolist()])
    image, place = images_of(document, "map-0-0")[3]
    kept = np.linspace(0, epochs - 1, image.shape[1]).round().astype(int)
    assert image.shape[0] == groups and image.shape[1] >= 500
    np.testing.assert_allclose(image / 254, values[kept, 3].T, atol=1 / 507)
    centres = place["x"] + (np.arange(len(kept)) + 0.5) * place["dw"] / len(kept)
    np.testing.assert_allclose(centres, kept + 1, atol=0.5)


@pytest.fixture
def large(tmp_path, monkeypatch):
    """A run whose graftings are worth a file."""
    monkeypatch.setattr(graft_cache, "LARGE", 1)
    return made.write_run(tmp_path / "own")


def never(*_):
    raise AssertionError("the lines were read")


def same(found, known):
    return found.groups == known.groups and all(
        np.array_equal(getattr(found, name), getattr(known, name))
        for name in ("epochs", "peers", "information", "coefficients", "donors")
    )


def test_graftings_are_parsed_once(large, monkeypatch):
    known = read_grafts(large)
    assert same(graft_cache.cached_grafts(large), known)
    monkeypatch.setattr(graft_cache, "read_grafts", never)
    assert same(graft_cache.cached_grafts(large), known)


def test_graftings_that_came_since_are_read(large):
    graft_cache.cached_grafts(large)
    made.write_grafts(large, epochs=7, peers=2)
    assert graft_cache.cached_grafts(large).epochs.tolist() == [1, 2, 3, 4, 5, 6, 7]


def test_lines_of_the_same_length_and_another_time_are_read(large):
    known = graft_cache.cached_grafts(large)
    file = large / "grafts.jsonl"
    file.write_text(file.read_text().replace('"donor": 1', '"donor": 2'))
    os.utime(file, ns=(1, 1))
    assert not same(graft_cache.cached_grafts(large), known)


def cut_off(file):
    file.write_bytes(file.read_bytes()[:200])


def of_words(file):
    file.write_text("words")


def of_another_shape(file):
    with np.load(file) as kept:
        told = dict(kept)
    np.savez(file, **{**told, "information": told["information"][:1]})


def of_objects(file):
    with np.load(file) as kept:
        told = dict(kept)
    np.savez(file, **{**told, "epochs": told["epochs"].astype(object)})


def without_peers(file):
    with np.load(file) as kept:
        told = dict(kept)
    del told["peers"]
    np.savez(file, **told)


@pytest.mark.parametrize("spoil", [cut_off, of_words, of_another_shape, of_objects, without_peers])
def test_a_spoilt_file_of_parsed_graftings_is_passed_over(large, spoil):
    known = graft_cache.cached_grafts(large)
    spoil(large / ".cache" / "grafts.npz")
    assert same(graft_cache.cached_grafts(large), known)


def test_nothing_is_written_through_a_link_or_where_nothing_can_be(large, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (large / ".cache").symlink_to(tmp_path / "elsewhere")
    known = graft_cache.cached_grafts(large)
    assert not list((tmp_path / "elsewhere").iterdir())
    (large / ".cache").unlink()
    (large / ".cache").write_text("a file")
    assert same(graft_cache.cached_grafts(large), known)


def test_small_records_leave_no_file(tmp_path):
    run = made.write_run(tmp_path / "own")
    graft_cache.cached_grafts(run)
    assert not (run / ".cache").exists()
