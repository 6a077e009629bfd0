import json
import tomllib

import keras
import numpy as np
import pytest

from kgraft.data import ShiftedWhole, Whole
from kgraft.errors import UserError
from kgraft.models.layouts import layouts
from kgraft.retrieval import embedder, evaluate
from kgraft.runs.assembly import assemble
from kgraft.runs.evaluation import evaluate_run
from kgraft.runs.execution import execute
from kgraft.runs.identities import triplet_of
from kgraft.runs.scoring import answers, figures
from kgraft.runs.selection import select
from kgraft.runs.unfinished import read_unfinished
from tests.reference import people
from tests.reference.retrieval import of_query
from tests.runs.test_resume import Breaks, Broken, assert_one


@pytest.fixture(scope="module")
def market(tmp_path_factory):
    root = tmp_path_factory.mktemp("people") / "market"
    people.write(root, (8, 6, 3, (96, 18, 90), 6, 8), "market1501")
    return root


@pytest.fixture
def of_people(tiny, tmp_path, market):
    def config(root=market, **changes):
        usual = {
            "data__name": str(root),
            "data__size": [32, 16],
            "data__directory": str(tmp_path / "indexes"),
            "data__limit_train": None,
            "data__limit_test": None,
            "data__validation": 0.125,
            "data__pad": 2,
            "teachers__count": 0,
            "run__batch_size": 16,
        }
        return tiny(**{**usual, **changes})

    return config


def oracle(features, open_set, metric="cosine"):
    """Means of what the oracle says of every query: mAP, official mAP, rank-1, mINP."""
    count, who, cameras = open_set.queries, open_set.identities, open_set.cameras
    rows = [
        of_query(
            features[k],
            who[k],
            cameras[k],
            features[count:],
            who[count:],
            cameras[count:],
            metric,
            "pessimistic",
        )
        for k in range(count)
    ]
    counted = [row for row in rows if row is not None]
    return {
        "accuracy": np.mean([row[0] == 1 for row in counted]),
        "mAP": np.mean([row[1] for row in counted]),
        "mAP_official": np.mean([row[2] for row in counted]),
        "mINP": np.mean([row[3] for row in counted]),
    }


def features_of(model, assembly):
    sees = embedder(model)
    parts = [np.asarray(sees(x, training=False).detach()) for x, _ in assembly.test.epoch(0)]
    return np.concatenate(parts)


@pytest.mark.parametrize("metric", ["cosine", pytest.param("euclidean", marks=pytest.mark.slow)])
def test_peers_find_whom_they_have_never_seen(of_people, tmp_path, metric):
    config = of_people(run__epochs=8, optimizer__lr=0.05, retrieval__metric=metric)
    assembly = assemble(config)
    summary = execute(assembly, tmp_path / "run")
    for row, peer in zip(summary["peers"], assembly.peers, strict=True):
        expected = oracle(features_of(peer, assembly), assembly.dataset.open_set, metric)
        for name, value in expected.items():
            assert row[f"test_{name}"] == pytest.approx(value, abs=1e-6)
    assert summary["ensemble"]["test_mAP"] > 0.5
    assert summary["peers"][0]["best_test_mAP"] > 0.3
    again = evaluate_run(tmp_path / "run")
    assert again["peer 1, rank1"] == summary["peers"][0]["test_accuracy"]
    assert again["ensemble, mAP"] == pytest.approx(summary["ensemble"]["test_mAP"], abs=1e-6)
    chosen = select(tmp_path / "run")
    assert chosen["ensemble"]["test_mAP"] == pytest.approx(
        summary["ensemble"]["test_mAP"], abs=1e-6
    )
    said = tomllib.loads((tmp_path / "run" / "run.toml").read_text())
    assert said["data"]["size"] == [32, 16] and said["retrieval"]["metric"] == metric
    assert said["photos"]["order"] == "windowed"


@pytest.mark.slow
def test_together_they_answer_with_all_their_features(of_people, tmp_path):
    assembly = assemble(of_people())
    summary = execute(assembly, tmp_path / "run")
    parts = [features_of(peer, assembly) for peer in assembly.peers]
    whole = np.concatenate([own / np.linalg.norm(own, axis=1, keepdims=True) for own in parts], 1)
    expected = oracle(whole, assembly.dataset.open_set)
    assert summary["ensemble"]["test_mAP"] == pytest.approx(expected["mAP"], abs=1e-6)


def test_mirror_images_are_of_the_same_decoding(of_people, monkeypatch):
    assembly = assemble(of_people(retrieval__flip=True))
    stream, model = assembly.test, assembly.peers[0]
    stream.batch_size, times = 30, []
    once = type(stream).epoch
    monkeypatch.setattr(type(stream), "epoch", lambda *own: times.append(1) or once(*own))
    found = answers(model, stream, assembly.dataset, assembly.config.retrieval)
    assert len(times) == 1
    sees = embedder(model)
    parts = [
        sees(x, training=False) + sees(keras.ops.flip(x, 2), training=False)
        for x, _ in stream.epoch(0)
    ]
    assert len(parts) > 3 and len(parts[-1]) not in (0, 30)
    np.testing.assert_allclose(
        found, np.concatenate([own.detach() for own in parts]), rtol=1e-4, atol=1e-5
    )


@pytest.mark.slow
def test_mirror_images_and_reranking_are_asked_for(of_people, tmp_path):
    assembly = assemble(of_people(retrieval__flip=True))
    summary = execute(assembly, tmp_path / "run")
    sees, parts = embedder(assembly.peers[0]), []
    for x, _ in assembly.test.epoch(0):
        parts.append(sees(x, training=False) + sees(keras.ops.flip(x, 2), training=False))
    expected = oracle(np.concatenate([own.detach() for own in parts]), assembly.dataset.open_set)
    assert summary["peers"][0]["test_mAP"] == pytest.approx(expected["mAP"], abs=1e-6)
    plain = execute(assemble(of_people()), tmp_path / "plain")["peers"][0]["test_mAP"]
    other = execute(assemble(of_people(retrieval__rerank=True)), tmp_path / "other")
    assert other["peers"][0]["test_mAP"] != plain
    again = evaluate_run(tmp_path / "plain", search={"rerank": True})
    assert again["peer 1, mAP"] == pytest.approx(other["peers"][0]["test_mAP"], abs=1e-6)
    with pytest.raises(UserError, match="re-ranked images have distances of their own"):
        evaluate_run(tmp_path / "other", search={"metric": "cosine"})
    usual = evaluate_run(tmp_path / "other", search={"metric": "cosine", "rerank": False})
    assert usual["peer 1, mAP"] == pytest.approx(plain, abs=1e-6)
    with pytest.raises(UserError, match="metric = "):
        evaluate_run(tmp_path / "plain", search={"metric": "l1"})


@pytest.mark.core
def test_a_neck_stands_before_a_classifier_without_bias(of_people, tmp_path):
    config = of_people(retrieval__neck=True, retrieval__dropout=0.3, retrieval__erase=0.5)
    assembly = assemble(config)
    model = assembly.peers[0]
    assert [layer.name for layer in model.layers[-3:]] == ["neck", "neck_dropout", "logits"]
    assert model.get_layer("neck_dropout").rate == 0.3
    assert assembly.train.windows.crop == ShiftedWhole(
        (32, 16), pad=2, flip=True, erase=0.5, fill=(0.485, 0.456, 0.406)
    )
    assert assembly.test.crop == Whole((32, 16))
    assert not model.get_layer("neck").center and not model.layers[-1].use_bias
    assert embedder(model).output_shape == (None, 64)
    summary = execute(assembly, tmp_path / "run")
    assert evaluate_run(tmp_path / "run")["peer 1, rank1"] == summary["peers"][0]["test_accuracy"]


@pytest.mark.slow
def test_a_neck_has_no_place_in_torchs_layouts(of_people):
    (peer, *_) = assemble(of_people(retrieval__neck=True)).peers
    with pytest.raises(UserError, match="has a neck before its classifier"):
        layouts(peer)


def test_a_run_that_was_broken_off_sees_what_it_would_have_seen(of_people, tmp_path):
    config = of_people(run__epochs=3, retrieval__erase=0.5)
    execute(assemble(config), tmp_path / "whole")
    with pytest.raises(Broken):
        execute(assemble(config), tmp_path / "out", Breaks("peers", 2))
    execute(assemble(read_unfinished(tmp_path / "out")), tmp_path / "out", resume=True)
    assert_one(tmp_path / "whole", tmp_path / "out")


def test_distances_are_learnt_too_and_go_on_after_a_stop(of_people, tmp_path):
    options = {"retrieval__triplet": 2.0, "retrieval__instances": 4, "retrieval__neck": True}
    config = of_people(run__epochs=3, **options)
    execute(assemble(config), tmp_path / "whole")
    rows = [json.loads(row) for row in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    for row in rows:
        assert row["triplet_loss"] > 0
        parts = row["student_loss"] + 2 * row["triplet_loss"]
        assert row["loss"] == pytest.approx(parts, rel=1e-5)
    with pytest.raises(Broken):
        execute(assemble(config), tmp_path / "out", Breaks("peers", 2))
    execute(assemble(read_unfinished(tmp_path / "out")), tmp_path / "out", resume=True)
    assert_one(tmp_path / "whole", tmp_path / "out")
    (labels, *_) = (np.asarray(y) for _, y in assemble(config).train.epoch(0))
    assert (labels.reshape(-1, 4) == labels.reshape(-1, 4)[:, :1]).all()


@pytest.mark.slow
def test_a_run_in_halves_ends_with_figures(of_people, tmp_path):
    summary = execute(assemble(of_people(run__precision="bfloat16")), tmp_path / "own")
    assert 0 < summary["peers"][0]["test_mAP"] <= 1


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_networks_that_are_alike_find_together_what_each_finds(of_people, metric):
    assembly = assemble(of_people(retrieval__metric=metric))
    wanted, dataset = assembly.config.retrieval, assembly.dataset
    own = answers(assembly.peers[0], assembly.test, dataset, wanted)
    alone, together = (figures(some, dataset, wanted) for some in ([own], [own, own]))
    assert together == pytest.approx(alone)


@pytest.mark.parametrize("neck", [False, True])
def test_features_before_the_neck_are_what_distances_are_of(of_people, neck):
    config = of_people(retrieval__triplet=1.0, retrieval__neck=neck)
    (peer, *_) = assemble(config).peers
    layer = triplet_of(config, peer).layer
    assert layer == ("pool" if neck else None)
    usual = of_people()
    assert triplet_of(usual, peer) is None


@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_the_backbone_has_a_rate_of_its_own(of_people, tmp_path, engine):
    def moved(backbone):
        options = {"retrieval__neck": True, "peers__count": 1, "run__method": "baseline"}
        config = of_people(run__engine=engine, optimizer__backbone=backbone, **options)
        assembly = assemble(config)
        before = {own.path: np.array(own) for own in assembly.peers[0].trainable_weights}
        execute(assembly, tmp_path / f"{backbone}")
        after = {own.path: np.array(own) for own in assembly.peers[0].trainable_weights}
        return {path: np.abs(after[path] - before[path]).max() for path in before}

    still, slow, usual = moved(0.0), moved(0.1), moved(1.0)
    for path in still:
        of_head = path.split("/")[-2] in ("neck", "logits")
        assert (still[path] > 0) == of_head, path
        assert usual[path] > 0 and slow[path] > 0
    assert slow["stem/kernel"] < 0.5 * usual["stem/kernel"]


def test_pretrained_weights_go_below_the_neck(of_people, tmp_path):
    execute(assemble(of_people(run__epochs=1)), tmp_path / "first")
    config = of_people(model__weights=str(tmp_path / "first"), retrieval__neck=True)
    peers = assemble(config).peers
    path = tmp_path / "first" / "peers"
    best = json.loads((tmp_path / "first" / "summary.json").read_text())
    assert best and path.is_dir()
    first, second = (own.get_weights() for own in peers)
    for own, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(own, other)
    begun = [
        keras.saving.load_model(file).get_weights()[0] for file in sorted(path.glob("peer-?.keras"))
    ]
    assert any(np.array_equal(first[0], own) for own in begun)


@pytest.mark.slow
def test_other_methods_and_teachers_find_too(of_people, tmp_path):
    summary = execute(assemble(of_people(teachers__count=1, run__epochs=1)), tmp_path / "plus")
    assert 0 < summary["teachers"][0]["test_mAP"] <= 1
    for method in ("mutual", "lawa"):
        config = of_people(run__method=method, run__epochs=1, peers__count=2 - (method == "lawa"))
        execute(assemble(config), tmp_path / method)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"photos__area": [0.5, 1.0]}, r"photos\.area: of identities whole photographs are seen"),
        ({"data__limit_test": 10}, r"data\.limit_test: a gallery is searched whole"),
        ({"data__size": [1, 2, 3]}, r"data\.size is \[1, 2, 3\]: expected rows and columns"),
        ({"run__select": "test", "data__validation": 0.0}, "of other identities than those"),
        ({"data__pad": 16}, r"data\.pad is 16, the images' side is 16"),
        ({"retrieval__camera": "c([0-9])"}, "say the cameras"),
        ({"retrieval__margin": 0.5}, r"retrieval\.margin is the triplet loss's"),
        ({"retrieval__triplet": 1.0, "run__method": "mutual"}, "learns from other networks"),
        ({"retrieval__triplet": 1.0, "teachers__count": 1}, "learns from other networks"),
        ({"retrieval__instances": 3}, "batch size 16 with 3 images"),
        (
            {"data__name": "digits", "data__pad": None},
            r"data\.size is \[32, 16\]: only photographs",
        ),
        (
            {"data__name": "digits", "data__size": 8, "retrieval__neck": True, "data__pad": None},
            r"retrieval\.neck: digits is no folder of identities",
        ),
    ],
)
def test_settings_that_have_no_part_in_it_are_refused(of_people, changes, said):
    changes = {key: value for key, value in changes.items() if value is not None}
    if changes.get("data__name") == "digits":
        changes |= {"data__validation": 0.1, "data__pad": 1}
    with pytest.raises(UserError, match=said):
        assemble(of_people(**changes))


def test_the_features_are_compared_by_anybody(of_people):
    assembly = assemble(of_people())
    features, who = features_of(assembly.peers[0], assembly), assembly.dataset.open_set
    q = who.queries
    found = evaluate(
        features[:q],
        features[q:],
        who.identities[:q],
        who.identities[q:],
        who.cameras[:q],
        who.cameras[q:],
    )
    assert found.mean_precision == pytest.approx(oracle(features, who)["mAP"])
