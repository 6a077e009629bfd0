"""The Python of README and the documents, as a reader pastes it, on small networks and data."""

import importlib
import json
import re
import shlex
import sys
import tomllib
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import keras
import numpy as np
import pytest
from kgraft_cli.main import main

import kgraft
from kgraft import models
from kgraft.grafting.mixer import MIXERS
from kgraft.runs import config as configs
from kgraft.runs import methods
from kgraft.runs.methods import mixer_of
from kgraft.runs.weights import export_weights

ROOT = Path(__file__).parents[1]
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "kgraft" / "docs").glob("*.md")))
TEXT = "".join(document.read_text(encoding="utf-8") for document in DOCUMENTS)
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.S)
OWN_MIXER = next(block for block in BLOCKS if block.startswith("# swap.py"))
SMALL = ["--epochs", "2", "--limit-train", "64", "--limit-test", "20", "--batch-size", "32"]


def blocks_of(name):
    """The code blocks that follow a mark, up to the next one."""
    text = TEXT.split(f"<!-- ci: {name} -->\n")[1].split("<!-- ci: ")[0]
    return [code for _, code in re.findall(r"```(\w+)\n(.*?)```", text, re.S)]


def tiny(classes=10, **unused):
    return models.resnet8(classes=classes, input_shape=(8, 8, 1))


@pytest.mark.parametrize("block", BLOCKS[:2], ids=["callback", "GraftingFit"])
def test_an_example_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, "resnet32", tiny)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(140, 8, 8, 1)).astype("float32"), rng.integers(0, 10, 140)
    teacher = tiny(100)
    given = {"x": x, "y": y, "xv": x[:8], "yv": y[:8], "teacher": teacher, "build_my_cnn": tiny}
    exec(block.replace("epochs=200", "epochs=2"), given)
    if "histories" in given:
        assert [len(history.history["val_loss"]) for history in given["histories"]] == [2] * 4
        saved = keras.models.load_model("student.keras", compile=False)
        np.testing.assert_array_equal(
            saved.get_weights()[0], given["run"].peers[0].get_weights()[0]
        )
    else:
        assert len(given["model"].history.history["val_loss"]) == 2


def kgraft_command(*arguments):
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    return left.value.code


@pytest.fixture
def swap(tmp_path, monkeypatch):
    """The README's own mixer as a module that can be imported."""
    (tmp_path / "swap.py").write_text(OWN_MIXER)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("swap").Swap
    sys.modules.pop("swap")
    MIXERS.pop("swap")


@pytest.mark.core
def test_the_own_mixer_works_in_python(swap):
    models_ = [tiny() for _ in range(2)]
    for model in models_:
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = [model.get_weights() for model in models_]
    plan = kgraft.GraftPlan.of(models_[0])
    moved = {index for group in plan.groups[:3] for index in group.members}
    run = kgraft.GraftingFit(models_, mixer=swap(share=3 / len(plan.groups), every=2))
    x = np.zeros((4, 8, 8, 1), "float32")
    for model in models_:
        model.optimizer.learning_rate = 0.0
    run.fit(x, np.zeros(4), epochs=2, verbose=0)  # of two epochs, the second is mixed
    for index, values in enumerate(zip(*before, strict=True)):
        after = [model.get_weights()[index] for model in models_]
        if "moving" not in models_[0].weights[index].path:
            expected = values[::-1] if index in moved else values
            assert all(np.array_equal(a, b) for a, b in zip(after, expected, strict=True))
    with pytest.raises(kgraft.UserError, match=r"Swap\(share=2\): expected 0\.0\.\.1\.0\."):
        swap(share=2)


@pytest.mark.core
def test_the_own_mixer_works_by_name_in_a_run_file(swap, tmp_path, capsys):
    text = re.search(r"```toml\n(\[run\]\nmethod = \"swap:Swap\".*?)```", TEXT, re.S)[1]
    (tmp_path / "own.toml").write_text(text)
    out = tmp_path / "run"
    assert kgraft_command("fit", str(tmp_path / "own.toml"), *SMALL, "--out", str(out)) == 0
    resolved = configs.read(out / "run.toml")
    assert resolved.run.method == "swap:Swap" and resolved.peers.count == 2
    assert mixer_of(resolved) == swap(share=0.3, every=2)
    assert kgraft_command("fit", str(tmp_path / "own.toml"), "--set", "swap.shar=1") == 2
    assert "[swap] unknown key 'shar'. Did you mean 'share'?" in capsys.readouterr().err
    assert kgraft_command("fit", "--method", "swap:Swop") == 2
    assert "method 'swap:Swop' cannot be loaded: " in capsys.readouterr().err
    assert kgraft_command("fit", "--method", ":Swap") == 2
    assert "method ':Swap': expected module:Class" in capsys.readouterr().err
    (tmp_path / "torn.py").write_text("x = (")
    assert kgraft_command("fit", "--method", "torn:Swap") == 2
    told = "method 'torn:Swap' cannot be loaded: SyntaxError: '(' was never closed"
    assert told in capsys.readouterr().err


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty directory; what is imported from there is forgotten."""
    before, mixers = set(sys.modules), dict(MIXERS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder])
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
    MIXERS.clear()
    MIXERS.update(mixers)


@pytest.mark.core
def test_a_model_in_a_file_of_ones_own_and_adamw_train_as_the_readme_says(here):
    (nets,) = blocks_of("own model")
    mine, commands, *_ = blocks_of("own model and AdamW")
    (here / "nets.py").write_text(nets)
    (here / "mine.toml").write_text(mine)
    for number, line in enumerate(commands.splitlines()):
        command = shlex.split(line)
        assert command[0] == "kgraft"
        more = ["--peers", "2", "--teachers", "0", "--out", f"run-{number}"]
        assert kgraft_command(*command[1:], *SMALL, *more) == 0
        told = json.loads((here / f"run-{number}" / "environment.json").read_text())
        assert told["parts"]["nets:build"]["file"] == str(here / "nets.py")
        peer = keras.models.load_model(here / f"run-{number}/peers/peer-1.keras")
        assert peer.layers[0].filters == 32 and peer.output_shape == (None, 10)
    resolved = configs.read(here / "run-0" / "run.toml")
    assert (resolved.optimizer.name, resolved.optimizer.lr) == ("adamw", 0.002)
    assert resolved.own == {"model.width": 32, "optimizer.weight_decay": 0.05}


@pytest.mark.core
def test_a_third_partys_mixer_and_model_are_words_once_it_is_installed(here, monkeypatch):
    """Installed as pip does it: the package, and beside it what its metadata say."""
    project, commands, *_ = blocks_of("third party")
    groups = tomllib.loads(project)["project"]["entry-points"]
    model = blocks_of("own model")[0].replace("def build(", "def tiny(")
    site = here / "site"
    metadata = site / "kgraft_swap-1.2.dist-info"
    metadata.mkdir(parents=True)
    (site / "kgraft_swap.py").write_text(OWN_MIXER + model)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: kgraft-swap\nVersion: 1.2\n")
    (metadata / "entry_points.txt").write_text(
        "".join(
            f"[{group}]\n" + "".join(f"{word} = {place}\n" for word, place in words.items())
            for group, words in groups.items()
        )
    )
    monkeypatch.syspath_prepend(site)
    arguments = shlex.split(commands)[1:]
    assert kgraft_command(*arguments, *SMALL, "--out", "run") == 0
    parts = json.loads((here / "run" / "environment.json").read_text())["parts"]
    assert set(parts) == {"swap", "tiny"}
    for part in parts.values():
        assert part["file"] == str(site / "kgraft_swap.py")
        assert (part["distribution"], part["version"]) == ("kgraft-swap", "1.2")
    resolved = configs.read(here / "run" / "run.toml")
    assert (resolved.run.method, mixer_of(resolved).share) == ("swap", 0.3)


def test_peers_start_from_one_set_of_weights_as_the_readme_says(here):
    (text, *_) = blocks_of("pretrained")
    (here / "pretrained.toml").write_text(text)
    source = models.resnet20(classes=100, input_shape=(32, 32, 1))
    source.save("source.keras")
    wanted = configs.read("pretrained.toml").model
    export_weights(Path("source.keras"), Path(wanted.weights))
    more = ["--peers", "2", "--teachers", "0", "--out", "run"]
    assert kgraft_command("fit", "pretrained.toml", *SMALL, *more) == 0
    for k in (1, 2):
        peer = keras.models.load_model(here / f"run/peers/peer-{k}.keras")
        same = [
            all(map(np.array_equal, own.get_weights(), source.get_layer(own.name).get_weights()))
            for own in peer.layers
        ]
        names = [layer.name for layer in peer.layers]
        first = names.index(wanted.trainable_from)
        assert all(same[:first]) and not same[first] and not same[-1]


def test_a_package_can_add_a_method(swap, monkeypatch):
    found = [EntryPoint("swapped", "swap:Swap", "kgraft.methods")]
    monkeypatch.setattr(
        methods, "entry_points", lambda **wanted: EntryPoints(found).select(**wanted)
    )
    assert "swapped" in list(methods.METHODS)
    assert methods.METHODS["swapped"] is swap


def test_the_table_of_methods_is_that_of_the_classes():
    rows = [line.split(" | ") for line in TEXT.splitlines() if re.match(r"\| [a-z+-]+ \|", line)]
    named = [
        row[0].removeprefix("| ") for row in rows if row[0].removeprefix("| ") in methods.METHODS
    ]
    assert sorted(set(named)) == sorted(methods.METHODS)
