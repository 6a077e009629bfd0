"""What a terminal shows while a run goes on, on a screen of our own."""

import fcntl
import io
import logging
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest
from kgraft_cli.figures import Figures
from kgraft_cli.messages import messages_on
from kgraft_cli.progress import (
    LiveProgress,
    PlainJobs,
    PlainProgress,
    jobs_on,
    progress_on,
)
from rich.console import Console

RUN = """
import logging, os, sys, time
from rich.console import Console
from kgraft_cli.messages import messages_on
from kgraft_cli.progress import progress_on

early = logging.StreamHandler(sys.stderr)  # as TensorFlow's: it knows the stream, not the table
console = Console()
with messages_on(console), progress_on(console) as progress:
    progress.begin("peers", 2, 3, 4)
    time.sleep(0.3)
    logging.getLogger("kgraft").info("engine: chosen")
    os.write(2, b"one of C++\\ntwo of C++\\n")
    early.emit(logging.makeLogRecord({"msg": "an early handler's"}))
    print("printed")
    print("complained", file=sys.stderr)
    logging.getLogger("kgraft").warning("beware")
    time.sleep(0.4)
    progress.epoch("peers", 1, [{"model": 1, "loss": 0.5}, {"model": 2, "loss": 0.25}])
    time.sleep(0.3)
    os.write(2, b"not a whole line")
    if "stay" in sys.argv:
        time.sleep(0.3)
        os._exit(0)  # what stands there now is what was seen
print("the end")
"""


JOBS = """
import os, sys, time
from rich.console import Console
from kgraft_cli.messages import messages_on
from kgraft_cli.progress import jobs_on

console = Console()
with messages_on(console), jobs_on(console) as watcher:
    watcher.progress([("plain, seed 0", 0.0)], 0.0, float("nan"))
    time.sleep(0.3)
    os.write(2, b"one of C++\\n")
    watcher.ended("plain, seed 0", 71.4)
    watcher.progress([("a name that is long, seed 1", 0.25), ("b, seed 1", 0.5)], 0.375, 7260.0)
    time.sleep(0.6)
    if "stay" in sys.argv:
        os._exit(0)
print("the end")
"""


def on_a_terminal(width, *arguments, program=RUN, term="xterm", stderr=None):
    """Everything that a program sends to a terminal of 50 lines."""
    here, there = pty.openpty()
    fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    environment = {**os.environ, "TERM": term}
    environment = {k: v for k, v in environment.items() if k not in ("COLUMNS", "LINES")}
    with subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdin=there,
        stdout=there,
        stderr=there if stderr is None else stderr,
        env=environment,
    ):
        os.close(there)
        sent = b""
        with io.FileIO(here) as terminal:
            try:
                while part := terminal.read(1 << 16):
                    sent += part
            except OSError:  # nobody is left to write
                pass
    return sent.decode()


def screen(sent, width):
    """The lines that stand on a terminal after what it was sent."""
    lines, row, column = [[]], 0, 0
    for count, end, character in re.findall(r"\x1b\[\??(\d*)[\d;]*([A-Za-z])|(.)", sent, re.S):
        if end == "A":
            row = max(0, row - int(count or 1))
        elif end == "K":
            lines[row] = []
        elif character == "\r":
            column = 0
        elif character == "\n":
            row += 1
        elif character:
            if column == width:
                row, column = row + 1, 0
            lines += [[] for _ in range(row + 1 - len(lines))]
            lines[row] += " " * (column + 1 - len(lines[row]))
            lines[row][column] = character
            column += 1
        lines += [[] for _ in range(row + 1 - len(lines))]
    return ["".join(line).rstrip() for line in lines]


SAID = {
    *("engine: chosen", "one of C++", "two of C++", "an early handler's", "printed", "complained"),
    "kgraft: beware",
}


@pytest.mark.parametrize("width", [150, 60])
def test_a_live_table_is_there_once_whatever_is_said_beside_it(width):
    lines = screen(on_a_terminal(width, "stay"), width)
    assert sum("peers, epoch" in line for line in lines) == 1
    assert sum("steps, left" in line for line in lines) == 1
    assert SAID <= set(lines)


@pytest.mark.parametrize("width", [150, 60, 40])
def test_nothing_of_the_table_is_left_when_it_ends(width):
    lines = screen(on_a_terminal(width), width)
    left = [line for line in lines if line]
    assert set(left) == {*SAID, "not a whole line", "the end"}


@pytest.mark.parametrize("width", [40, 60, 80, 150])
def test_no_figure_is_cut_however_narrow_the_terminal(width):
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    figures = Figures("costs", ("model", "parameters", "against a baseline", "peers"))
    figures.add_row("mobilenet_v2", "12,345,678,901", "+0.12 (-1.23 to +4.56)", "1 2 3 4")
    figures.add_section()
    figures.add_row("soup", "36,477,271", "", "1")
    console.print(figures)
    progress = LiveProgress(console)
    progress.begin("teacher 10", 1, 200, 351)
    progress.step("teacher 10", 30, 100)
    rows = [{"model": 1, "lr": 0.1, "loss": 10.1234, "accuracy": 0.75215, "alpha": 0.5}]
    progress.epoch("teacher 10", 30, rows)
    console.print(progress.shown())
    text = console.file.getvalue()
    assert all(len(line) <= width for line in text.splitlines()) and "…" not in text
    for figure in ("12,345,678,901", "36,477,271", "+0.12 (-1.23 to +4.56)", "1 2 3 4"):
        assert figure in " ".join(text.split())
    for figure in ("0.1000", "10.1234", "75.22%", "0.500", "10530/70200"):
        assert figure in text


def test_a_lost_peer_keeps_its_row_and_the_others_their_numbers():
    rows = [{"model": 2, "lr": 0.1, "loss": 10.1234, "accuracy": 0.75, "alpha": 0.5}]
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    table, lines = LiveProgress(console), PlainProgress(console)
    for progress in (table, lines):
        progress.begin("peers", 2, 3, 4)
        progress.epoch("peers", 1, rows)
    console.print(table.shown())
    text = console.file.getvalue()
    assert "peers 1/3 | 2: loss 10.1234" in text
    cells = [line.replace("│", " ").split() for line in text.splitlines()]
    assert ["1", *"-----"] in cells
    assert ["2", "0.1000", "10.1234", "75.00%", "-", "0.500"] in cells


def test_a_dumb_terminal_gets_a_line_an_epoch():
    text = on_a_terminal(80, term="dumb")
    assert "\x1b" not in text
    assert "peers: 2 models, 3 epochs of 4 steps" in text and "peers 1/3 | 1: loss 0.5000" in text


def test_a_stderr_that_goes_elsewhere_is_left_alone(tmp_path):
    with (tmp_path / "errors").open("w") as errors:
        lines = screen(on_a_terminal(150, stderr=errors), 150)
    assert {line for line in lines if line} == {"engine: chosen", "printed", "the end"}
    said = (tmp_path / "errors").read_text()
    assert "two of C++\n" in said and "complained\n" in said and "kgraft: beware\n" in said


def test_what_redraws_is_chosen_for_terminals_that_can(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(progress_on(Console(force_terminal=True)), LiveProgress)
    assert isinstance(progress_on(Console(force_terminal=False)), PlainProgress)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(progress_on(Console(force_terminal=True)), PlainProgress)


@pytest.mark.parametrize(("backend", "said"), [("torch", "0"), ("tensorflow", None)])
def test_only_a_tensorflow_that_is_the_backend_tells_how_it_multiplies(monkeypatch, backend, said):
    monkeypatch.setenv("KERAS_BACKEND", backend)
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "1")
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS")
    with messages_on(Console(file=io.StringIO())):
        assert os.environ.get("TF_ENABLE_ONEDNN_OPTS") == said


@pytest.mark.slow
def test_stderr_of_a_run_that_succeeds_is_empty(tmp_path):
    arguments = ["fit", "--peers", "1", "--teachers", "0", "--epochs", "1", "--limit-train", "80"]
    code = f"from kgraft_cli.main import main; main({arguments})"
    unset = {k: v for k, v in os.environ.items() if k != "TF_ENABLE_ONEDNN_OPTS"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**unset, "KERAS_BACKEND": "torch"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""


def test_warnings_go_to_stderr_and_information_to_the_console(capsys):
    console = Console(file=io.StringIO(), width=100)
    log = logging.getLogger("kgraft")
    with messages_on(console):
        log.info("told")
        log.warning("warned")
    with messages_on(console, logging.WARNING):
        log.info("not told")
    assert (console.file.getvalue(), capsys.readouterr().err) == ("told\n", "kgraft: warned\n")


@pytest.mark.parametrize("width", [150, 30])
def test_runs_at_once_are_a_line_each(width):
    lines = screen(on_a_terminal(width, "stay", program=JOBS), width)
    shown = [line for line in lines if line]
    said = {"one of C++", "plain, seed 0: trained in 71 s"}  # the former by a thread
    assert set(shown[:2]) == said
    assert shown[2] == "37.5% done, 2 h 01 min left"
    if width == 150:
        assert shown[3:] == ["a name that is long, seed 1 25%", "b, seed 1 50%"]
    else:
        assert shown[3].startswith("a name that is long, seed 1") and shown[3].endswith("…")
    ended = [line for line in screen(on_a_terminal(width, program=JOBS), width) if line]
    assert set(ended[:2]) == said and ended[2:] == ["the end"]


def test_a_log_of_runs_at_once_has_a_line_a_minute(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    out = io.StringIO()
    watcher = jobs_on(Console(file=out, width=200))
    assert isinstance(watcher, PlainJobs)
    for now[0] in (1.0, 59.0, 61.0, 90.0, 125.0):
        watcher.progress([("plain, seed 0", now[0] / 200)], now[0] / 400, 400 - now[0])
    assert out.getvalue().splitlines() == [
        "15.2% done, 6 min left | plain, seed 0 30%",
        "31.2% done, 5 min left | plain, seed 0 62%",
    ]
