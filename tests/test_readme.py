"""The README's Python, as a reader pastes it, on a small network and small data."""

import importlib
import re
import sys
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

TEXT = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.S)
OWN_MIXER = next(block for block in BLOCKS if block.startswith("# swap.py"))


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
    flags = ["--epochs", "2", "--limit-train", "64", "--limit-test", "20", "--batch-size", "32"]
    assert kgraft_command("fit", str(tmp_path / "own.toml"), *flags, "--out", str(out)) == 0
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
