"""Every method by its one word: what it needs, and that it trains."""

import dataclasses
import json

import keras
import numpy as np
import pytest

from kgraft import settings
from kgraft.errors import UserError
from kgraft.grafting import Average, FilterGraft, Graft, L1Norm, Noise, Papa
from kgraft.grafting.mixer import RESERVED
from kgraft.runs import config as configs
from kgraft.runs import selection
from kgraft.runs.assembly import assemble
from kgraft.runs.config import Config
from kgraft.runs.execution import execute, grafting_fit
from kgraft.runs.methods import METHODS, Ensemble, mixer_of, settled, unread_by
from kgraft.runs.scoring import accuracy, predict
from kgraft.runs.selection import select
from kgraft.training.optimizers import SGD
from tests.runs.conftest import changed

SMALL = {
    "run__epochs": 2,
    "run__batch_size": 32,
    "teachers__model": "resnet8",
    "data__limit_train": 96,
    "data__limit_test": 40,
    "repr__full_epochs": 1,
    "repr__pruned_epochs": 1,
    "repr__cycles": 1,
    "papa__every_steps": 2,
}


def small(method):
    """Small settings, without those that the method would refuse."""
    unread = unread_by(METHODS[method], changed(Config(), run__method=method))
    return {key: value for key, value in SMALL.items() if key.replace("__", ".") not in unread}


def name_of(method):
    return method.table.replace("-", "_")


def of(method, **changes):
    return settled(changed(Config(), run__method=method, **changes))


def tiny(config, rate):
    """Two convolutions with batch normalisation: all that any method needs, quick to compile."""
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(4, 3, name="a"),
            keras.layers.BatchNormalization(name="na"),
            keras.layers.ReLU(),
            keras.layers.Conv2D(4, 3, name="b"),
            keras.layers.BatchNormalization(name="nb"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(10),
        ]
    )
    model.compile(
        SGD(rate, use_ema=config.run.method == "ema"),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


@pytest.mark.core
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains(method):
    config = changed(
        Config(), run__method=method, peers__count=max(2, METHODS[method].least), **small(method)
    )
    assembly = assemble(config)
    config = assembly.config
    assembly = dataclasses.replace(
        assembly, peers=[tiny(config, 0.1 / (k + 1)) for k in range(config.peers.count)]
    )
    before = [peer.get_weights() for peer in assembly.peers]
    teachers = [tiny(config, 0.1) for _ in range(config.teachers.count)]
    histories = grafting_fit(assembly, teachers).fit(assembly.train, epochs=2, verbose=0)
    for history, peer, old in zip(histories, assembly.peers, before, strict=True):
        assert len(history.history["loss"]) == 2
        assert np.isfinite(history.history["loss"]).all()
        assert not np.array_equal(peer.get_weights()[0], old[0])
        assert all(np.isfinite(weight).all() for weight in peer.get_weights())


@pytest.mark.skipif(keras.config.backend() != "torch", reason="whole runs are alike everywhere")
@pytest.mark.parametrize("method", METHODS)
def test_every_method_leaves_a_run(method, tmp_path):
    config = changed(Config(), run__method=method, **small(method))
    if METHODS[method].peers > 2:
        config = config.changed("peers.count", 2, "test")
    summary = execute(assemble(config), tmp_path / "run")
    assert summary["method"] == method
    assert all(0 <= row["test_accuracy"] <= 1 for row in summary["peers"])
    resolved = configs.read(tmp_path / "run" / "run.toml")
    assert resolved.run.method == method
    assert settled(resolved) == resolved
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(row["loss"]) for row in rows)


def test_no_method_has_a_table_that_is_everybodys():
    assert set(configs.TABLES) < set(RESERVED)


def test_numbers_follow_from_the_method_unless_given():
    assert (of("baseline").peers.count, of("baseline").teachers.count) == (1, 0)
    assert (of("graft+").peers.count, of("graft+").teachers.count) == (4, 1)
    assert (of("distill").peers.count, of("distill").teachers.count) == (1, 1)
    assert of("mutual").peers.count == 2
    assert of("baseline", peers__count=3).peers.count == 3


@pytest.mark.parametrize(
    ("peers", "teachers", "method"),
    [(1, 0, "baseline"), (2, 0, "graft"), (1, 1, "distill"), (4, 1, "graft+")],
)
def test_without_a_word_the_method_follows_from_the_numbers(peers, teachers, method):
    config = changed(Config(), peers__count=peers, teachers__count=teachers)
    assert settled(config).run.method == method


@pytest.mark.parametrize(
    ("method", "changes", "text"),
    [
        ("graft", {"peers__count": 1}, "peers.count = 1: expected 2 or more"),
        ("mutual", {"peers__count": 1}, "peers.count = 1: expected 2 or more"),
        ("distill", {"teachers__count": 0}, "teachers.count = 0: expected 1 or more"),
        ("graft", {"teachers__count": 1}, "graft has no teachers"),
        ("repr", {"run__epochs": 25}, "need 90, run.epochs is 25"),
    ],
)
def test_numbers_that_a_method_cannot_have_are_refused(method, changes, text):
    with pytest.raises(UserError, match=text.replace(".", r"\.")):
        of(method, **changes)


@pytest.mark.parametrize(
    ("method", "changes", "text"),
    [
        (
            "papa",
            {"graft__sharpness": 9.0},
            "papa does not read graft.sharpness: take that out. It ",
        ),
        ("papa-all", {"papa__rate": 0.5}, "papa-all does not read papa.rate"),
        ("papa", {"papa_all__every": 3}, "papa does not read papa-all.every"),
        ("papa", {"graft__epochs": 3}, "does not read graft.epochs"),
        (
            "graft",
            {"fixed__alpha": 0.3},
            "graft does not read fixed.alpha: take that out. It reads ",
        ),
        ("filter-graft", {"graft__bins": 3}, "does not read graft.bins"),
        ("graft", {"graft__criterion": "l1", "graft__bins": 3}, "does not read graft.bins"),
        (
            "graft",
            {"graft__criterion": "filter-entropy", "graft__binning": "authors"},
            "method graft with graft.criterion = 'filter-entropy' does not read graft.binning",
        ),
        ("graft", {"teachers__temperature": 3.0}, "graft does not read teachers.temperature"),
        (
            "baseline",
            {"ema__decay": 0.5},
            "ema.decay: take that out. It reads no method's settings.",
        ),
        ("internal", {"noise__decay": 0.5}, "It reads internal.every, internal.epochs, internal."),
        ("repr", {"graft__every": 2, "run__epochs": 90}, "repr does not read graft.every"),
        ("repr", {"graft__epochs": 5, "run__epochs": 90}, "repr does not read graft.epochs"),
        ("repr", {"graft__evaluate": "before", "run__epochs": 90}, "read graft.evaluate"),
        (None, {"papa__rate": 0.5}, "graft+ does not read papa.rate"),
    ],
)
def test_settings_that_a_method_does_not_read_are_refused(method, changes, text):
    with pytest.raises(UserError) as refused:
        of(method, **changes)
    assert text in str(refused.value) and "\n" not in str(refused.value)


def test_what_has_no_part_in_a_method_that_follows_from_the_numbers_is_said_once(caplog):
    caplog.set_level("INFO", "kgraft")
    config = settled(changed(Config(), graft__sharpness=9.0, peers__count=1))
    said = (
        "graft.sharpness: no part in method distill, which follows from peers.count = 1 and "
        "teachers.count = 1"
    )
    assert [record.getMessage() for record in caplog.records] == [said]
    assert settled(config) == config and len(caplog.records) == 1


def test_a_run_file_may_describe_the_grafting_and_teachers_it_would_have():
    described = changed(Config(), graft__sharpness=9.0, teachers__temperature=3.0)
    baseline = settled(changed(described, peers__count=1, teachers__count=0))
    assert baseline.run.method == "baseline"
    assert (baseline.methods, baseline.teachers.temperature) == ({}, 2.0)
    assert settled(baseline) == baseline
    assert mixer_of(settled(described)).sharpness == 9.0
    assert of("graft", teachers__count=0, teachers__temperature=3.0).teachers.temperature == 2.0


def test_a_resolved_run_file_holds_no_other_methods_tables():
    text = of("papa").to_toml()
    assert "[papa]" in text and "[graft]" not in text and "every_epochs" not in text
    assert settled(configs.parse(text, "resolved")) == of("papa")


OTHERS = {  # than the defaults
    **{"criterion": "l1", "bins": 7, "binning": "authors", "amplitude": 0.3, "sharpness": 9.0},
    **{"decimals": 2, "grouping": "authors", "blend_frozen": True, "revive": True, "biases": False},
    **{"every": 3, "epochs": 4, "evaluate": "before", "threshold": 0.2, "decay": 0.5, "rate": 0.9},
    **{"every_steps": 7, "lr_scaling": "none", "share": 0.2, "by_depth": False, "weight": 2.0},
    **{"full_epochs": 2, "pruned_epochs": 3, "cycles": 4, "temperature": 3.0, "alpha": 0.3},
    **{"views": False, "last": 3},
}


@pytest.mark.parametrize("name", METHODS)
def test_every_setting_of_a_method_reaches_it(name):
    method = METHODS[name]
    for key, owner in settings.keys_of(method).items():
        mixer = mixer_of(of(name, run__epochs=999, **{f"{name_of(method)}__{key}": OTHERS[key]}))
        if key == "criterion":
            assert mixer.criterion == L1Norm()
        else:
            assert getattr(mixer if owner is method else mixer.criterion, key) == OTHERS[key]


def test_settings_reach_the_mixer():
    assert mixer_of(of("papa", papa__rate=0.9, papa__every_steps=7)) == Papa(0.9, 7)
    assert mixer_of(of("papa", papa__lr_scaling="none")) == Papa(lr_scaling="none")
    assert mixer_of(of("graft", graft__blend_frozen=True)).blend_frozen
    assert mixer_of(of("noise", run__seed=3)) == Noise(decay=0.975, seed=3)
    assert mixer_of(of("filter-graft", filter_graft__biases=False)) == FilterGraft(biases=False)
    assert isinstance(mixer_of(of("papa-all")), Average) and mixer_of(of("papa-all")).every == 5
    assert mixer_of(of("graft", graft__sharpness=3.0)) == Graft(
        criterion=mixer_of(of("graft")).criterion, sharpness=3.0
    )
    assert type(mixer_of(of("ensemble"))) is Ensemble


@pytest.mark.core
def test_ema_ends_with_the_averages_and_validates_them(tmp_path):
    """A decay of 0 averages nothing: the run is the baseline's, to the last bit."""
    plain = execute(
        assemble(changed(Config(), run__method="baseline", **small("baseline"))), tmp_path / "a"
    )
    none = execute(
        assemble(changed(Config(), run__method="ema", ema__decay=0.0, **small("ema"))),
        tmp_path / "b",
    )
    some = execute(
        assemble(changed(Config(), run__method="ema", ema__decay=0.5, **small("ema"))),
        tmp_path / "c",
    )
    assert none["peers"] == plain["peers"]
    a, b, c = (
        keras.models.load_model(tmp_path / name / "peers/peer-1.keras", compile=False)
        for name in "abc"
    )
    for x, y in zip(a.get_weights(), b.get_weights(), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-6)
    assert not np.allclose(a.get_weights()[0], c.get_weights()[0])
    rows = [json.loads(line) for line in (tmp_path / "c/metrics.jsonl").read_text().splitlines()]
    held_out = assemble(changed(Config(), run__method="ema", **small("ema")))
    labels = held_out.dataset.validation.labels
    best = some["peers"][0]["best_epoch"]
    for name, row in (("peer-1", rows[-1]), ("peer-1-best", rows[best - 1])):
        saved = keras.models.load_model(tmp_path / "c/peers" / f"{name}.keras", compile=False)
        logits = predict(saved, held_out.validation)
        loss = keras.ops.convert_to_numpy(saved.loss(labels, logits))
        assert row["val_accuracy"] == pytest.approx(accuracy(logits, labels), abs=1e-6)
        assert row["val_loss"] == pytest.approx(float(loss), rel=1e-4)
    assert some["peers"][0]["last_epoch"] == 2


@pytest.mark.core
def test_selection_measures_everything_on_the_same_images_and_saves_the_soups(tmp_path):
    config = changed(Config(), run__method="papa", peers__count=2, **small("papa"))
    summary = execute(assemble(config), tmp_path / "run")
    found = select(tmp_path / "run")
    assert list(found) == ["best peer", "uniform soup", "greedy soup", "ensemble"]
    rows = summary["peers"]
    best = max(rows, key=lambda row: row["validation_accuracy"])
    assert found["best peer"]["test_accuracy"] == pytest.approx(best["test_accuracy"])
    assert found["ensemble"]["test_accuracy"] == pytest.approx(summary["ensemble"]["test_accuracy"])
    assert found["ensemble"]["networks"] == 2
    soup = keras.models.load_model(tmp_path / "run" / "soup-uniform.keras", compile=False)
    peers = [
        keras.models.load_model(tmp_path / f"run/peers/peer-{k}.keras", compile=False)
        for k in (1, 2)
    ]
    for weight, a, b in zip(soup.weights, *(peer.get_weights() for peer in peers), strict=True):
        if "moving" not in weight.path and "seed" not in weight.path:
            np.testing.assert_allclose(keras.ops.convert_to_numpy(weight), (a + b) / 2, atol=1e-6)


def test_statistics_of_a_soup_come_from_images_as_they_were_trained_on(tmp_path, monkeypatch):
    config = changed(Config(), run__method="ensemble", peers__count=2, **small("ensemble"))
    execute(assemble(config), tmp_path / "run")
    used = []
    monkeypatch.setattr(selection, "reestimate_statistics", lambda _, b: used.append(list(b)))
    select(tmp_path / "run")
    expected = list(assemble(config).train.epoch(0))
    assert config.data.pad is None and assemble(config).config.data.pad > 0
    for (images, labels), (own, others) in zip(used[0], expected, strict=True):
        assert np.array_equal(*map(keras.ops.convert_to_numpy, (images, own)))
        assert np.array_equal(*map(keras.ops.convert_to_numpy, (labels, others)))


def test_a_run_can_teach(tmp_path):
    teacher = changed(Config(), run__method="baseline", **small("baseline"))
    execute(assemble(teacher), tmp_path / "teacher")
    config = changed(
        Config(),
        run__method="distill",
        teachers__files=[str(tmp_path / "teacher")],
        **small("distill"),
    )
    assembly = assemble(config)
    assert len(assembly.loaded) == 1 and not assembly.untrained
    taught = keras.models.load_model(tmp_path / "teacher/peers/peer-1.keras", compile=False)
    for a, b in zip(assembly.loaded[0].get_weights(), taught.get_weights(), strict=True):
        assert np.array_equal(a, b)
