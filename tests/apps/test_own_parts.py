"""Parts of one's own from the command line: where they are looked for, and who may call them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from kgraft_cli import main as program

from kgraft.grafting.mixer import MIXERS

SMALL = [
    *("--peers", "2", "--teachers", "0", "--epochs", "1"),
    *("--limit-train", "80", "--limit-test", "40", "--batch-size", "32"),
]
NETS = '''
import keras
from keras import layers
from kgraft import data


@keras.saving.register_keras_serializable("nets_of_apps")
class Twice(layers.Layer):
    def call(self, x):
        return 2.0 * x


def build(input_shape, classes, width=4):
    """A network."""
    body = [layers.Conv2D(width, 3), Twice(), layers.GlobalAveragePooling2D()]
    return keras.Sequential([keras.Input(input_shape), *body, layers.Dense(classes)])


def load(count=96):
    return data.load("digits", limit_train=count, limit_test=40, validation=0)
'''
MIXER = '''
from dataclasses import dataclass

from kgraft.grafting import EpochMixer, setting


@dataclass(frozen=True)
class Left(EpochMixer):
    """Nothing is mixed at all."""

    name = "left-of-apps"
    peers = least = 2
    share: float = setting(0.5, low=0.0, high=1.0)

    def apply(self, peers, state, moment):
        return state, None
'''


@pytest.fixture
def kgraft(capsys, tmp_path, monkeypatch):
    """Runs the command line in a directory with two modules; exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    Path("nets_of_apps.py").write_text(NETS)
    Path("mix_of_apps.py").write_text(MIXER)
    searched = [folder for folder in sys.path if folder]

    def run(*arguments):
        monkeypatch.setattr(sys, "path", [*searched])
        with pytest.raises(SystemExit) as left:
            program.main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return left.value.code, printed.out, printed.err

    yield run
    for name in ("nets_of_apps", "mix_of_apps"):
        sys.modules.pop(name, None)
    MIXERS.pop("left-of-apps", None)


OWN = ["--model", "nets_of_apps:build", "--set", "model.width=6", *SMALL]


@pytest.mark.core
def test_the_current_directory_is_searched_where_somebody_says_so(kgraft, tmp_path):
    line = (
        "kgraft: model 'nets_of_apps:build' cannot be loaded: there is no module 'nets_of_apps'. "
        f"{tmp_path} has one: --here searches the current directory.\n"
    )
    assert kgraft("fit", *OWN) == (2, "", line)
    code, _, err = kgraft("fit", *OWN, "--here", "--out", "run")
    assert (code, err) == (0, "")
    assert "width = 6" in Path("run/run.toml").read_text()
    assert sys.path[-1] == str(tmp_path)


def test_what_the_directory_holds_stands_before_no_library(kgraft):
    Path("random.py").write_text("raise AssertionError")
    Path("click.py").write_text("raise AssertionError")
    assert kgraft("fit", *OWN, "--here", "--out", "run")[0] == 0


def test_flags_and_settings_may_come_in_any_order(kgraft):
    flags = ["--set", "left-of-apps.share=0.2", "--set", "optimizer.weight_decay=0.1"]
    names = ["--method", "mix_of_apps:Left", "--optimizer", "adamw", "--lr", "0.002"]
    code, _, err = kgraft("fit", "--here", *OWN, *flags, *names, "--out", "run")
    assert (code, err) == (0, "")
    text = Path("run/run.toml").read_text()
    for line in ("share = 0.2", "weight_decay = 0.1", "lr = 0.002", 'name = "adamw"'):
        assert line in text.splitlines()
    assert not {"momentum = 0.9", "dropout = 0.0"} & set(text.splitlines())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "model.widht=1"], "--set model.widht: [model] unknown key 'widht': model 'nets"),
        (["--set", "model.width=x"], "--set model.width: [model] width='x': expected a number."),
        (["--model", "resnet8"], "--set model.width: [model] unknown key 'width'. Known: dropout"),
        (
            ["--set", "optimizer.weight_decay=1"],
            "unknown key 'weight_decay'. Known: backbone, l2, lr, mom",
        ),
        (["--optimizer", "adamw", "--set", "optimizer.momentum=0.9"], "'adamw' has no such argum"),
        (["--method", "mix_of_apps:Left", "--set", "left-of-apps.shar=1"], "Did you mean 'share'?"),
        (["--dataset", "nets_of_apps:laod"], "has no 'laod'. Did you mean 'load'?"),
        (["--weights", "none.keras"], "model.weights none.keras: no such file."),
        (["--trust"], "--trust is for --resume: what you name yourself is called."),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(kgraft, arguments, message):
    before = sorted(Path().iterdir())
    code, out, err = kgraft("fit", "--here", *OWN, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("kgraft: ") and err.count("\n") == 1 and message in err
    assert sorted(own for own in Path().iterdir() if own.name != "__pycache__") == before


def test_a_run_is_read_by_whoever_trusts_it(kgraft):
    flags = ["--dataset", "nets_of_apps:load", "--set", "data.count=80", "--set", "model.width=6"]
    names = ["--model", "nets_of_apps:build", "--here", "--out", "run"]
    assert kgraft("fit", *SMALL, *flags, *names)[0] == 0
    line = (
        'kgraft: run/run.toml: data.name = "nets_of_apps:load" is code that would be called: '
        "--trust says that it may be (--here, that it is in the current directory).\n"
    )
    for command in ("evaluate", "select"):
        assert kgraft(command, "run") == (2, "", line)
        assert kgraft(command, "run", "--here")[0] == 0
        assert kgraft(command, "run", "--trust")[0] == 0  # imported already


@pytest.mark.multiprocess
def test_another_process_imports_the_layers_of_a_runs_model(kgraft):
    assert kgraft("fit", *OWN, "--here", "--out", "run")[0] == 0

    def evaluate(*more):
        searched = os.pathsep.join(folder for folder in sys.path if folder != str(Path.cwd()))
        code = "from kgraft_cli.main import main; main()"
        return subprocess.run(
            [sys.executable, "-P", "-c", code, "evaluate", "run", *more],
            env={**os.environ, "PYTHONPATH": searched},
            capture_output=True,
            text=True,
            check=False,
        )

    refused = evaluate()
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert "Its layers may be those of nets_of_apps:build, which --trust imports" in refused.stderr
    done = evaluate("--here")
    assert (done.returncode, done.stderr) == (0, "") and "ensemble: " in done.stdout


def test_a_run_that_is_broken_off_says_how_it_goes_on(kgraft):
    mixer = Path("mix_of_apps.py")
    end = "        __import__('signal').raise_signal(15)\n        return state, None"
    mixer.write_text(MIXER.replace("        return state, None", end))
    flags = ["--method", "mix_of_apps:Left", "--epochs", "3", "--out", "run"]
    code, out, err = kgraft("fit", *OWN, *flags, "--here")
    assert code == 143 and "kgraft fit --resume run --here" in out + err
    line = 'kgraft: run/run.toml: model.name = "nets_of_apps:build" is code that would be'
    assert kgraft("fit", "--resume", "run")[2].startswith(line)
    mixer.write_text(MIXER)
    sys.modules.pop("mix_of_apps")
    MIXERS.pop("left-of-apps")
    code, _, err = kgraft("fit", "--resume", "run", "--here")
    assert code == 0 and err.count("\n") == 1
    changed = f"kgraft: mix_of_apps:Left: {mixer.resolve()} has changed since the run began (sha256"
    assert err.startswith(changed)
    assert len(Path("run/metrics.jsonl").read_text().splitlines()) == 6


def test_methods_and_models_tell_of_ones_own_too(kgraft):
    code, out, _ = kgraft("methods", "mix_of_apps:Left", "--here")
    assert code == 0 and out.splitlines()[0] == "mix_of_apps:Left"
    assert "Nothing is mixed at all." in out and "share = 0.5" in out
    assert (
        kgraft("methods", "grat")[2] == "kgraft: method 'grat' is unknown. Did you mean 'graft'?\n"
    )
    code, out, _ = kgraft("models", "nets_of_apps:build", "resnet8", "--here")
    rows = [line for line in out.splitlines() if "│" in line]
    assert code == 0 and ["nets_of_apps" in row for row in rows] == [True, False]


@pytest.mark.multiprocess
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_comparison_names_parts_too(kgraft, jobs):
    Path("own.toml").write_text("""
[comparison]
seeds = [0]
[common.run]
epochs = 1
batch_size = 32
[common.data]
name = "nets_of_apps:load"
count = 64
validation = 0.2
[common.model]
width = 6
name = "nets_of_apps:build"
[common.optimizer]
name = "adamw"
weight_decay = 0.05
[entries.baseline]
run.method = "baseline"
[entries.left]
run.method = "mix_of_apps:Left"
left-of-apps.share = 0.3
""")
    code, out, err = kgraft("compare", "own.toml", "--out", "out", "--here", "--jobs", jobs)
    assert (code, err) == (0, "")
    assert "baseline" in out and "left" in out
    assert kgraft("compare", "own.toml", "--out", "out", "--here", "--only-read")[0] == 0
    text = Path("out/left/seed-0/run.toml").read_text()
    assert "width = 6" in text and "count = 64" in text and "share = 0.3" in text
    changed = Path("own.toml").read_text().replace("width = 6", "width = 7")
    Path("own.toml").write_text(changed)
    code, _, err = kgraft("compare", "own.toml", "--out", "out", "--here")
    assert code == 2 and "holds a run with model.width = 6, the comparison wants 7" in err
