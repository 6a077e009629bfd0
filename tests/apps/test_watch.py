"""`kgraft watch` beside a process that trains."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from kgraft_cli import main as program
from kgraft_cli.progress import LiveProgress, PlainProgress
from rich.console import Console

from kgraft.files import has_writer, only_writer

FIT = ["fit", "--peers", "2", "--teachers", "0", "--limit-train", "120", "--limit-test", "40"]
CALL = "import sys; from kgraft_cli.main import main; main(sys.argv[1:])"


@pytest.fixture
def kgraft(capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as left:
            program.main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return left.value.code, printed.out, printed.err

    return run


def started(*arguments):
    return subprocess.Popen(
        [sys.executable, "-c", CALL, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "KERAS_BACKEND": "torch"},
    )


def until(happens, seconds=120.0):
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.multiprocess
def test_a_run_of_another_process_is_watched_until_it_is_killed(tmp_path, kgraft):
    run = tmp_path / "run"
    trains = started(*FIT, "--epochs", 400, "--out", run)
    metrics = run / "metrics.jsonl"
    until(lambda: metrics.is_file() and metrics.stat().st_size)
    if has_writer(run) is None:
        trains.kill()
        trains.communicate()
        pytest.skip("who writes here nobody can tell")
    watches = started("watch", run)
    assert watches.stdout.readline() == "peers: 2 models, 400 epochs\n"
    first, second = (watches.stdout.readline().split(" | ") for _ in range(2))
    until(lambda: trains.poll() is not None or len(metrics.read_text().splitlines()) > 8)
    trains.kill()
    trains.communicate()
    out, err = watches.communicate(timeout=60)
    assert (watches.returncode, err) == (0, "")
    number = int(first[0].removeprefix("peers ").removesuffix("/400"))
    assert second[0] == f"peers {number + 1}/400"
    row = json.loads(metrics.read_text().splitlines()[2 * number - 1])
    assert first[2].startswith(f"2: loss {row['loss']:.4f} acc {row['accuracy']:.2%}")
    assert out.splitlines()[-1] == (
        f"no process that can be seen from here trains in {run}. To go on: "
        f"kgraft fit --resume {run}"
    )
    checkpoints = run / "checkpoints" / "peers"
    for kept, ranks in (("rank-0-of-2", 2), ("rank-1-of-2-replica-0-of-3", 6)):
        (checkpoints / kept).mkdir(parents=True)
        out = kgraft("watch", run)[1]
        assert out.endswith(f"torchrun --nproc-per-node {ranks} -m kgraft_cli fit --resume {run}\n")
        (checkpoints / kept).rmdir()


def test_a_finished_run_shows_what_it_came_to(tmp_path, kgraft):
    run = tmp_path / "run"
    assert kgraft(*FIT, "--epochs", 2, "--out", run)[0] == 0
    code, out, err = kgraft("watch", run)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "peers: 2 models, 2 epochs"
    assert lines[1].startswith("peers 2/2 | 1: loss ") and "left" not in lines[1]
    assert "accuracy on the test images" in lines[2]
    assert lines[-1].endswith(f"everything is in {run}")


@pytest.mark.multiprocess
def test_ctrl_c_ends_the_watching(tmp_path):
    (tmp_path / "run.toml").write_text("[run]\nepochs = 3\n")
    with only_writer(tmp_path):
        watches = started("watch", tmp_path)
        assert watches.stdout.readline() == "teacher 1: 1 model, 3 epochs\n"
        watches.send_signal(signal.SIGINT)
        err = watches.communicate(timeout=60)[1]
    assert (watches.returncode, err) == (130, "kgraft: interrupted.\n")


def test_one_waits_until_somebody_trains(tmp_path, kgraft, monkeypatch):
    run, made = tmp_path / "run", tmp_path / "made"
    assert kgraft(*FIT, "--epochs", 1, "--out", made)[0] == 0
    looks = []

    def later(seconds):
        looks.append(seconds)
        if len(looks) == 3:
            made.rename(run)

    monkeypatch.setattr("time.sleep", later)
    code, out, err = kgraft("watch", "--wait", run)
    assert (code, err, looks) == (0, "", [0.5] * 3)
    lines = out.splitlines()
    assert lines[:2] == [f"waiting until somebody trains in {run}", "peers: 2 models, 1 epochs"]
    assert kgraft("watch", "--wait", run)[1].splitlines()[0] == lines[1]


def test_a_run_that_a_callback_has_stopped_says_so(tmp_path, kgraft, monkeypatch):
    (tmp_path / "stops_of_watch.py").write_text(
        "import keras\n\n\nclass Stops(keras.callbacks.Callback):\n"
        "    def on_epoch_end(self, epoch, logs=None):\n"
        "        self.model.stop_training = epoch == 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    run, said = tmp_path / "run", "stopped after epoch 2 of 5 by a callback"
    fit = kgraft(*FIT, "--epochs", 5, "--callback", "stops_of_watch:Stops", "--out", run)
    watch = kgraft("watch", run)
    for code, out, err in (fit, watch):
        assert (code, err, out.splitlines()[-2]) == (0, "", said)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("nowhere", "nowhere: there is no such directory."),
        (".", "no run's directory, it holds no run.toml."),
    ],
)
def test_a_mistake_is_one_line(tmp_path, kgraft, name, line):
    code, out, err = kgraft("watch", tmp_path / name)
    assert (code, out, err.count("\n")) == (2, "", 1) and line in err


def rows(*numbers):
    return [{"model": n, "loss": 1.0, "accuracy": 0.5} for n in numbers]


def test_what_is_left_follows_from_the_epochs_that_were_seen(capsys):
    now = [100.0]
    console = Console(width=100)
    watched = PlainProgress(console, clock=lambda: now[0])
    watched.begin("peers", 1, 12, 0)
    for now[0], epoch in ((500.0, 4), (510.0, 5), (526.0, 7)):
        watched.epoch("peers", epoch, rows(1))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "peers: 1 model, 12 epochs"
    assert [own.partition(" | loss 1.0000 acc 50.00%")[2] for own in lines[1:]] == [
        "", " | 70 s left", " | 43 s left"
    ]  # fmt: skip
    trained = PlainProgress(console, clock=lambda: now[0])  # it goes on with epoch 4
    trained.begin("peers", 1, 12, 5)
    now[0] += 6.0
    trained.epoch("peers", 4, rows(1))
    assert capsys.readouterr().out.splitlines()[1].endswith(" | 48 s left")


def test_a_watched_bar_counts_epochs(capsys):
    now = [0.0]
    console = Console(width=100, force_terminal=True, color_system=None)
    progress = LiveProgress(console, clock=lambda: now[0])
    progress.begin("peers", 1, 10, 0)
    for now[0], epoch in ((500.0, 4), (560.0, 5)):
        progress.epoch("peers", epoch, rows(1))
    console.print(progress.shown())
    bar = capsys.readouterr().out.splitlines()[-1].split()
    assert bar[-4:] == ["5/10", "epochs,", "left", "0:05:00"]
