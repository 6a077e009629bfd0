"""What comes from elsewhere is data: whatever it says, one line answers, and nothing else happens.

The attacks stand in `hostile_files.py`. Each is answered within a little more memory than the
process has, and changes no file.
"""

import contextlib
import resource
import shutil
from pathlib import Path

import pytest
from kgraft_cli import main as program

from kgraft.runs.assembly import assemble
from kgraft.runs.config import Config
from kgraft.runs.execution import execute
from kgraft.runs.recorder import Silent
from tests.runs.conftest import changed
from tests.runs.hostile_files import ATTACKS

_MOST = 1 << 30  # bytes more than there are before; every attack asks for more, or for no memory


class _Power(Silent):
    """Cuts it in the peers' second epoch."""

    def epoch(self, phase, epoch, rows):
        if (phase, epoch) == ("peers", 2):
            raise InterruptedError


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run, and one that was broken off."""
    folder = tmp_path_factory.mktemp("runs")
    small = {"run__batch_size": 32, "data__limit_train": 96, "data__limit_test": 40}
    small |= {"peers__count": 2, "teachers__model": "resnet8"}
    finished = changed(Config(), **small, run__epochs=1, teachers__count=0)
    execute(assemble(finished), folder / "run")
    with pytest.raises(InterruptedError):
        execute(assemble(changed(Config(), **small, run__epochs=3)), folder / "broken", _Power())
    return folder


@pytest.fixture
def here(runs, tmp_path, monkeypatch):
    shutil.copytree(runs, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@contextlib.contextmanager
def little_memory():
    """What `ulimit -v` does, a little above what the process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + _MOST, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def contents(folder):
    return {
        path.relative_to(folder): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if path.name not in (".lock", "environment.json")  # it tells of every attempt to go on
    }


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_one_line(here, capsys, name):
    make, said, code = ATTACKS[name]
    arguments = [str(argument) for argument in make(here)]
    capsys.readouterr()
    before = contents(here)
    with little_memory(), pytest.raises(SystemExit) as left:
        program.main(arguments)
    printed = capsys.readouterr()
    print(f"{left.value.code}: {printed.err}")
    assert left.value.code == (code or 0)
    if left.value.code:
        assert printed.err.startswith("kgraft: ") and printed.err.count("\n") == 1
        assert len(printed.err) < 12_000 and printed.err[:-1].isprintable()
        assert contents(here) == before
    for words in said:
        assert words in printed.err
