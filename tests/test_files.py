"""Files are whole or not there; a directory has one writer."""

import contextlib
import errno
import json
import resource
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import keras
import numpy as np
import pytest
from kgraft_cli import main as program

from kgraft.errors import StorageError, UserError
from kgraft.files import Kept, append_text, has_writer, only_writer, sweep, whole, write_text
from kgraft.runs import state_dict
from kgraft.runs.config import Config
from kgraft.runs.directory import RunDirectory, save_uncompiled


@contextlib.contextmanager
def files_up_to(size):
    """What `ulimit -f` does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def model():
    return keras.Sequential([keras.Input((40,)), keras.layers.Dense(100)])


def arrays():
    return {"weight": np.ones((100, 100), np.float32)}


WRITERS = {
    "a.keras": lambda file, model: save_uncompiled(model, file),
    "a.pt": lambda file, _: state_dict.write(file, arrays()),
    "a.safetensors": lambda file, _: state_dict.write(file, arrays()),
    "a.json": lambda file, _: write_text(file, "x" * 9000),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("there", [False, True])
def test_a_file_that_does_not_fit_is_named_and_leaves_what_was_there(tmp_path, model, name, there):
    file = tmp_path / name
    if there:
        file.write_text("before")
    for size in (0, 1, 500, 8192):
        with files_up_to(size), pytest.raises(StorageError) as told:
            WRITERS[name](file, model)
        assert str(told.value) == f"{file} cannot be written: File too large."
        assert names(tmp_path) == ([name] if there else [])
    if there:
        assert file.read_text() == "before"
    WRITERS[name](file, model)
    assert names(tmp_path) == [name] and file.stat().st_size > 8192


def test_an_error_of_ones_own_leaves_nothing_either(tmp_path):
    with pytest.raises(ZeroDivisionError), whole(tmp_path / "a.json") as partial:
        partial.write_text("half")
        raise ZeroDivisionError
    assert not names(tmp_path)


def test_what_is_no_file_is_written_to_as_it_is(tmp_path):
    device = tmp_path / "stdout"
    device.symlink_to("/dev/null")
    write_text(device, "text")
    assert device.is_symlink() and names(tmp_path) == ["stdout"]


def test_lines_are_appended_whole_or_not_at_all(tmp_path):
    file = tmp_path / "metrics.jsonl"
    kept = append_text(file, "one\n", Kept())
    with files_up_to(10), pytest.raises(StorageError, match="File too large"):
        append_text(file, "two, which is longer\n", kept)
    append_text(file, "three\n", kept)
    assert file.read_text() == "one\nthree\n"


def test_what_somebody_has_changed_before_the_end_is_not_written_to(tmp_path):
    file = tmp_path / "metrics.jsonl"
    one = append_text(file, "one\n", Kept())
    append_text(file, "two\n", one)
    both = append_text(file, "again\n", one)
    assert file.read_text() == "one\nagain\n"
    assert both == Kept(10, zlib.crc32(b"one\nagain\n"))
    both.check(file)
    file.write_text("one\nagain\nand what a killed process has left")
    both.check(file)
    for changed in ("One\nagain\n", "one \nagain\n"):
        file.write_text(changed)
        with pytest.raises(UserError, match="is not as it was written: somebody has changed it"):
            both.check(file)
    file.write_text("one\n")
    with pytest.raises(UserError, match="has 4 bytes and had at least 10: somebody has cut it off"):
        both.check(file)
    with pytest.raises(
        StorageError, match="has 4 bytes and had at least 10: somebody has cut it off"
    ):
        append_text(file, "more\n", both)
    file.unlink()
    with pytest.raises(UserError, match=r"metrics\.jsonl is gone; put back what was there"):
        both.check(file)


def test_what_a_killed_process_was_writing_is_swept(tmp_path):
    (tmp_path / "peers").mkdir()
    kept = [tmp_path / ".lock", tmp_path / "run.toml", tmp_path / "peers" / "peer-1.keras"]
    left = [tmp_path / ".run.77.toml", tmp_path / "peers" / ".peer-2-best.17635.keras"]
    for path in (*kept, *left):
        path.touch()
    sweep(tmp_path)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(kept)


def test_a_runs_files_are_whole(tmp_path):
    directory = RunDirectory(tmp_path / "run", Config(), {"python": "3"})
    directory.add_metrics([{"loss": 0.5}])
    with files_up_to(20), pytest.raises(StorageError, match=r"metrics\.jsonl cannot be written"):
        directory.add_metrics([{"loss": 0.25}])
    with files_up_to(20), pytest.raises(StorageError, match=r"summary\.json cannot be written"):
        directory.finish({"peers": list(range(50))})
    assert names(tmp_path / "run") == ["environment.json", "metrics.jsonl", "run.toml"]
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text()) == {"loss": 0.5}


def test_the_command_line_says_it_in_one_line_with_code_1(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with files_up_to(4096), pytest.raises(SystemExit) as left:
        program.main(
            [
                *("fit", "--peers", "1", "--teachers", "0", "--epochs", "1", "--out", "here"),
                *("--limit-train", "64", "--limit-test", "20", "--batch-size", "32"),
            ]
        )
    said = capsys.readouterr().err
    assert (left.value.code, said) == (
        1,
        f"kgraft: {tmp_path}/here/checkpoints/peers/epoch-000001 cannot be written: "
        "File too large.\n",
    )
    assert not [*Path("here").rglob("*.safetensors"), *Path("here").rglob("*.keras")]


HOLD = """
import fcntl, sys, time
file = open(sys.argv[1], "ab")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


def test_within_a_process_a_directory_has_one_writer_too(tmp_path):
    with only_writer(tmp_path), pytest.raises(UserError, match="another process is training in"):
        with only_writer(tmp_path):
            pass
    with only_writer(tmp_path):
        pass


def test_a_directory_has_one_writer_and_a_killed_one_leaves_no_lock(tmp_path):
    out = tmp_path / "out"
    with only_writer(out):
        pass
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(out / ".lock")], stdout=subprocess.PIPE, text=True
    ) as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(UserError, match=f"another process is training in {out}"):
                with only_writer(out):
                    pass
        finally:
            holder.send_signal(signal.SIGKILL)
    with only_writer(out):
        pass


def test_who_writes_is_known_and_nobody_is_disturbed(tmp_path, monkeypatch):
    if has_writer(tmp_path) is None:
        pytest.skip("this machine cannot tell")
    before = sorted(tmp_path.iterdir())
    assert has_writer(tmp_path) is False and sorted(tmp_path.iterdir()) == before
    with only_writer(tmp_path):
        monkeypatch.setattr("fcntl.flock", None)  # nobody tries
        assert has_writer(tmp_path) is True
        monkeypatch.undo()
    assert has_writer(tmp_path) is False
    monkeypatch.setattr("kgraft.files._LOCAL", set())  # where another machine may write
    assert has_writer(tmp_path) is None
    with only_writer(tmp_path):
        assert has_writer(tmp_path) is True
    assert has_writer(tmp_path / "nowhere") is None


def test_where_nothing_can_be_locked_a_warning_says_so(tmp_path, monkeypatch, caplog):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    with only_writer(tmp_path):
        pass
    assert "is not locked (No locks available): let no second process" in caplog.text
