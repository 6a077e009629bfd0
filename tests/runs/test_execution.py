import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from kgraft import data, models
from kgraft.errors import UserError
from kgraft.runs import config as configs
from kgraft.runs.assembly import assemble
from kgraft.runs.evaluation import evaluate_run
from kgraft.runs.execution import execute
from kgraft.runs.methods import mixer_of


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.core
def test_a_run_leaves_everything_behind(tiny, tmp_path):
    config = tiny()
    summary = execute(assemble(config), tmp_path / "run")
    out = tmp_path / "run"
    assert summary == json.loads((out / "summary.json").read_text())
    assert [peer["peer"] for peer in summary["peers"]] == [1, 2]
    assert [peer["lr"] for peer in summary["peers"]] == pytest.approx([0.05, 0.1])
    assert len(summary["teachers"]) == 1
    assert 0 <= summary["ensemble"]["test_accuracy"] <= 1
    assert summary["images_per_second"] > 0 and "waiting" not in summary

    metrics = lines(out / "metrics.jsonl")
    assert [(row["phase"], row["model"], row["epoch"]) for row in metrics] == [
        ("teacher 1", 1, 1),
        ("teacher 1", 1, 2),
        *[("peers", k, epoch) for epoch in (1, 2) for k in (1, 2)],
    ]
    assert metrics[2]["lr"] == pytest.approx(0.05)
    assert metrics[4]["lr"] == pytest.approx(0.025)
    kernels = 7  # resnet8: the stem and two convolutions in each of three blocks
    grafts = lines(out / "grafts.jsonl")
    assert len(grafts) == 2 * 2 * kernels
    assert all(0.3 <= row["coefficient"] <= 0.7 for row in grafts)
    mean = np.mean([r["coefficient"] for r in grafts if (r["epoch"], r["peer"]) == (1, 1)])
    assert metrics[2]["alpha"] == pytest.approx(mean)

    resolved = configs.read(out / "run.toml")
    assert (resolved.data.pad, resolved.data.flip) == (1, False)
    told = json.loads((out / "environment.json").read_text())
    assert told["backend"]["name"] == keras.config.backend()
    assert len(set(told["seeds"]["peers"])) == 2


def test_the_same_seed_gives_the_same_run(tiny, tmp_path):
    first, second = (
        execute(assemble(tiny(peers__count=1)), tmp_path / name) for name in ("a", "b")
    )
    assert first["peers"] == second["peers"]
    assert lines(tmp_path / "a" / "metrics.jsonl") == lines(tmp_path / "b" / "metrics.jsonl")
    third = execute(assemble(tiny(peers__count=1, run__seed=1)), tmp_path / "c")
    assert lines(tmp_path / "a" / "metrics.jsonl") != lines(tmp_path / "c" / "metrics.jsonl")
    assert third["peers"][0]["lr"] == pytest.approx(0.1)


def test_peers_start_and_teachers_start_from_weights_of_their_own(tiny):
    assembly = assemble(tiny())
    kernels = [m.get_weights()[0] for m in (*assembly.peers, *assembly.untrained)]
    assert not np.array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[0], kernels[2])


def test_saved_peers_load_in_keras_without_kgraft(tiny, tmp_path):
    summary = execute(assemble(tiny(teachers__count=0)), tmp_path / "run")
    images = data.load("digits", limit_train=96, limit_test=40)
    x = (images.test.images / 255.0 - images.mean) / images.std
    np.savez(tmp_path / "test.npz", x=x.astype(np.float32), y=images.test.labels)
    code = (
        "import sys, keras, numpy as np; "
        "d = np.load(sys.argv[2]); m = keras.models.load_model(sys.argv[1]); "
        "print(float((m.predict(d['x'], verbose=0).argmax(1) == d['y']).mean())); "
        "assert 'kgraft' not in sys.modules"
    )
    for name, key in (("peer-1", "test_accuracy"), ("peer-1-best", "best_test_accuracy")):
        file = tmp_path / "run" / "peers" / f"{name}.keras"
        done = subprocess.run(
            [sys.executable, "-c", code, file, tmp_path / "test.npz"],
            env={**os.environ, "KERAS_BACKEND": keras.config.backend()},
            capture_output=True,
            text=True,
            check=True,
        )
        assert float(done.stdout) == pytest.approx(summary["peers"][0][key])


@pytest.mark.core
def test_a_finished_run_evaluates_to_its_own_summary(tiny, tmp_path):
    summary = execute(assemble(tiny(teachers__count=0)), tmp_path / "run")
    scores = evaluate_run(tmp_path / "run")
    assert scores["ensemble"] == pytest.approx(summary["ensemble"]["test_accuracy"])
    for row in summary["peers"]:
        assert scores[f"peer {row['peer']}"] == pytest.approx(row["test_accuracy"])
    assert evaluate_run(tmp_path / "run", peer=2) == {"peer 2": scores["peer 2"]}
    with pytest.raises(UserError, match=r"peers 1\.\.2"):
        evaluate_run(tmp_path / "run", peer=3)
    (tmp_path / "run" / "summary.json").unlink()
    with pytest.raises(UserError, match="did not finish"):
        evaluate_run(tmp_path / "run")
    with pytest.raises(UserError, match="no run's directory"):
        evaluate_run(tmp_path)


def test_teachers_come_from_files_first(tiny, tmp_path):
    file = tmp_path / "teacher.keras"
    models.resnet8(input_shape=(8, 8, 1), classes=10).save(file)
    config = tiny(run__epochs=1, teachers__count=2, teachers__files=[str(file)])
    summary = execute(assemble(config), tmp_path / "run")
    assert [row.get("file") for row in summary["teachers"]] == [str(file), None]


def test_authors_order_is_recorded(tiny, tmp_path):
    config = tiny(graft__evaluate="before", teachers__count=0, graft__binning="authors")
    execute(assemble(config), tmp_path / "run")
    assert {row["epoch"] for row in lines(tmp_path / "run" / "grafts.jsonl")} == {1}
    assert mixer_of(configs.read(tmp_path / "run" / "run.toml")).evaluate == "before"


def test_settings_reach_the_grafting_the_optimizer_and_the_schedule(tiny):
    config = tiny(
        graft__criterion="l1",
        graft__amplitude=0.2,
        optimizer__l2=0.001,
        optimizer__nesterov=True,
        schedule__name="step",
        schedule__every=1,
        schedule__spread=False,
    )
    graft = mixer_of(config)
    assert (type(graft.criterion).__name__, graft.amplitude) == ("L1Norm", 0.2)
    optimizer = assemble(config).peers[0].optimizer
    assert (optimizer.l2, optimizer.nesterov) == (0.001, True)
    settings = optimizer.get_config()["learning_rate"]["config"]
    assert settings["initial_learning_rate"] == 0.1
    assert settings["decay_steps"] == 3  # 87 images of the training part in batches of 32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run__batch_size": 500}, "batch size 500: expected 1"),
        ({"model__name": "resnet_20"}, "Did you mean 'resnet20'"),
        ({"data__name": "digit"}, "Did you mean 'digits'"),
        ({"teachers__files": ["none.keras"]}, r"teacher none\.keras: no such file"),
        ({"teachers__files": ["a", "b"]}, r"names 2 teachers, teachers\.count is 1"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_is_written(tiny, changes, message):
    with pytest.raises(UserError, match=message):
        assemble(tiny(**changes))


@pytest.mark.parametrize(
    ("shape", "classes", "message"),
    [
        ((8, 8, 1), 7, "tells 7 classes apart, the data have 10"),
        ((9, 8, 1), 10, r"takes images of \(9, 8, 1\), the data have \(8, 8, 1\)"),
    ],
)
def test_a_teacher_of_something_else_is_refused(tiny, tmp_path, shape, classes, message):
    file = tmp_path / "teacher.keras"
    models.resnet8(input_shape=shape, classes=classes).save(file)
    with pytest.raises(UserError, match=message):
        assemble(tiny(teachers__files=[str(file)]))


def test_a_file_that_is_no_model_is_refused(tiny, tmp_path):
    file = tmp_path / "teacher.keras"
    models.resnet8(input_shape=(8, 8, 1), classes=10).save(file)
    for content in (b"", b"no model", file.read_bytes()[:-100]):
        file.write_bytes(content)
        said = (
            r"teacher\.keras is no Keras model that can be loaded: it is empty, cut off or damaged"
        )
        with pytest.raises(UserError, match=said):
            assemble(tiny(teachers__files=[str(file)]))


def test_a_directory_of_another_run_is_left_alone(tiny, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.toml").write_text("mine")
    with pytest.raises(UserError, match="holds a run that did not finish: go on with"):
        execute(assemble(tiny()), tmp_path / "run")
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["run.toml"]


def test_the_authors_way_selects_on_the_test_images(tiny, tmp_path):
    config = tiny(
        teachers__count=0, run__select="test", data__validation=0.0, graft__evaluate="before"
    )
    assembly = assemble(config)
    assert assembly.dataset.validation is assembly.dataset.test
    assert len(assembly.dataset.train) == 96
    summary = execute(assembly, tmp_path / "run")
    assert summary["selected_on"] == "test"
    metrics = lines(tmp_path / "run" / "metrics.jsonl")
    for k, peer in enumerate(summary["peers"], start=1):
        own = [row["val_accuracy"] for row in metrics if row["model"] == k]
        assert peer["best_validation_accuracy"] == pytest.approx(max(own))
        assert peer["best_test_accuracy"] == pytest.approx(max(own))
    with pytest.raises(UserError, match=r"run.select is 'test', and data.validation holds"):
        assemble(tiny(run__select="test"))


def test_the_files_own_mean_and_deviation_reach_training_and_evaluation(tiny, tmp_path):
    assembly = assemble(tiny(teachers__count=0, data__mean=[0.25], data__std=[0.5]))
    assert (assembly.train.augment.mean, assembly.train.augment.std) == ((0.25,), (0.5,))
    assert assembly.test.augment.mean == (0.25,)
    summary = execute(assembly, tmp_path / "run")
    again = evaluate_run(tmp_path / "run", peer=1)
    assert again["peer 1"] == pytest.approx(summary["peers"][0]["test_accuracy"])
    resolved = configs.read(tmp_path / "run" / "run.toml")
    assert resolved.data.mean == (0.25,)
    with pytest.raises(UserError, match=r"data.std holds 3 numbers; expected one a channel: 1."):
        assemble(tiny(data__std=[0.2, 0.2, 0.2]))


def test_schedules_of_a_run_file(tiny):
    def rates(**changes):
        assembly = assemble(tiny(teachers__count=0, peers__count=1, **changes))
        schedule = assembly.peers[0].optimizer._learning_rate
        return [float(schedule(step)) for step in range(2 * assembly.train.steps)]

    assert assemble(tiny(teachers__count=0)).train.steps == 3
    halved = rates(schedule__name="cosine-per-step")
    assert halved == pytest.approx([0.05 * (1 + np.cos(np.pi * s / 6)) for s in range(6)], rel=1e-5)
    assert rates(schedule__name="step", schedule__every=1) == pytest.approx([0.1] * 3 + [0.01] * 3)
    warm = rates(schedule__name="step", schedule__every=5, schedule__warmup=2)
    assert warm == pytest.approx([0.1 * (s + 1) / 6 for s in range(6)])


def test_a_run_file_chooses_what_the_classifier_starts_from(tiny):
    def spreads(**changes):
        assembly = assemble(tiny(model__name="wrn-10-2", peers__count=1, **changes))
        heads = [model.get_layer("logits") for model in (*assembly.peers, *assembly.untrained)]
        return [float(np.abs(head.get_weights()[0]).max()) for head in heads]

    bound = 1 / np.sqrt(128)  # of torch's Linear
    alike = {"teachers__count": 1, "teachers__model": "wrn-10-2"}
    assert all(spread > 2 * bound for spread in spreads(**alike))
    assert all(spread <= bound for spread in spreads(model__head_init="torch", **alike))
    peer, teacher = spreads(model__head_init="torch", teachers__model="resnet8")
    assert peer <= bound < teacher
    with pytest.raises(UserError, match=r"model 'resnet8' has no head_init: only wrn-D-K has."):
        assemble(tiny(model__head_init="torch"))


def test_dropout_is_for_networks_that_have_it(tiny):
    assembly = assemble(tiny(model__name="wrn-10-1", model__dropout=0.3, teachers__count=1))
    dropouts = [x for x in assembly.peers[0].layers if isinstance(x, keras.layers.Dropout)]
    assert [layer.rate for layer in dropouts] == [0.3] * 3
    with pytest.raises(UserError, match="model 'resnet8' has no dropout"):
        assemble(tiny(model__dropout=0.3))
