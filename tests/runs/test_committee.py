"""A committee and its student: who is trained, for how long, from what, and on what."""

import json

import keras
import numpy as np
import pytest

import kgraft
from kgraft.errors import UserError
from kgraft.grafting import Graft, Independent
from kgraft.grafting.lawa import mean_weights
from kgraft.runs import config as configs
from kgraft.runs.assembly import assemble, seed_of, teacher_seed
from kgraft.runs.execution import execute
from kgraft.runs.methods import settled
from kgraft.runs.scoring import accuracy, predict


def committee(tiny, **changes):
    options = {
        "run__method": "committee",
        "peers__count": 1,
        "teachers__count": 2,
        "teachers__model": "resnet8",
    }
    return tiny(**{**options, **changes})


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def loaded(path):
    return keras.models.load_model(path).get_weights()


def equal(own, other):
    return all(np.array_equal(a, b) for a, b in zip(own, other, strict=True))


def test_it_is_four_networks_like_the_peers_unless_somebody_says_more():
    parse = configs.parse
    plain = settled(parse('[run]\nmethod = "committee"\n[model]\nname = "resnet20"', "a"))
    assert (plain.peers.count, plain.teachers.count) == (1, 4)
    assert plain.teachers.model == "resnet20"
    other = settled(
        parse('[run]\nmethod = "committee"\n[teachers]\nmodel = "resnet32"\ncount = 3', "b")
    )
    assert (other.teachers.count, other.teachers.model, other.model.name) == (
        3,
        "resnet32",
        "resnet8",
    )
    assert settled(settled(plain)) == plain
    lesson = (4.0, 2.0, 0.0)
    for taught in (plain.teachers, other.teachers):
        assert (taught.temperature, taught.weight, taught.labels) == lesson
    assert plain.teachers.epochs == plain.run.epochs // 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[teachers]\ntemperature = 2.0\nepochs = 9", (2.0, 2.0, 0.0, 9)),
        ("[teachers]\nlabels = 1.0\nweight = 1.0", (4.0, 1.0, 1.0, 20)),
        ('[teachers]\nfiles = ["a", "b", "c", "d"]', (4.0, 2.0, 0.0, None)),
        ('[schedule]\nname = "step"', (4.0, 2.0, 0.0, None)),  # whose steps would come too late
        ('[schedule]\nname = "cosine-per-step"', (4.0, 2.0, 0.0, 20)),
    ],
)
def test_what_nobody_says_of_a_committee_is_what_won(text, expected):
    own = settled(configs.parse(f'[run]\nmethod = "committee"\nepochs = 60\n{text}', "a")).teachers
    assert (own.temperature, own.weight, own.labels, own.epochs) == expected


def test_other_students_keep_the_papers_lesson():
    own = settled(configs.parse('[run]\nmethod = "distill"\nepochs = 60', "a")).teachers
    assert (own.temperature, own.weight, own.labels, own.epochs) == (2.0, 1.0, 1.0, None)
    assert own.model == "resnet20"


@pytest.mark.core
def test_the_student_is_what_a_distiller_makes_of_it(tiny, tmp_path):
    config = committee(tiny, teachers__epochs=2, optimizer__lr=0.01)  # rounding stays small
    summary = execute(assemble(config), tmp_path / "run")
    assert [row["teacher"] for row in summary["teachers"]] == [1, 2]
    assert len(summary["peers"]) == 1
    teachers = [
        keras.models.load_model(tmp_path / "run" / "teachers" / f"teacher-{m}.keras")
        for m in (1, 2)
    ]
    again = assemble(config)
    keras.utils.set_random_seed(seed_of(config, 0))
    run = kgraft.GraftingFit(
        again.peers,
        teachers,
        mixer=Independent(),
        temperature=4.0,
        distillation_weight=2.0,
        label_weight=0.0,
        seed=config.run.seed,
    )
    run.fit(again.train, epochs=config.run.epochs, verbose=0)
    expected = loaded(tmp_path / "run" / "peers" / "peer-1.keras")
    for own, other in zip(again.peers[0].get_weights(), expected, strict=True):
        np.testing.assert_allclose(own, other, atol=2e-5)


def test_what_all_teachers_say_together_is_in_the_summary(tiny, tmp_path):
    config = committee(tiny)
    assembly = assemble(config)
    summary = execute(assembly, tmp_path / "run")
    together = sum(
        np.exp(z - z.max(axis=-1, keepdims=True))
        / np.exp(z - z.max(axis=-1, keepdims=True)).sum(axis=-1, keepdims=True)
        for z in (
            np.concatenate(
                [
                    keras.ops.convert_to_numpy(own(x, training=False))
                    for x, _ in assembly.test.epoch(0)
                ]
            )
            for own in assembly.untrained
        )
    )
    right = (together.argmax(axis=-1) == assembly.dataset.test.labels).mean()
    assert summary["committee"]["test_accuracy"] == pytest.approx(right)


def test_teachers_have_epochs_of_their_own(tiny, tmp_path):
    execute(assemble(committee(tiny, teachers__epochs=4)), tmp_path / "run")
    rows = lines(tmp_path / "run" / "metrics.jsonl")
    by_phase = {phase: [r for r in rows if r["phase"] == phase] for phase in ("teacher 2", "peers")}
    assert [row["epoch"] for row in by_phase["teacher 2"]] == [1, 2, 3, 4]
    assert [row["epoch"] for row in by_phase["peers"]] == [1, 2]
    cosine = [0.05 * (1 + np.cos(np.pi * epoch / 4)) for epoch in range(4)]
    assert [row["lr"] for row in by_phase["teacher 2"]] == pytest.approx(cosine)
    assert [row["lr"] for row in by_phase["peers"]] == pytest.approx([0.1, 0.05])


def test_without_the_labels_only_the_teachers_count(tiny, tmp_path):
    config = committee(tiny, teachers__labels=0.0, teachers__weight=3.0, data__validation=0.0)
    execute(assemble(config), tmp_path / "run")
    rows = [r for r in lines(tmp_path / "run" / "metrics.jsonl") if r["phase"] == "peers"]
    for row in rows:
        assert row["student_loss"] > 0.5  # told, and not learnt from
        assert row["loss"] == pytest.approx(3.0 * row["distillation_loss"], rel=1e-5)


@pytest.mark.core
def test_what_the_labels_weigh_is_not_seen_in_the_validation(tiny, tmp_path):
    config = committee(
        tiny, teachers__labels=0.25, teachers__start="teacher", optimizer__lr=1e-12, run__epochs=1
    )
    config = config.changed("teachers.epochs", 2, "test")
    assembly = assemble(config)
    execute(assembly, tmp_path / "run")
    (row,) = [r for r in lines(tmp_path / "run" / "metrics.jsonl") if r["phase"] == "peers"]
    expected = 0.25 * row["student_loss"] + 2.0 * row["distillation_loss"]
    assert row["loss"] == pytest.approx(expected, rel=1e-5)
    student = keras.models.load_model(tmp_path / "run" / "peers" / "peer-1.keras")
    student.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    (x, y), *_ = assembly.validation.epoch(0)
    assert row["val_loss"] == pytest.approx(float(student.evaluate(x, y, verbose=0)), rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"teachers__labels": 0.0, "teachers__weight": 0.0}, "nothing would be learnt"),
        ({"teachers__grafted": True, "teachers__count": 1}, r"grafted is for .* it trains 1"),
        (
            {"teachers__files": ["a.keras", "b.keras"], "teachers__epochs": 7},
            r"epochs is for .* it trains 0",
        ),
    ],
)
def test_lessons_of_nothing_are_refused(tiny, changes, said):
    with pytest.raises(UserError, match=said):
        settled(committee(tiny, **changes))


def test_the_figures_of_averaged_networks_are_of_what_is_saved(tiny, tmp_path):
    options = {"run__method": "lawa", "run__epochs": 3, "peers__count": 2, "teachers__count": 0}
    assembly = assemble(tiny(lawa__last=2, schedule__name="constant", **options))
    summary = execute(assembly, tmp_path / "run")
    labels = assembly.dataset.validation.labels
    for row in summary["peers"]:
        peer = keras.models.load_model(tmp_path / "run" / "peers" / f"peer-{row['peer']}.keras")
        assert row["validation_accuracy"] == accuracy(predict(peer, assembly.validation), labels)


@pytest.mark.parametrize("start", ["teacher", "soup"])
def test_a_student_may_start_from_its_teachers(start, tiny, tmp_path):
    config = committee(tiny, teachers__start=start, optimizer__lr=1e-12, run__epochs=1)
    config = config.changed("teachers.epochs", 2, "test")
    execute(assemble(config), tmp_path / "run")
    teachers = [loaded(tmp_path / "run" / "teachers" / f"teacher-{m}.keras") for m in (1, 2)]
    expected = teachers[0] if start == "teacher" else mean_weights(teachers)
    found = keras.models.load_model(tmp_path / "run" / "peers" / "peer-1.keras")
    moved = {id(w) for w in found.trainable_weights}
    for weight, value in zip(found.weights, expected, strict=True):
        if id(weight) in moved:  # statistics follow the batches
            np.testing.assert_allclose(
                weight.numpy() if hasattr(weight, "numpy") else weight, value, atol=1e-6
            )


def test_a_student_of_another_architecture_starts_afresh(tiny):
    config = committee(tiny, teachers__model="resnet20", teachers__start="soup")
    with pytest.raises(UserError, match=r"teachers.start is 'soup', and teacher 1 .* another netw"):
        assemble(config)


def test_a_grafted_committee_is_a_ring(tiny, tmp_path):
    config = committee(tiny, teachers__grafted=True, teachers__epochs=2)
    execute(assemble(config), tmp_path / "run")
    rows = lines(tmp_path / "run" / "metrics.jsonl")
    assert [(r["phase"], r["model"]) for r in rows[:4]] == [("teachers", k) for k in (1, 2)] * 2
    grafts = lines(tmp_path / "run" / "grafts.jsonl")
    assert {(row["phase"], row["epoch"]) for row in grafts} == {("teachers", 1), ("teachers", 2)}
    again = assemble(config)
    keras.utils.set_random_seed(teacher_seed(config, 0))
    run = kgraft.GraftingFit(again.untrained, mixer=Graft(), seed=config.run.seed)
    run.fit(again.teacher_stream(0), epochs=config.run.epochs, verbose=0)
    for m, own in enumerate(again.untrained, 1):
        expected = loaded(tmp_path / "run" / "teachers" / f"teacher-{m}.keras")
        for a, b in zip(own.get_weights(), expected, strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5)


def test_committees_of_files_are_not_trained_anew(tiny, tmp_path):
    execute(assemble(tiny(teachers__count=0, peers__count=2)), tmp_path / "members")
    files = tuple(str(tmp_path / "members" / "peers" / f"peer-{k}.keras") for k in (1, 2))
    config = committee(tiny, teachers__files=files)
    summary = execute(assemble(config), tmp_path / "run")
    assert [row["file"] for row in summary["teachers"]] == list(files)
    assert not (tmp_path / "run" / "teachers").exists()
