import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import pytest
from kgraft_cli import main as program

from kgraft.grafting import EpochMixer
from kgraft.grafting.mixer import MIXERS
from kgraft.runs import directory

SMALL = [
    *("--peers", "2", "--teachers", "0", "--epochs", "1"),
    *("--limit-train", "80", "--limit-test", "40", "--batch-size", "32"),
]


@pytest.fixture
def kgraft(capsys, tmp_path, monkeypatch):
    """Runs the command line in an empty directory; returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        with pytest.raises(SystemExit) as left:
            program.main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return left.value.code, printed.out, printed.err

    return run


def test_a_run_shows_every_epoch_and_ends_with_a_table(kgraft, tmp_path):
    code, out, _ = kgraft("fit", *SMALL, "--teachers", "1", "--teacher-model", "resnet8")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "teacher 1: 1 model, 1 epochs of 3 steps"
    assert any(line.startswith("peers 1/1 | 1: loss ") and " alpha " in line for line in lines)
    assert [line.split(" (")[0] for line in lines if line.startswith("engine: ")] == [
        f"engine: compiled on {keras.config.backend()}"
    ] * 2
    for name in ("peer 1", "peer 2", "ensemble of 2", "teacher 1"):
        assert any(name in line and "%" in line for line in lines)
    (run,) = (tmp_path / "runs").iterdir()
    assert lines[-1].endswith(f"everything is in {run.relative_to(tmp_path)}")
    assert json.loads((run / "summary.json").read_text())["seconds"] > 0


def test_the_engine_can_be_chosen_and_is_named(kgraft):
    code, out, _ = kgraft("fit", *SMALL, "--engine", "eager")
    assert code == 0 and "(it was asked for), 2 models" in out
    code, out, err = kgraft("fit", *SMALL, "--engine", "eagre")
    assert (code, out) == (2, "") and "Did you mean 'eager'" in err


def test_flags_win_over_set_and_set_over_the_file(kgraft, tmp_path):
    Path("mine.toml").write_text("[run]\nepochs = 3\nseed = 5\n[optimizer]\nlr = 0.3\n")
    code, _, _ = kgraft(
        *("fit", "mine.toml", *SMALL, "--set", "optimizer.lr=0.2", "--set", "run.epochs=2"),
        *("--out", "here"),
    )
    assert code == 0
    resolved = Path("here/run.toml").read_text()
    for line in ("epochs = 1", "seed = 5", "lr = 0.2", "count = 2"):
        assert line in resolved.splitlines()


def test_evaluate_reads_a_run_again(kgraft):
    kgraft("fit", *SMALL, "--out", "here")
    summary = json.loads(Path("here/summary.json").read_text())
    code, out, _ = kgraft("evaluate", "here")
    assert code == 0
    assert [line.split(":")[0] for line in out.splitlines()] == ["peer 1", "peer 2", "ensemble"]
    share = f"{summary['ensemble']['test_accuracy']:.2%}"
    assert kgraft("evaluate", "here", "--ensemble")[1] == f"ensemble: {share}\n"
    assert kgraft("evaluate", "here", "--peer", 2)[1].startswith("peer 2: ")


def npz(path="data.npz", **changes):
    rng = np.random.default_rng(0)
    arrays = {
        "x_train": rng.integers(0, 256, (60, 8, 8, 1), np.uint8),
        "y_train": np.arange(60) % 3,
        "x_test": rng.integers(0, 256, (12, 8, 8, 1), np.uint8),
        "y_test": np.arange(12) % 3,
    }
    np.savez(path, **{**arrays, **changes})
    return path


def test_an_npz_file_is_a_data_set(kgraft):
    code, _, err = kgraft(
        *("fit", "--dataset", npz(), "--peers", 1, "--teachers", 0, "--epochs", 1),
        *("--batch-size", 16, "--out", "here"),
    )
    assert (code, err) == (0, "")


def teacher_of_seven_classes():
    from kgraft import models

    models.resnet8(input_shape=(8, 8, 1), classes=7).save("seven.keras")
    return "teachers.files=['seven.keras']"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda: ["--set", "optimizer.momentun=1"], "unknown key 'momentun'. Did you mean 'mom"),
        (lambda: ["--set", "optimiser.lr=1"], "unknown table 'optimiser'. Did you mean 'optimi"),
        (lambda: ["--set", "epochs"], "--set epochs: expected table.key=value"),
        (lambda: ["--peers", "0"], "--peers: [peers] count = 0: expected 1..1024."),
        (lambda: ["--peers", "two"], "Invalid value for '--peers': 'two' is not a valid integer."),
        (lambda: ["--epoch", "2"], "No such option '--epoch'. Did you mean '--epochs'?"),
        (lambda: ["--lr", "-1"], "--lr: [optimizer] lr = -1.0: expected more than 0."),
        (lambda: ["--schedule", "cosin"], "Did you mean 'cosine'?"),
        (lambda: ["--model", "resnet_20"], "model 'resnet_20' is unknown. Did you mean 'resnet20'"),
        (lambda: ["--teacher-model", "wrn-12-1"], "nearest valid depth is 10"),
        (lambda: ["--dataset", "digit"], "data set 'digit' is not known"),
        (lambda: ["--dataset", "none.npz"], "none.npz: no such file"),
        (lambda: ["--batch-size", "2000"], "batch size 2000: expected 1..1298"),
        (lambda: ["--dataset", npz(y_train=np.arange(60) - 1)], "y_train[0] is -1; expected"),
        (lambda: ["--dataset", npz(y_test=np.full(12, 9))], "y_test[0] is 9; expected labels in"),
        (lambda: ["--dataset", npz(x_train=np.zeros((60, 8, 8), np.uint8))], "x_train is uint8 of"),
        (lambda: ["--dataset", npz(x_test=np.zeros((12, 8, 8, 1)))], "x_test is float64 of shape"),
        (lambda: ["none.toml"], "run file none.toml: no such file."),
        (lambda: [npz()], "data.npz cannot be read"),
        (lambda: ["--teachers", "1", "--set", teacher_of_seven_classes()], "tells 7 classes apart"),
    ],
)
def test_a_mistake_is_one_line_exit_code_2_and_nothing_written(kgraft, arguments, message):
    given = arguments()
    before = sorted(Path().iterdir())
    code, out, err = kgraft("fit", *given)
    assert (code, out) == (2, "")
    assert err.startswith("kgraft: ") and err.count("\n") == 1
    assert message in err
    assert sorted(Path().iterdir()) == before


def test_a_file_that_is_not_toml_is_named(kgraft):
    Path("bad.toml").write_text("[run\n")
    code, _, err = kgraft("fit", "bad.toml")
    assert code == 2 and err.startswith("kgraft: bad.toml is not TOML: ")


def test_another_runs_directory_is_left_alone(kgraft):
    kgraft("fit", *SMALL, "--out", "here")
    before = {p: p.stat().st_mtime_ns for p in Path("here").rglob("*")}
    code, _, err = kgraft("fit", *SMALL, "--out", "here")
    assert code == 2 and "output directory here holds another run" in err
    assert {p: p.stat().st_mtime_ns for p in Path("here").rglob("*")} == before


@pytest.mark.parametrize(
    ("out", "end", "message"),
    [
        ("", 2, "--out is empty"),
        ("file", 2, "output file: file is a file; expected a directory."),
        ("file/run", 2, "output file/run: file is a file; expected a directory."),
        ("/proc/run", 1, "/proc/run cannot be written: "),
    ],
)
def test_an_output_that_cannot_be_made_is_told_in_one_line(kgraft, out, end, message):
    Path("file").touch()
    code, printed, err = kgraft("fit", *SMALL, "--out", out)
    assert (code, printed, err.count("\n")) == (end, "", 1)
    assert message in err


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["evaluate", ""], "RUN"),
        (["select", ""], "RUN"),
        (["compare", ""], "COMPARISON"),
        (["fit", ""], "RUNFILE"),
        (["fit", "--resume", ""], "--resume"),
        (["fit", "--data-dir", ""], "--data-dir"),
        (["bench", "--json", ""], "--json"),
        (["weights", "export", "", "-o", "a.pt"], "SOURCE"),
        (["weights", "import", "a.pt", "resnet8", "-o", ""], "--out"),
    ],
)
def test_an_empty_name_is_not_the_working_directory(kgraft, arguments, name):
    line = f"kgraft: {name} is empty: expected a file or a directory.\n"
    assert kgraft(*arguments) == (2, "", line)


@pytest.mark.slow
def test_runs_that_begin_in_the_same_second_have_directories_of_their_own(kgraft, monkeypatch):
    monkeypatch.setattr(directory, "default_path", lambda _: Path("runs/now"))
    for _ in range(3):
        assert kgraft("fit", *SMALL)[0] == 0
    assert sorted(own.name for own in Path("runs").iterdir()) == ["now", "now-2", "now-3"]
    assert all((own / "summary.json").is_file() for own in Path("runs").iterdir())


@pytest.mark.slow
def test_a_run_that_fails_in_its_first_epoch_is_in_nobodys_way(kgraft, monkeypatch):
    """A mixer of one's own is mended, and the same command begins anew, or --resume goes on."""

    @dataclass(frozen=True)
    class Torn(EpochMixer):
        name = "torn"
        peers = least = 2

        def apply(self, peers, state, moment):
            return {"wrong": object()}, None

    for again in (["--method", "torn", *SMALL, "--out", "here"], ["--resume", "here"]):
        monkeypatch.setattr(Torn, "apply", lambda *_: ({"wrong": object()}, None))
        code, _, err = kgraft("fit", "--method", "torn", *SMALL, "--out", "here")
        assert (code, err.count("\n")) == (2, 1) and "its state['wrong'] is an object" in err
        assert not Path("here/summary.json").exists()
        monkeypatch.setattr(Torn, "apply", lambda *_: ({}, None))
        assert kgraft("fit", *again)[0] == 0
        assert Path("here/summary.json").is_file()
        shutil.rmtree("here")
    del MIXERS["torn"]


def test_padding_as_wide_as_the_images_is_refused_before_there_is_a_directory(kgraft):
    line = "kgraft: data.pad is 8, the images' side is 8: expected less, a crop would hold nothing"
    code, _, err = kgraft("fit", *SMALL, "--set", "data.pad=8", "--out", "here")
    assert code == 2 and err.startswith(line) and not Path("here").exists()


def test_what_has_no_part_in_the_method_is_said_in_one_line(kgraft):
    _, out, _ = kgraft("fit", *SMALL, "--peers", "1", "--set", "graft.sharpness=9")
    assert out.count("graft.sharpness: no part in method baseline, which follows from") == 1


def test_a_line_is_said_once_whatever_handlers_the_root_has(kgraft, caplog):
    _, out, err = kgraft("fit", *SMALL)
    assert out.count("engine: ") == 1 and err == "" and not caplog.records


def test_a_file_of_a_run_that_is_cut_off_is_refused_wherever_it_is_read(kgraft):
    kgraft("fit", *SMALL, "--out", "here")
    file = Path("here/run.toml")
    whole = file.read_text()
    table = whole.index("\n\n[model]") + 2  # what is left is TOML
    for length in (1, 20, whole.index("\n"), table, len(whole) - 2):
        file.write_text(whole[:length])
        for command in (["evaluate", "here"], ["select", "here"], ["fit", file, "--out", "new"]):
            code, _, err = kgraft(*command)
            assert (code, err.count("\n")) == (2, 1)
            assert "run.toml is cut off: its last line, '# The end.', is missing" in err
    file.write_text(whole + "[graft]\nevery = 1\n" * ("[graft]" not in whole))
    assert kgraft("evaluate", "here")[0] == 0
    file.write_text("\n".join(whole.splitlines()[2:-2]))  # as it was written before
    assert kgraft("evaluate", "here")[0] == 0
    summary = Path("here/summary.json")
    summary.write_text(summary.read_text()[:200])
    for command in ("evaluate", "select"):
        line = "kgraft: here/summary.json is cut off or was not written by kgraft: copy the run "
        assert kgraft(command, "here") == (2, "", line + "anew.\n")


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (":Swap", "method ':Swap': expected module:Class, e.g. my_package.swap:Swap."),
        ("swap:", "method 'swap:': expected module:Class"),
        (".:Swap", "method '.:Swap': expected module:Class"),
        ("broken_swap:Swap", "cannot be loaded: SyntaxError: invalid syntax (broken_swap.py"),
        ("raising_swap:Swap", "cannot be loaded: RuntimeError: boom (raising_swap.py:1)."),
        ("leaving_swap:Swap", "cannot be loaded: SystemExit: 3 (leaving_swap.py:1)."),
        ("no_swap:Swap", "cannot be loaded: there is no module 'no_swap'."),
    ],
)
def test_a_mixer_that_cannot_be_loaded_is_one_line(kgraft, monkeypatch, method, message):
    monkeypatch.syspath_prepend(".")
    Path("broken_swap.py").write_text("def swap(:")
    Path("raising_swap.py").write_text("raise RuntimeError('boom')")
    Path("leaving_swap.py").write_text("raise SystemExit(3)")
    Path("own.toml").write_text(f'[run]\nmethod = "{method}"\n')
    for given in (["--method", method], ["own.toml"]):
        code, _, err = kgraft("fit", *given)
        assert (code, err.count("\n")) == (2, 1)
        assert message in err


def test_evaluate_refuses_what_is_no_run(kgraft):
    assert kgraft("evaluate", "none") == (
        2,
        "",
        "kgraft: none is no run's directory: it holds no run.toml.\n",
    )
    kgraft("fit", *SMALL, "--out", "here")
    assert "peers 1..2" in kgraft("evaluate", "here", "--peer", 3)[2]
    assert "one or the other" in kgraft("evaluate", "here", "--peer", 1, "--ensemble")[2]


def test_a_backend_that_is_not_installed_is_one_line():
    code = (
        "import importlib.util as u; find = u.find_spec; "
        "u.find_spec = lambda name, *a: None if name == 'jax' else find(name, *a); "
        "from kgraft_cli.main import main; main(['info'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "KERAS_BACKEND": "jax"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "kgraft: backend jax is not installed: pip install 'kgraft[jax]'\n"
