"""Runs that are broken off go on, on every backend; tests/faults kills processes."""

import json
import logging
import shutil
import signal
from pathlib import Path

import keras
import numpy as np
import pytest

from kgraft.engines.interrupts import InterruptHeld
from kgraft.errors import UserError
from kgraft.runs.assembly import assemble
from kgraft.runs.execution import execute
from kgraft.runs.recorder import Silent
from kgraft.runs.stopping import Stopped, Stopping
from kgraft.runs.unfinished import read_unfinished
from kgraft.training.checkpoint_files import CheckpointFiles

TIMES = ("seconds", "images_per_second", "waiting")


class Broken(Exception):
    pass


class Breaks(Silent):
    """An end in the middle of an epoch of a phase."""

    def __init__(self, phase, epoch, step=2):
        self.when = phase, epoch, step

    def step(self, phase, epoch, step):
        if (phase, epoch, step) == self.when:
            raise Broken


def told(path):
    summary = json.loads((path / "summary.json").read_text())
    return {name: value for name, value in summary.items() if name not in TIMES}


def assert_one(whole, out):
    assert told(out) == told(whole)
    for name in ("metrics.jsonl", "grafts.jsonl"):
        assert (out / name).is_file() == (whole / name).is_file()
        if (whole / name).is_file():
            assert (out / name).read_text() == (whole / name).read_text()
    for file in whole.rglob("*.keras"):
        a, b = (keras.models.load_model(run / file.relative_to(whole)) for run in (whole, out))
        for one, other in zip(a.get_weights(), b.get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)
    assert not (out / "checkpoints").exists()


@pytest.mark.core
@pytest.mark.parametrize(
    ("changes", "breaks"),
    [
        ({}, [("teacher 1", 2), ("peers", 1), ("peers", 3)]),
        ({"teachers__count": 0, "run__method": "repr", "repr__full_epochs": 1,
          "repr__pruned_epochs": 1, "repr__cycles": 1}, [("peers", 3)]),
        ({"teachers__count": 0, "run__method": "ema", "peers__count": 1}, [("peers", 2)]),
        ({"teachers__count": 0, "graft__evaluate": "before", "checkpoint__every": 2},
         [("peers", 3)]),
    ],
    ids=["graft+", "repr", "ema", "before"],
)  # fmt: skip
def test_a_run_that_is_broken_off_comes_to_the_same_end(tiny, tmp_path, changes, breaks):
    config = tiny(run__epochs=3, **changes)
    execute(assemble(config), tmp_path / "whole")
    out = tmp_path / "out"
    for number, (phase, epoch) in enumerate(breaks):
        with pytest.raises(Broken):
            execute(assemble(config), out, Breaks(phase, epoch), resume=number > 0)
    assert read_unfinished(out).run.epochs == 3
    execute(assemble(read_unfinished(out)), out, resume=True)
    assert_one(tmp_path / "whole", out)
    resumed = json.loads((out / "environment.json").read_text())["resumed"]
    assert len(resumed) == len(breaks)


def test_a_teacher_that_is_trained_is_not_trained_again(tiny, tmp_path):
    with pytest.raises(Broken):
        execute(assemble(tiny()), tmp_path / "run", Breaks("peers", 1))

    class Phases(Silent):
        def begin(self, phase, models, epochs, steps):
            begun.append(phase)

    begun = []
    execute(assemble(tiny()), tmp_path / "run", Phases(), resume=True)
    assert begun == ["peers"]


def test_a_damaged_checkpoint_is_passed_over(tiny, tmp_path, caplog):
    config = tiny(run__epochs=4, teachers__count=0)
    execute(assemble(config), tmp_path / "whole")
    out = tmp_path / "out"
    with pytest.raises(Broken):
        execute(assemble(config), out, Breaks("peers", 4))
    files = CheckpointFiles(out / "checkpoints" / "peers")
    newest = max(files.epochs())
    (out / "checkpoints" / "peers" / f"epoch-{newest:06d}" / "state.json").write_text("{}")
    with caplog.at_level(logging.WARNING, "kgraft"):
        execute(assemble(config), out, resume=True)
    assert len([line for line in caplog.messages if "is damaged" in line]) == 1
    assert_one(tmp_path / "whole", out)


def test_lines_that_somebody_has_changed_are_missed(tiny, tmp_path):
    config = tiny(run__epochs=3, teachers__count=0)
    with pytest.raises(Broken):
        execute(assemble(config), tmp_path, Breaks("peers", 3))
    lines = tmp_path / "metrics.jsonl"
    written = lines.read_text()
    lines.write_text("")
    with pytest.raises(
        UserError, match=r"metrics\.jsonl has 0 bytes and had at least [\d,]+: somebody"
    ):
        execute(assemble(config), tmp_path, resume=True)
    lines.unlink()
    with pytest.raises(UserError, match=r"metrics\.jsonl is gone; put back what was there"):
        execute(assemble(config), tmp_path, resume=True)
    lines.write_text(written.replace('"epoch": 1', '"epoch": 7'))
    with pytest.raises(UserError, match=r"metrics\.jsonl is not as it was written"):
        execute(assemble(config), tmp_path, resume=True)
    lines.write_text(written)
    environment = tmp_path / "environment.json"
    assert "resumed" not in json.loads(environment.read_text())
    execute(assemble(config), tmp_path, resume=True)
    (resumed,) = json.loads(environment.read_text())["resumed"]
    assert resumed["keras"] == keras.version()
    assert lines.read_text().startswith(written)


def test_who_asks_for_an_end_gets_it_after_the_step(tiny, tmp_path):
    class Asks(Silent):
        def step(self, phase, epoch, step):
            steps.append((phase, epoch, step))
            if (phase, epoch, step) == ("peers", 2, 1):
                stopping._heard(15, None)

    steps, stopping = [], Stopping()
    config = tiny(run__epochs=3, teachers__count=0)
    with pytest.raises(Stopped) as stopped:
        execute(assemble(config), tmp_path / "out", Asks(), stopping)
    assert stopped.value.code == 143
    assert steps[-1] == ("peers", 2, 1)
    assert CheckpointFiles(tmp_path / "out" / "checkpoints" / "peers").epochs() == [1]


@pytest.mark.parametrize(
    ("go_on", "said"),
    [(str, "."), (lambda: "kgraft fit --resume it", ": go on with kgraft fit --resume it")],
)
def test_a_second_interrupt_ends_at_once_also_within_a_step(monkeypatch, capfd, go_on, said):
    ended = []
    monkeypatch.setattr("kgraft.runs.stopping.os._exit", ended.append)
    with Stopping(go_on) as stopping, pytest.raises(Stopped):
        with stopping.held():
            with InterruptHeld():
                signal.raise_signal(signal.SIGINT)
                assert ended == []
                signal.raise_signal(signal.SIGINT)
                assert ended == [130]
                assert capfd.readouterr().err == f"kgraft: ended at once by Ctrl-C{said}\n"


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows")
def test_a_closed_terminal_ends_a_run_but_under_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with Stopping(lambda: "kgraft"), pytest.raises(Stopped) as stopped:
            signal.raise_signal(signal.SIGHUP)
        assert stopped.value.code == 129
        assert str(stopped.value) == "stopped by SIGHUP: go on with kgraft"
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with Stopping():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_cannot_go_on_is_told(tiny, tmp_path):
    (tmp_path / "empty" / ".hidden").mkdir(parents=True)
    (tmp_path / "file").touch()
    for name, said in (
        ("none", "there is no such directory"),
        ("file", "it is a file; expected a run's directory"),
        ("empty", "the directory is empty, no run has begun there"),
        ("", r"no run's directory, it holds no run\.toml"),
    ):
        with pytest.raises(UserError, match=rf"--resume {tmp_path / name}: {said}\."):
            read_unfinished(tmp_path / name)
    execute(assemble(tiny(run__epochs=1, teachers__count=0)), tmp_path / "run")
    with pytest.raises(UserError, match="the run is finished"):
        read_unfinished(tmp_path / "run")
    for damaged in ("", "{", "{}", "[1]"):
        (tmp_path / "run" / "summary.json").write_text(damaged)
        with pytest.raises(UserError, match=r"summary\.json(: | is cut off)"):
            read_unfinished(tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    with pytest.raises(UserError, match="holds a run that did not finish: go on with kgraft fit"):
        execute(assemble(tiny()), tmp_path / "run")
    environment = tmp_path / "run" / "environment.json"
    other = "torch" if keras.config.backend() == "jax" else "jax"
    environment.write_text(json.dumps({"backend": {"name": other}}))
    with pytest.raises(UserError, match=rf"on {other}, this is \w+: set KERAS_BACKEND={other}"):
        read_unfinished(Path(tmp_path / "run"))


def test_a_run_file_that_was_changed_since_is_refused(tiny, tmp_path):
    config = tiny(run__epochs=3, teachers__count=0, data__pad=1)
    with pytest.raises(Broken):
        execute(assemble(config), tmp_path, Breaks("peers", 2))
    file = tmp_path / "run.toml"
    written = file.read_text()
    lr = next(line for line in written.splitlines() if line.startswith("lr = "))
    for old, new, said in (
        (lr, "lr = 0.5", r"run\.toml has optimizer\.lr = 0\.5, the run began with"),
        (
            "epochs = 3\n",
            "",
            r"run\.toml has no run\.epochs, which means \d+, the run began with 3:",
        ),
        ("pad = 1\n", "", r"run\.toml has no data\.pad, the run began with 1: put it back"),
        ("epochs = 3", "epochs = 4", r"run\.toml has run\.epochs = 4, the run began with 3: put"),
    ):
        file.write_text(written.replace(old, new))
        with pytest.raises(UserError, match=said):
            read_unfinished(tmp_path)
    file.write_text(written.replace("keep = 2", "keep = 5"))
    assert read_unfinished(tmp_path).checkpoint.keep == 5


def test_a_missing_environment_is_told_once_something_was_trained(tiny, tmp_path):
    config = tiny(run__epochs=3, teachers__count=0)
    environment = tmp_path / "environment.json"
    with pytest.raises(Broken):
        execute(assemble(config), tmp_path, Breaks("peers", 1))
    for name in ("checkpoints", "teachers", "peers"):
        shutil.rmtree(tmp_path / name, ignore_errors=True)
    environment.unlink()  # as after a kill between the two files
    config = read_unfinished(tmp_path)
    with pytest.raises(Broken):
        execute(assemble(config), tmp_path, Breaks("peers", 1, 1), resume=True)
    assert "settings" in json.loads(environment.read_text())
    with pytest.raises(Broken):
        execute(assemble(read_unfinished(tmp_path)), tmp_path, Breaks("peers", 2), resume=True)
    environment.unlink()
    with pytest.raises(UserError, match=r"environment\.json, which says .* is gone, and metrics"):
        read_unfinished(tmp_path)


def test_a_damaged_teacher_is_made_anew_when_it_is_removed(tiny, tmp_path):
    execute(assemble(tiny()), tmp_path / "whole")
    out = tmp_path / "out"
    with pytest.raises(Broken):
        execute(assemble(tiny()), out, Breaks("peers", 2))
    file = out / "teachers" / "teacher-1.keras"
    file.write_bytes(file.read_bytes()[:1000])
    said = (
        r"damaged; expected a \.keras file\. Remove it: --resume makes it anew, from .*/teacher-1\."
    )
    with pytest.raises(UserError, match=said):
        execute(assemble(tiny()), out, resume=True)
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]).save(file)
    with pytest.raises(UserError, match=r"another network than teacher 1 .* Remove it: --resume"):
        execute(assemble(tiny()), out, resume=True)
    file.unlink()
    execute(assemble(tiny()), out, resume=True)
    assert_one(tmp_path / "whole", out)


def test_checkpoints_that_are_gone_are_told(tiny, tmp_path, caplog):
    config = tiny(run__epochs=3, teachers__count=0)
    execute(assemble(config), tmp_path / "whole")
    out = tmp_path / "out"
    with pytest.raises(Broken):
        execute(assemble(config), out, Breaks("peers", 2))
    with caplog.at_level(logging.WARNING, "kgraft"):
        with pytest.raises(Broken):
            execute(assemble(config), out, Breaks("peers", 3), resume=True)
        assert caplog.messages == []
        shutil.rmtree(out / "checkpoints")
        execute(assemble(config), out, resume=True)
    (line,) = caplog.messages
    saved = out / "checkpoints" / "peers"
    assert line == f"peers: there is no checkpoint in {saved}; trained from the beginning."
    assert_one(tmp_path / "whole", out)
