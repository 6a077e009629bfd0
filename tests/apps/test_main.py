import dataclasses
import errno
import json
import re
import subprocess
import sys

import click
import keras
import pytest
from kgraft_cli import main as program

from kgraft.errors import UserError
from kgraft.runs.config import Schedule
from kgraft.runs.methods import METHODS


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as left:
        program.main(list(arguments))
    printed = capsys.readouterr()
    return left.value.code, printed.out, printed.err


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from kgraft_cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & "
        "{'kgraft', 'keras', 'torch', 'numpy', 'rich', 'tensorflow', 'jax'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    for name in ("fit", "evaluate", "models", "data", "bench", "info"):
        assert f"\n  {name}" in done.stdout


@pytest.mark.parametrize("command", ["fit", "evaluate", "models", "data", "bench", "info"])
def test_every_command_has_a_help_page(capsys, command):
    code, out, _ = run(capsys, command, "--help")
    assert code == 0 and out.startswith(f"Usage: kgraft {command}")


def test_the_help_of_fit_lists_every_schedule(capsys):
    _, out, _ = run(capsys, "fit", "--help")
    listed = out.partition("--schedule NAME")[2].partition("--seed")[0]
    choices = dataclasses.fields(Schedule)[0].metadata["rule"]["choices"]
    assert set(re.findall(r"[a-z-]+", listed)) - {"or"} == set(choices)


def test_an_unknown_command_gets_a_suggestion(capsys):
    assert run(capsys, "fti")[::2] == (
        2,
        "kgraft: unknown command 'fti'. Did you mean 'fit'?\n",
    )
    assert "Known: fit, select, compare, evaluate" in run(capsys, "xyz")[2]
    assert run(capsys, "data", "xyz")[::2] == (
        2,
        "kgraft: unknown command 'xyz'. Known: check, list, prepare.\n",
    )


@pytest.mark.parametrize("group", [(), ("data",)])
def test_a_group_without_a_command_shows_its_help_page(capsys, group):
    page = run(capsys, *group, "--help")[1]
    assert run(capsys, *group) == (2, "", page)


def test_ctrl_c_ends_with_130(capsys, monkeypatch):
    def interrupted(*_, **__):
        raise click.Abort

    monkeypatch.setattr(program.cli, "main", interrupted)
    code, _, err = run(capsys, "fit")
    assert (code, err) == (130, "kgraft: interrupted.\n")


def test_ctrl_c_while_a_command_is_imported_is_one_line(capsys, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(program.importlib, "import_module", interrupted)
    assert run(capsys, "info") == (130, "", "kgraft: interrupted.\n")


def test_a_defect_keeps_its_traceback(monkeypatch):
    def broken(*_, **__):
        raise ValueError("a defect")

    monkeypatch.setattr(program.cli, "main", broken)
    with pytest.raises(ValueError, match="a defect"):
        program.main(["fit"])


def test_models_lists_every_architecture(capsys):
    code, out, _ = run(capsys, "models", "--input-shape", "8,8,1", "--classes", "10")
    assert code == 0
    assert "resnet8" in out and "wrn-28-10" in out
    code, _, err = run(capsys, "models", "--input-shape", "8x8")
    assert code == 2 and "expected height,width,channels" in err


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
def test_methods_are_listed_whole_at_any_width(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    code, out, _ = run(capsys, "methods")
    lines = out.splitlines()
    assert code == 0
    assert [line for line in lines if line and line[0] != " "] == sorted(METHODS)
    assert max(map(len, lines)) <= columns
    assert "…" not in out and '    lr_scaling = "linear"' in lines
    assert "Peers: 4, at least 2. Teachers: at least 1." in " ".join(out.split())


def test_data_list_and_prepare(capsys, tmp_path):
    code, out, _ = run(capsys, "data", "list", "--data-dir", str(tmp_path))
    assert code == 0 and "digits" in out and "cifar100" in out
    code, _, err = run(
        capsys,
        "data",
        "prepare",
        "cifar100",
        "--archive",
        "none.tar.gz",
        "--data-dir",
        str(tmp_path),
    )
    assert code == 2 and err.startswith("kgraft: archive none.tar.gz: no such file.")
    assert not list(tmp_path.iterdir())
    code, out, _ = run(capsys, "data", "prepare", "digits")
    assert code == 0 and out.startswith("digits is ready in ")


def test_info_names_the_backend_in_use(capsys):

    code, out, _ = run(capsys, "info")
    assert code == 0
    (line,) = [line for line in out.splitlines() if "(in use)" in line]
    assert line.startswith(keras.config.backend())


@pytest.mark.skipif(keras.config.backend() != "torch", reason="torch's profiler")
def test_bench_shows_what_a_step_spends_its_time_on(capsys, tmp_path):
    file = tmp_path / "rows.json"
    code, out, err = run(
        capsys,
        *("bench", "profile", "--model", "resnet8", "--peers", "1", "--batch-size", "16"),
        *("--steps", "2", "--repeats", "1", "--json", str(file)),
    )
    assert code == 0, err
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert any("convolution" in row["operation"] and row["calls"] == 7 for row in rows)
    assert rows[-1]["operation"] in out


def test_bench_times_a_grafting_against_a_step_and_a_loop(capsys):
    code, out, _ = run(
        capsys,
        *("bench", "graft", "--model", "resnet8", "--peers", "2", "--batch-size", "16"),
        *("--repeats", "2", "--steps", "1"),
    )
    assert code == 0
    (line,) = [line for line in out.splitlines() if "resnet8" in line]
    numbers = [float(n) for n in re.findall(r"[0-9.]+(?= ms)", line)]
    assert len(numbers) == 2 and min(numbers) > 0 and "%" in line


def because(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError(), "kgraft: out of memory\n"),
        (
            MemoryError("Unable to allocate 9 TiB"),
            "kgraft: out of memory: Unable to allocate 9 TiB\n",
        ),
        (
            RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried"),
            "kgraft: out of memory: [enforce fail] . DefaultCPUAllocator: can't allocate memory: "
            "you tried\n",
        ),
        (
            RuntimeError("RESOURCE_EXHAUSTED: more\nlines"),
            "kgraft: out of memory: RESOURCE_EXHAUSTED: more\n",
        ),
        (
            OSError(errno.ENOMEM, "Cannot allocate memory", "layers"),
            "kgraft: out of memory: [Errno 12] Cannot allocate memory: 'layers'\n",
        ),
        (
            ImportError("libtorch.so: Cannot allocate memory"),
            "kgraft: out of memory: libtorch.so: Cannot allocate memory\n",
        ),
        (
            because(UserError("'mine:Own' failed"), RuntimeError("CUDA out of memory. Tried")),
            "kgraft: out of memory: CUDA out of memory. Tried\n",
        ),
    ],
)
def test_a_machine_without_room_is_told_in_one_line(monkeypatch, capsys, error, line):
    def main(*arguments, **options):
        raise error

    monkeypatch.setattr(program.cli, "main", main)
    with pytest.raises(SystemExit) as left:
        program.main(["fit"])
    assert (left.value.code, capsys.readouterr().err) == (1, line)


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.ENOMEM, "Cannot allocate memory")])
def test_no_memory_to_tell_a_mistake_with_is_one_line_too(monkeypatch, capfd, error):
    def full(*_, **__):
        raise error

    monkeypatch.setattr(program.click.ClickException, "format_message", full)
    with pytest.raises(SystemExit) as left:
        program.main(["fti"])
    assert (left.value.code, capfd.readouterr().err) == (1, "kgraft: out of memory.\n")


def test_other_errors_keep_their_traceback(monkeypatch):
    def main(*arguments, **options):
        raise RuntimeError("a fault of kgraft's own")

    monkeypatch.setattr(program.cli, "main", main)
    with pytest.raises(RuntimeError, match="own"):
        program.main(["fit"])


def test_a_tensorflow_datasets_that_cannot_be_imported_is_said_in_one_line():
    code = (
        "import sys; sys.modules['toml'] = None\n"  # tensorflow-datasets logs that, and goes on
        "from kgraft_cli.main import main; main(['fit', '--dataset', 'cifar100'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "import of toml halted" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("kgraft: tensorflow-datasets cannot be imported")
