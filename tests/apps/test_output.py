"""Output that cannot be written, or that nobody reads any more."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from kgraft_cli import main as program

from kgraft.engines.stepper import Stepper

SMALL = [
    *("fit", "--peers", "2", "--teachers", "0", "--epochs", "2"),
    *("--limit-train", "80", "--limit-test", "40", "--batch-size", "32", "--out", "here"),
]
FULL = "kgraft: output cannot be written: No space left on device"
full_disk = pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux")


def closed():
    """A pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


def full():
    return Path("/dev/full").open("w")


def run(arguments, monkeypatch, capsys, stream, name="stdout"):
    with stream, monkeypatch.context() as patch, pytest.raises(SystemExit) as left:
        patch.setattr(sys, name, stream)
        program.main(arguments)
    return left.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("make", "said"),
    [pytest.param(full, FULL, marks=full_disk), (closed, "kgraft: output was closed")],
)
def test_a_run_whose_output_breaks_says_how_to_go_on(make, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    line = f"{said}: go on with kgraft fit --resume here\n"
    assert run(SMALL, monkeypatch, capsys, make()) == (1, line)
    with pytest.raises(SystemExit) as left:
        program.main(["fit", "--resume", "here"])
    assert left.value.code == 0
    assert json.loads(Path("here/summary.json").read_text())["peers"]


def test_a_run_whose_output_is_closed_in_between_has_saved_its_last_epoch(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    reader, writer = os.pipe()
    real, seen = Stepper.step, []

    def step(self, data):
        seen.append(0)
        if len(seen) == 8:  # in the second epoch
            os.close(reader)
        return real(self, data)

    monkeypatch.setattr(Stepper, "step", step)
    code, err = run(SMALL, monkeypatch, capsys, os.fdopen(writer, "w"))
    assert (code, err.splitlines()[-1]) == (
        1,
        "kgraft: output was closed: go on with kgraft fit --resume here",
    )
    assert [own.name for own in Path("here/checkpoints/peers").glob("epoch-*")]


@full_disk
def test_what_cannot_be_told_still_has_its_exit_code(monkeypatch, capsys):
    assert run(["fti"], monkeypatch, capsys, full(), "stderr") == (2, "")


@pytest.mark.parametrize(
    ("make", "said"), [pytest.param(full, FULL + ".\n", marks=full_disk), (closed, "")]
)
def test_the_interpreters_end_adds_nothing(make, said):
    """A command before `| head` ends as others do: without a line, there is nothing to go on."""
    code = "from kgraft_cli.main import main; main(['--help'])"
    with make() as stream:
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdout=stream, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, said)


def test_a_table_before_head_ends_without_a_line(monkeypatch, capsys):
    assert run(["methods"], monkeypatch, capsys, closed()) == (1, "")
