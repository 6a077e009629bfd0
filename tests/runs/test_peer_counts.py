"""Which runs lie on one line, and what their points are; from files that are written by hand."""

import json

import keras
import numpy as np
import pytest

from kgraft import models
from kgraft.analysis.peer_counts import RECORDS, WEIGHTS, Outcome, points
from kgraft.errors import UserError
from kgraft.runs.config import parse
from kgraft.runs.peer_counts import peer_counts


def finished(path, method, count, seed=0, accuracy=0.5, entropy=None, **more):
    """A run's records: peer k has `accuracy` + k / 100, all together 0.9; layers' entropies."""
    text = "".join(
        f"[{table}]\n" + "".join(f"{key} = {json.dumps(own)}\n" for key, own in keys.items())
        for table, keys in {
            "run": {"method": method, "seed": seed},
            "peers": {"count": count},
            "teachers": {"count": 0},
            **more,
        }.items()
    )
    path.mkdir(parents=True)
    (path / "run.toml").write_text(parse(text, "x").resolved())
    peers = [
        {
            "peer": k, "lr": 0.1, "test_accuracy": accuracy + k / 100,
            "validation_accuracy": k / 10, "last_epoch": 1, "best_epoch": 1,
            "best_validation_accuracy": 0.1, "best_test_accuracy": 0.1,
        }
        for k in range(1, count + 1)
    ]  # fmt: skip
    summary = {
        "method": method, "peers": peers, "teachers": [],
        "ensemble": {"test_accuracy": 0.9, "validation_accuracy": 0.9},
        "selected_on": "validation", "seconds": 1.0, "images_per_second": 1.0,
    }  # fmt: skip
    (path / "summary.json").write_text(json.dumps(summary))
    (path / "metrics.jsonl").write_text("")
    if entropy is not None:
        rows = [
            {"epoch": e, "peer": k, "group": g, "donor": 1, "coefficient": 0.5,
             "information": entropy + k + (e == 2) * 10}
            for e in (1, 2) for k in range(1, count + 1) for g in ("a", "b")
        ]  # fmt: skip
        (path / "grafts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def shown(found):
    return [(p.line, p.count, round(p.best.mean, 4), p.best.count) for p in found]


def test_runs_that_differ_in_peers_and_seed_alone_are_a_line(tmp_path):
    runs = [
        finished(tmp_path / f"{k}-{seed}", "graft", k, seed, accuracy=k / 10 + seed / 100)
        for k in (4, 2)
        for seed in (0, 1)
    ]
    other = finished(tmp_path / "other", "mutual", 2)
    found, figure, left_out = peer_counts([*runs, other])
    # the best of k peers on validation is the last: k / 10 + seed / 100 + k / 100
    assert shown(found) == [("graft", 2, 0.225, 2), ("graft", 4, 0.445, 2)]
    assert found[0].best.std == pytest.approx(0.01 / np.sqrt(2))
    assert found[0].mean_peer.mean == pytest.approx(0.22)
    assert found[0].ensemble.mean == pytest.approx(0.9) and found[0].entropy is None
    alone = "no other run is alike but for peers.count and the seed"
    assert (figure, left_out) == ("accuracy", {other: alone})


def test_one_network_by_itself_begins_the_line_of_every_method(tmp_path):
    runs = [
        finished(tmp_path / "one", "baseline", 1),
        finished(tmp_path / "graft", "graft", 2),
        finished(tmp_path / "mutual", "mutual", 2),
        finished(tmp_path / "longer", "baseline", 1, run={"method": "baseline", "epochs": 77}),
    ]
    found, *_ = peer_counts(runs)
    assert [own[:2] for own in shown(found)] == [
        ("graft", 1), ("graft", 2), ("mutual", 1), ("mutual", 2)
    ]  # fmt: skip
    assert {own.best.count for own in found} == {1}


def test_another_setting_makes_another_line_which_names_it(tmp_path):
    runs = [
        finished(tmp_path / f"{lr}-{k}", "graft", k, optimizer={"name": "sgd", "lr": lr})
        for lr in (0.1, 0.2)
        for k in (2, 3)
    ]
    found, *_ = peer_counts(runs)
    assert [own[:2] for own in shown(found)] == [
        ("graft, optimizer.lr 0.1", 2), ("graft, optimizer.lr 0.1", 3),
        ("graft, optimizer.lr 0.2", 2), ("graft, optimizer.lr 0.2", 3),
    ]  # fmt: skip
    assert peer_counts(runs[:1])[0] == ()


def test_a_run_that_ended_without_a_peer_does_not_count(tmp_path):
    runs = [finished(tmp_path / str(k), "graft", k) for k in (2, 3, 4)]
    file = runs[2] / "summary.json"
    summary = json.loads(file.read_text())
    file.write_text(json.dumps({**summary, "peers": summary["peers"][1:], "lost": [1]}))
    found, _, left_out = peer_counts(runs)
    assert [own[1] for own in shown(found)] == [2, 3]
    assert left_out == {runs[2]: "peer 1 was lost on the way, and did not come back"}


def test_how_ranks_met_makes_no_other_line(tmp_path):
    runs = [
        finished(tmp_path / str(k), "graft", k, ring={"timeout": k, "on_lost_peer": policy})
        for k, policy in ((2, "skip"), (3, "wait"))
    ]
    assert [own[:2] for own in shown(peer_counts(runs)[0])] == [("graft", 2), ("graft", 3)]


def test_where_data_lie_and_what_is_kept_is_no_matter(tmp_path):
    runs = [
        finished(
            tmp_path / str(k), "graft", k,
            data={"directory": f"/{k}"}, checkpoint={"every": k, "keep": k},
        )
        for k in (2, 3)
    ]  # fmt: skip
    assert len(peer_counts(runs)[0]) == 2


def test_entropies_are_the_last_graftings_where_no_weights_are(tmp_path):
    runs = [finished(tmp_path / str(k), "graft", k, entropy=1.0) for k in (2, 4)]
    found, *_ = peer_counts(runs)
    # two layers of 11 + k each: 24 and 26 at two peers, mean 25
    assert [(own.entropy.mean, own.source) for own in found] == [(25.0, RECORDS), (27.0, RECORDS)]
    authors = {"graft": {"binning": "authors"}}
    other = [finished(tmp_path / f"a{k}", "graft", k, entropy=1.0, **authors) for k in (2, 4)]
    assert [own.entropy for own in peer_counts(other)[0]] == [None, None]  # is no Entropy()


def test_entropies_are_those_of_weights_where_they_are(tmp_path):
    runs = [finished(tmp_path / str(k), "graft", k, entropy=1.0) for k in (1, 2)]
    (tmp_path / "1/peers").mkdir()
    model = models.resnet8(input_shape=(8, 8, 1), classes=3)
    model.save(tmp_path / "1/peers/peer-1.keras")
    expected = 0.0
    for kernel in (w for w in model.get_weights() if w.ndim == 4):
        share = np.histogram(kernel, bins=10)[0] / kernel.size
        expected -= sum(p * np.log(p) for p in share.tolist() if p)
    one, two = peer_counts(runs)[0]
    assert (one.source, two.source) == (WEIGHTS, RECORDS)
    assert one.entropy.mean == pytest.approx(expected, abs=1e-3)
    assert {own.source for own in peer_counts(runs, weights=False)[0]} == {RECORDS}
    keras.backend.clear_session()


def test_a_comparisons_runs_count_and_unfinished_ones_are_named(tmp_path):
    for k in (1, 2):
        for seed in (0, 1):
            entry = "baseline" if k == 1 else "graft"
            finished(tmp_path / f"all/{entry}/seed-{seed}", entry, k, seed)
    (tmp_path / "all/comparison.json").write_text("{}")
    (tmp_path / "all/graft/seed-1/summary.json").unlink()
    found, _, left_out = peer_counts([tmp_path / "all"])
    assert [(own.count, own.best.count) for own in found] == [(1, 2), (2, 1)]
    assert left_out == {tmp_path / "all/graft/seed-1": "not finished"}
    with pytest.raises(UserError, match="neither a run's directory nor a comparison's"):
        peer_counts([tmp_path])


def test_a_run_counts_once_and_weights_come_before_records():
    runs = [
        Outcome("a", 2, 0, 0.1, 0, 0, 5.0, RECORDS),
        Outcome("a", 2, 0, 0.9, 0, 0, 9.0, WEIGHTS),
        Outcome("a", 2, 1, 0.3, 0, 0, 7.0, WEIGHTS),
        Outcome("a", 1, 0, 0.0, 0, 0),
        Outcome("b", 1, 0, 0.0, 0, 0),
    ]
    one, two = points(runs)
    assert (two.best.mean, two.best.count) == (0.2, 2)
    assert (two.entropy.mean, two.entropy.count, two.source) == (7.0, 1, WEIGHTS)
    assert (one.entropy, one.source) == (None, "")
