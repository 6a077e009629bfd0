"""Runs with parts of the user's own: model, data, optimizer, criterion, mixer."""

import json
import logging
import sys

import keras
import numpy as np
import pytest

from kgraft.errors import UserError
from kgraft.grafting.mixer import MIXERS
from kgraft.runs import config as configs
from kgraft.runs import own
from kgraft.runs.assembly import assemble
from kgraft.runs.config import Config
from kgraft.runs.directory import default_path
from kgraft.runs.environment import parts_of
from kgraft.runs.evaluation import evaluate_run
from kgraft.runs.execution import execute
from kgraft.runs.methods import mixer_of, settled
from kgraft.runs.optimizers import OPTIMIZERS
from kgraft.runs.selection import select
from kgraft.runs.unfinished import read_unfinished
from tests.runs.conftest import changed
from tests.runs.test_resume import Breaks, Broken, assert_one

CODE = '''
from dataclasses import dataclass

import keras
import numpy as np
from kgraft import data
from kgraft.grafting import EpochMixer, setting
from keras import layers

calls = []


def build(input_shape, classes, width=4, dropout=0.5, activation="relu"):
    calls.append({"width": width, "dropout": dropout})
    return keras.Sequential(
        [
            keras.Input(input_shape),
            layers.Conv2D(width, 3),
            layers.BatchNormalization(),
            layers.Activation(activation),
            layers.Dropout(dropout),
            layers.GlobalAveragePooling2D(),
            layers.Dense(classes),
        ]
    )


def load(count=90, directory=None):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (count, 8, 8), np.uint8), np.arange(count)[:, None] % 3
    calls.append(directory)
    return (x, y), (x[:12], y[:12])


@keras.saving.register_keras_serializable("mine_of_runs")
class Twice(layers.Layer):
    def call(self, x):
        return 2.0 * x


class Unknown(layers.Layer):
    def call(self, x):
        return 2.0 * x


def layered(input_shape, classes, known=True):
    own = Twice() if known else Unknown()
    last = [layers.GlobalAveragePooling2D(), layers.Dense(classes)]
    return keras.Sequential([keras.Input(input_shape), layers.Conv2D(4, 3), own, *last])


@keras.saving.register_keras_serializable("mine_of_runs")
class Late(layers.Layer):
    """Fails once the network is built."""

    times = 0

    def call(self, x):
        Late.times += 1
        if Late.times > 4:
            raise ValueError("on purpose")
        return x

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


def late(input_shape, classes):
    last = [layers.GlobalAveragePooling2D(), layers.Dense(classes)]
    return keras.Sequential([keras.Input(input_shape), layers.Conv2D(4, 3), Late(), *last])


def soft(input_shape, classes):
    model = build(input_shape, classes)
    model.add(layers.Softmax())
    return model


class Slow(keras.optimizers.AdamW):
    def __init__(self, learning_rate, share=1.0, **options):
        super().__init__(learning_rate, **options)
        self.share = share

    def get_config(self):
        return {**super().get_config(), "share": self.share}


@dataclass(frozen=True)
class Largest:
    power: float = setting(1.0, above=0)

    def information(self, kernels, filter_axes):
        return np.array([
            float(keras.ops.convert_to_numpy(keras.ops.max(keras.ops.abs(own)))) ** self.power
            for own in kernels
        ])


@dataclass(frozen=True)
class Clash:
    every: int = setting(1)

    def information(self, kernels, filter_axes):
        return np.zeros(len(kernels))


@dataclass(frozen=True)
class Left(EpochMixer):
    """Nothing is mixed."""

    name = "left-of-runs"
    peers = least = 2
    share: float = setting(0.5, low=0.0, high=1.0)

    def apply(self, peers, state, moment):
        return state, None


@dataclass(frozen=True)
class Fails(EpochMixer):
    """Fails after the second epoch."""

    name = "fails-of-runs"
    peers = least = 2
    share: float = setting(0.5, low=0.0, high=1.0)

    def __post_init__(self):
        if self.share > 0.9:
            raise ValueError("a share of nearly all")

    def apply(self, peers, state, moment):
        np.zeros(2)[moment.epoch + 1]
        return state, None


def held_out():
    digits = data.load("digits", limit_train=96, limit_test=20, validation=24)
    return data.Dataset(**{**vars(digits), "own_validation": False})
'''


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The module `mine_of_runs`."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "mine_of_runs.py").write_text(CODE)
    monkeypatch.syspath_prepend(folder)
    yield folder / "mine_of_runs.py"
    sys.modules.pop("mine_of_runs", None)
    for name in [name for name in MIXERS if name.endswith("-of-runs")]:
        del MIXERS[name]


ALL = {
    "model__name": "mine_of_runs:build",
    "model__width": 6,
    "data__name": "mine_of_runs:load",
    "data__count": 60,
    "optimizer__name": "mine_of_runs:Slow",
    "optimizer__share": 0.5,
    "optimizer__weight_decay": 0.05,
    "optimizer__lr": 0.01,
    "teachers__count": 0,
    "run__method": "graft",
    "graft__criterion": "mine_of_runs:Largest",
    "graft__power": 2.0,
}


@pytest.mark.core
def test_every_part_of_ones_own_trains_and_is_read_back(tiny, mine, tmp_path):
    config = tiny(**ALL, graft__sharpness=1.0)
    summary = execute(assemble(config), tmp_path / "run")
    assert [row["lr"] for row in summary["peers"]] == pytest.approx([0.005, 0.01])
    resolved = configs.read(tmp_path / "run" / "run.toml")
    assert settled(resolved) == resolved
    assert resolved.own == {
        "model.width": 6,
        "data.count": 60,
        "optimizer.share": 0.5,
        "optimizer.weight_decay": 0.05,
    }
    assert mixer_of(resolved).criterion == sys.modules["mine_of_runs"].Largest(2.0)
    (first, _) = assemble(resolved).peers
    assert first.layers[0].filters == 6
    assert type(first.optimizer).__name__ == "Slow"
    assert (first.optimizer.share, first.optimizer.weight_decay) == (0.5, 0.05)
    rows = [json.loads(line) for line in (tmp_path / "run/grafts.jsonl").read_text().splitlines()]
    trained = keras.models.load_model(tmp_path / "run/peers/peer-1.keras", compile=False)
    assert {row["group"] for row in rows} == {"sequential/conv2d/kernel"}
    assert 0 < rows[-1]["information"] < 1 and trained.count_params() == first.count_params()
    scores = evaluate_run(tmp_path / "run", trusted=True)
    assert scores["peer 1"] == pytest.approx(summary["peers"][0]["test_accuracy"])
    assert select(tmp_path / "run", trusted=True)["ensemble"]["networks"] == 2


@pytest.mark.slow
def test_an_application_of_keras_is_grafted(tiny, tmp_path):
    config = tiny(model__name="MobileNetV3Small", model__alpha=0.35, data__size=32,
                  teachers__count=0, run__epochs=1)  # fmt: skip
    summary = execute(assemble(config), tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run/grafts.jsonl").read_text().splitlines()]
    assert len(rows) > 60 and all(0 < row["coefficient"] < 1 for row in rows)
    scores = evaluate_run(tmp_path / "run")
    assert scores["peer 2"] == pytest.approx(summary["peers"][1]["test_accuracy"])


def test_layers_without_a_name_are_called_alike_in_all_peers(tiny, mine):
    config = tiny(model__name="mine_of_runs:build", model__trainable_from="batch_normalization",
                  teachers__model="mine_of_runs:build")  # fmt: skip
    keras.Sequential([keras.layers.BatchNormalization()])  # takes the first names
    assembly = assemble(config)
    for own_peer in (*assembly.peers, *assembly.untrained):
        assert own_peer.name == "sequential"
        assert [layer.trainable for layer in own_peer.layers] == [False, *[True] * 5]


def test_an_argument_that_nobody_gives_keeps_the_functions_own_default(tiny, mine):
    """`dropout` is a key of kgraft's with another default, which is not the user's word."""
    config = settled(tiny(model__name="mine_of_runs:build", teachers__count=0))
    assert "model.dropout" not in config.flat() and "dropout" not in config.to_toml()
    again = configs.parse(config.to_toml(), "resolved")
    given = settled(changed(again, model__dropout=0.0))
    for wanted, rate in ((config, 0.5), (again, 0.5), (given, 0.0)):
        assemble(wanted)
        assert sys.modules["mine_of_runs"].calls[-1] == {"width": 4, "dropout": rate}
    assert configs.parse(given.to_toml(), "resolved").flat()["model.dropout"] == 0.0


def test_teachers_of_the_peers_architecture_have_its_arguments(tiny, mine):
    alike = tiny(teachers__model="mine_of_runs:build", model__name="mine_of_runs:build",
                 model__width=7)  # fmt: skip
    assert [own.layers[0].filters for own in assemble(alike).untrained] == [7]
    other = tiny(teachers__model="mine_of_runs:build")
    assert [own.layers[0].filters for own in assemble(other).untrained] == [4]


def test_data_of_ones_own_are_limited_resized_and_held_out_as_others(tiny, mine):
    config = tiny(
        data__name="mine_of_runs:load",
        data__count=60,
        data__limit_train=30,
        data__limit_test=6,
        data__size=12,
        data__validation=0.2,
        data__directory="somewhere",
        run__batch_size=8,
        teachers__count=0,
    )
    dataset = assemble(config).dataset
    assert sys.modules["mine_of_runs"].calls[-1] == "somewhere"
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (24, 6, 6)
    assert dataset.train.images.shape[1:] == (12, 12, 1) and dataset.classes == 3
    assert dataset.name == "mine_of_runs:load" and 0 < dataset.mean[0] < 1


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_of_keras_is_made(tiny, name):
    config = settled(tiny(optimizer__name=name, teachers__count=0))
    usual = 0.1 if name == "sgd" else OPTIMIZERS[name]().learning_rate
    assert config.optimizer.lr == pytest.approx(float(usual), rel=1e-6)
    assert configs.parse(config.to_toml(), "resolved").flat() == config.flat()
    assert ("optimizer.momentum" in config.flat()) == (name == "sgd")
    (peer, *_) = assemble(config).peers
    assert isinstance(peer.optimizer, OPTIMIZERS[name])


@pytest.mark.core
@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_adamw_is_keras_adamw_on_the_runs_schedule(tiny, tmp_path, engine):
    """Against `keras.Model.fit` on the same batches, at the schedule's rates."""
    config = tiny(
        optimizer__name="adamw",
        optimizer__lr=0.01,
        optimizer__weight_decay=0.05,
        optimizer__beta_2=0.98,
        run__method="baseline",
        run__engine=engine,
        peers__count=1,
        teachers__count=0,
        schedule__name="constant",
    )
    assembly, twin = assemble(config), assemble(config).peers[0]
    before = assembly.peers[0].get_weights()
    twin.set_weights(before)
    twin.compile(
        keras.optimizers.AdamW(0.01, weight_decay=0.05, beta_2=0.98),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    for epoch in range(2):
        for images, labels in assembly.train.epoch(epoch):
            twin.train_on_batch(images, labels)
    execute(assembly, tmp_path / "run")
    trained = assembly.peers[0].get_weights()
    for one, other, old in zip(trained, twin.get_weights(), before, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 if engine == "eager" else 5e-4)
        assert not np.array_equal(one, old)


@pytest.mark.core
@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer__name": "adamw", "optimizer__weight_decay": 0.05},
        {"optimizer__name": "lion", "run__method": "ema", "peers__count": 1},
        ALL,
    ],
    ids=["adamw", "lion, ema", "one's own"],
)
def test_a_run_that_is_broken_off_comes_to_the_same_end(tiny, mine, tmp_path, changes):
    config = tiny(run__epochs=3, **{"teachers__count": 0, **changes})
    execute(assemble(config), tmp_path / "whole")
    out = tmp_path / "out"
    with pytest.raises(Broken):
        execute(assemble(config), out, Breaks("peers", 2))
    execute(assemble(read_unfinished(out, trusted=True)), out, resume=True)
    assert_one(tmp_path / "whole", out)


def test_a_run_has_the_files_of_its_parts_and_says_which_have_changed(tiny, mine, tmp_path, caplog):
    config = tiny(run__epochs=3, **ALL)
    with pytest.raises(Broken):
        execute(assemble(config), tmp_path / "run", Breaks("peers", 2))
    parts = json.loads((tmp_path / "run/environment.json").read_text())["parts"]
    assert parts == parts_of(settled(config))
    assert set(parts) == {value for key, value in ALL.items() if str(value).startswith("mine_of")}
    assert {own["file"] for own in parts.values()} == {str(mine)}
    caplog.set_level(logging.WARNING, "kgraft")
    read_unfinished(tmp_path / "run", trusted=True)
    assert not caplog.messages
    mine.write_text(f"{CODE}\n\n# mended\n")
    read_unfinished(tmp_path / "run", trusted=True)
    (said,) = caplog.messages
    assert said.startswith(f"{', '.join(parts)}: {mine} has changed since the run began (sha256 ")


def test_a_run_without_parts_of_ones_own_has_none(tiny):
    assert parts_of(settled(tiny(optimizer__name="adamw", model__name="MobileNetV3Small"))) == {}


def test_a_directory_calls_no_function_unless_it_is_trusted(tiny, mine, tmp_path):
    config = tiny(**ALL)
    execute(assemble(config), tmp_path / "run")
    sys.modules["mine_of_runs"].calls.clear()
    for read in (evaluate_run, select):
        with pytest.raises(UserError, match=r"run\.toml: data\.name = \"mine_of_runs:load\" is co"):
            read(tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    with pytest.raises(UserError, match="--trust says that it may be"):
        read_unfinished(tmp_path / "run")
    assert not sys.modules["mine_of_runs"].calls
    for key in ("model__name", "teachers__model", "graft__criterion"):
        config = tiny(**{key: "os:system"})
        with pytest.raises(UserError, match="os:system"):
            own.check_trusted(config, tmp_path)


@pytest.mark.parametrize("key", ["data", "model"])
def test_a_directory_from_elsewhere_runs_no_command(tiny, tmp_path, key):
    """`subprocess.run` is a function that takes whatever a table holds."""
    execute(assemble(tiny(teachers__count=0)), tmp_path / "run")
    file, marker = tmp_path / "run" / "run.toml", tmp_path / "marker"
    name = {"data": "digits", "model": "resnet8"}[key]
    attack = f'name = "subprocess:run"\nargs = ["touch", "{marker}"]'
    file.write_text(file.read_text().replace(f'name = "{name}"', attack))
    for read in (evaluate_run, select) if key == "data" else ():
        with pytest.raises(UserError, match="is code that would be called"):
            read(tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    with pytest.raises(UserError, match="is code that would be called"):
        read_unfinished(tmp_path / "run")
    assert not marker.exists()


def test_layers_of_ones_own_are_registered_or_refused_before_the_training(tiny, mine, tmp_path):
    config = tiny(model__name="mine_of_runs:layered", teachers__count=0)
    execute(assemble(config), tmp_path / "run")
    assert len(evaluate_run(tmp_path / "run", trusted=True)) == 3
    with pytest.raises(UserError, match=r"Unknown.*register_keras_serializable"):
        assemble(changed(config, model__known=False))
    with pytest.raises(UserError, match=r"'mine_of_runs:soft' ends in a softmax"):
        assemble(tiny(model__name="mine_of_runs:soft", teachers__count=0))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[model]\nwidth = 3\nname = 'mine_of_runs:build'\nwidht = 4",
         "r.toml: [model] unknown key 'widht': model 'mine_of_runs:build' has no such argument. D"),
        ("[model]\nname = 'mine_of_runs:build'\nwidth = '3'", "[model] width='3': expected a numb"),
        ("[model]\nname = 'mine_of_runs:build'\nwidth = {a = 1}",
         "r.toml: [model] width = {'a': 1}: expected a finite number, a string, true or false, or"),
        ("[model]\nname = 'mine_of_runs:build'\nwidth = nan", "width = nan: expected a finite num"),
        ("[model]\nname = 'mine_of_runs:build'\nwidth = [[1], [2020-01-01]]", "or a list of such."),
        ("[model]\nname = 'mine_of_runs:build'\n'a b' = 1",
         "r.toml: [model] unknown key 'a b': expected the name of an argument."),
        ("[model]\nname = 'mine_of_runs:build'\nhead_init = 'torch'", "unknown key 'head_init'"),
        ("[model]\nwidth = 3", "r.toml: [model] unknown key 'width'. Known: dropout, head_init, "),
        ("[optimizer]\nname = 'adamw'\nmomentum = 0.9",
         "r.toml: [optimizer] unknown key 'momentum': optimizer 'adamw' has no such argument."),
        ("[optimizer]\nname = 'adamw'\nweight_decy = 0.9", "Did you mean 'weight_decay'?"),
        ("[optimizer]\nname = 'adamw'\nuse_ema = true", "averages of weights are method ema."),
        ("[optimizer]\nname = 'adamw'\nlearning_rate = 0.1", "a run's rate is optimizer.lr"),
        ("[optimizer]\nname = 'adamv'", "r.toml: [optimizer] name = \"adamv\". Did you mean 'adam"),
        ("[optimizer]\nname = 'mine_of_runs:build'", "expected a class of keras.optimizers.Optim"),
        ("[optimizer]\nname = 'mine_of_runs:Slow'", "of its own: expected optimizer.lr."),
        (
            "[optimizer]\nweight_decay = 0.1",
            "[optimizer] unknown key 'weight_decay'. Known: backbone, l2,",
        ),
        ("[data]\nname = 'mine_of_runs:load'\ncuont = 3", "Did you mean 'count'?"),
        ("[data]\nname = 'mine_of_runs:laod'", "has no 'laod'. Did you mean 'load'?"),
        ("[graft]\npower = 2\ncriterion = 'mine_of_runs:Largest'\npowr = 1", "mean 'power'?"),
        ("[graft]\npower = -2\ncriterion = 'mine_of_runs:Largest'", "expected more than 0."),
        ("[graft]\ncriterion = 'mine_of_runs:Largest'\nbins = 3", "does not read graft.bins"),
        ("[graft]\ncriterion = 'mine_of_runs:Clash'\nevery = 3", "Clash has a setting 'every', as"),
        ("[graft]\ncriterion = 'mine_of_runs:Slow'", "expected a class with information(kernels"),
        ("[run]\nmethod = 'mine_of_runs:Left'\n[left-of-runs]\nshara = 1", "Did you mean 'share'?"),
        ("[teachers]\nmodel = 'mine_of_runs:nets'", "model 'mine_of_runs:nets' cannot be loaded"),
    ],
)  # fmt: skip
def test_each_mistake_is_one_line(mine, text, message):
    with pytest.raises(UserError) as refused:
        settled(configs.parse(text, "r.toml"))
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_a_mixer_that_fails_is_told_in_one_line_with_its_file(mine, tiny, tmp_path):
    config = tiny(run__method="mine_of_runs:Fails", teachers__count=0, peers__count=2)
    with pytest.raises(UserError, match=r"^'mine_of_runs:Fails' failed: IndexError: index 2 .*py:"):
        execute(assemble(config), tmp_path / "run")
    with pytest.raises(UserError, match=r"method 'mine_of_runs:Fails' failed: ValueError: a share"):
        settled(configs.parse("[run]\nmethod = 'mine_of_runs:Fails'\n[fails-of-runs]\nshare = 0.95",
                              "r.toml"))  # fmt: skip


@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_a_layer_that_fails_is_told_with_its_own_words(mine, tiny, tmp_path, engine):
    config = tiny(teachers__count=0, peers__count=1, run__engine=engine)
    config = changed(config, model__name="mine_of_runs:late")
    with pytest.raises(
        UserError, match=r"^'mine_of_runs:late' failed: ValueError: on purpose \(mi"
    ):
        execute(assemble(config), tmp_path / "run")


def test_a_sets_own_validation_images_are_used_where_nobody_asks_for_others(mine, tiny, tmp_path):
    config = configs.parse("[data]\nname = 'mine_of_runs:held_out'\n[run]\nepochs = 1", "r.toml")
    config = changed(config, teachers__count=0, peers__count=1, run__batch_size=16)
    assembly = assemble(config)
    assert (len(assembly.dataset.train), len(assembly.dataset.validation)) == (72, 24)
    assert assembly.config.data.validation == 0.0
    summary = execute(assembly, tmp_path / "run")
    again = evaluate_run(tmp_path / "run", peer=1, trusted=True)
    assert again["peer 1"] == pytest.approx(summary["peers"][0]["test_accuracy"])
    with pytest.raises(UserError, match=r"has 24 validation images of its own, and .*: expected 0"):
        assemble(changed(config, data__validation=0.1))


def test_reading_a_file_imports_no_model_no_data_and_no_optimizer(mine):
    configs.parse(
        "[model]\nname = 'mine_of_runs:build'\nwidth = 3\n[data]\nname = 'mine_of_runs:load'\n"
        "[optimizer]\nname = 'mine_of_runs:Slow'\nshare = 3",
        "r.toml",
    )
    assert "mine_of_runs" not in sys.modules


def test_a_criterion_that_is_given_up_leaves_no_setting_behind(mine):
    text = "[run]\nmethod = 'graft'\n[graft]\ncriterion = 'mine_of_runs:Largest'\npower = 2.0"
    config = changed(configs.parse(text, "r.toml"), graft__criterion="entropy")
    with pytest.raises(UserError, match=r"does not read graft\.power"):
        settled(config)


def test_a_runs_directory_has_a_name_that_a_directory_may_have(tiny):
    config = changed(Config(), data__name="a.b:load", model__name="c:d", run__method="graft")
    assert default_path(config).name.startswith("a.b-load-c-d-graft-4p1t-")
