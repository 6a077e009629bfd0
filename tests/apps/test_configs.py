"""`kgraft configs`, and the run files that come with kgraft found by name."""

import doctest
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from kgraft_cli import main as program
from kgraft_cli import shipped

from kgraft.runs import config as configs

ROOT = Path(__file__).parents[2]
NAMES = sorted(
    path.relative_to(ROOT / "configs").as_posix().removesuffix(".toml")
    for path in (ROOT / "configs").rglob("*.toml")
)
SMALL = [
    *("--peers", "1", "--teachers", "0", "--epochs", "1", "--out", "here"),
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


def names_in(out):
    return [line for line in out.splitlines() if not line.startswith(" ")]


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_every_file_is_listed_once_whole_at_any_width(kgraft, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    code, out, err = kgraft("configs")
    assert (code, err) == (0, "")
    assert sorted(names_in(out)) == NAMES and names_in(out)[0] == "quickstart"
    assert max(map(len, out.splitlines())) <= columns
    said = " ".join(out.split())
    assert said.count(" Cost: ") == len(NAMES) and said.count(" Published") == len(NAMES)
    assert "fair/resnet32-entropy-dlr ResNet32 on CIFAR-100: 2 peers, entropy grafting, " in said
    assert (
        "(Meng et al., CVPR 2020, table 5): 93.94 on CIFAR-10, 71.28 on CIFAR-100. Ours: " in said
    )
    assert kgraft("configs", "list")[1] == out


def test_a_word_lists_the_files_that_have_it_in_their_name(kgraft):
    _, out, _ = kgraft("configs", "fair/resnet32")
    assert names_in(out) == [name for name in NAMES if name.startswith("cifar/fair/resnet32-")]
    assert kgraft("configs", "list", "fair/resnet32")[1] == out


def test_the_list_needs_nothing_heavy():
    code = (
        "import sys; from kgraft_cli.main import main\n"
        "try: main(['configs'])\n"
        "except SystemExit: pass\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'kgraft', 'keras', 'torch'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_copy_is_the_file_byte_for_byte_and_says_what_takes_it(kgraft, tmp_path):
    for name in NAMES:
        own = (ROOT / "configs" / f"{name}.toml").read_bytes()
        code, out, _ = kgraft("configs", "copy", name)
        copied = tmp_path / f"{name.rpartition('/')[2]}.toml"
        verb = {"comparisons": "compare", "tables": "reproduce"}.get(name.partition("/")[0], "fit")
        said = f"{copied.name} is a copy of {name}: kgraft {verb} {copied.name}\n"
        assert (code, out, copied.read_bytes()) == (0, said, own)
        copied.unlink()
        assert kgraft("configs", "show", name) == (0, own.decode(), "")


def test_a_copy_goes_where_it_is_told(kgraft, tmp_path):
    own = (ROOT / "configs" / "quickstart.toml").read_bytes()
    (tmp_path / "folder").mkdir()
    assert kgraft("configs", "copy", "quickstart", "folder")[0] == 0
    assert kgraft("configs", "copy", "quickstart", "my run.toml")[1].endswith(
        "kgraft fit 'my run.toml'\n"
    )
    for copied in ("folder/quickstart.toml", "my run.toml"):
        assert (tmp_path / copied).read_bytes() == own


def test_a_copy_overwrites_only_where_it_is_forced_to(kgraft, tmp_path):
    mine = tmp_path / "quickstart.toml"
    mine.write_text("mine")
    for given in ([], ["."], ["quickstart.toml"]):
        code, _, err = kgraft("configs", "copy", "quickstart", *given)
        line = "kgraft: quickstart.toml is there already: give another FILE, or --force.\n"
        assert (code, err, mine.read_text()) == (2, line, "mine")
    assert kgraft("configs", "copy", "quickstart", "--force")[0] == 0
    assert configs.read(mine) == configs.Config()


def test_a_name_is_found_by_fit_and_the_run_is_whole_by_itself(kgraft, tmp_path):
    assert kgraft("fit", "quickstart", *SMALL)[::2] == (0, "")
    kgraft("configs", "copy", "quickstart")
    assert kgraft("fit", "quickstart.toml", *SMALL, "--out", "there")[::2] == (0, "")
    here, there = (tmp_path / run / "run.toml" for run in ("here", "there"))
    assert here.read_bytes() == there.read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_the_file(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = shipped.run_files()[name]
    assert shipped.path_of(name, own.command) == ROOT / "configs" / f"{name}.toml"


def test_a_name_is_found_by_compare_whose_runs_are_called_after_its_last_part(
    kgraft, tmp_path, monkeypatch
):
    trained = []
    monkeypatch.setattr(
        "kgraft.runs.comparisons.runs.train_missing",
        lambda wanted, path, *_: trained.append((wanted.baseline, path)),
    )
    kgraft("compare", "comparisons/digits-precision")
    assert trained == [("float32", Path("runs/digits-precision"))]


def test_a_file_of_ones_own_wins_over_a_name(kgraft, tmp_path):
    (tmp_path / "quickstart").write_text("[peers]\ncount = 3\n")
    assert shipped.path_of("quickstart", "fit") == Path("quickstart")
    (tmp_path / "quickstart").unlink()
    (tmp_path / "quickstart").mkdir()  # e.g. of runs: no run file
    assert shipped.path_of("quickstart", "fit") == ROOT / "configs" / "quickstart.toml"


def test_a_name_beside_a_copy_says_which_of_both_it_is(kgraft, capsys, monkeypatch):
    own = ROOT / "configs" / "quickstart.toml"
    kgraft("configs", "copy", "quickstart")
    assert shipped.path_of("quickstart", "fit") == own
    said = "kgraft: quickstart is the run file that comes with kgraft; quickstart.toml is not.\n"
    assert capsys.readouterr() == ("", said)
    monkeypatch.chdir(ROOT / "configs")  # the file itself
    assert shipped.path_of("quickstart", "fit") == own
    assert capsys.readouterr() == ("", "")


NONE = "no run file that comes with kgraft is called "


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["configs", "cpoy"], f"{NONE}'cpoy'. Did you mean 'copy'?"),
        (["configs", "cpoy", "quickstart"], "unknown command 'cpoy'. Did you mean 'copy'?"),
        (["configs", "resnet-20"], f"{NONE}'resnet-20'. Did you mean 'cifar/resnet20'?"),
        (["configs", "vit"], f"{NONE}'vit'. kgraft configs lists kgraft's own."),
        (["configs", "copy", "quikstart"], f"{NONE}'quikstart'. Did you mean 'quickstart'?"),
        (["configs", "copy", "quickstart.toml"], "'quickstart.toml'. Did you mean 'quickstart'?"),
        (
            ["configs", "copy", "../pyproject"],
            f"{NONE}'../pyproject'. kgraft configs lists kgraft's own.",
        ),
        (["configs", "show", "committee"], "Did you mean 'comparisons/committee'?"),
        (["configs", "show", "QUICKSTART"], f"{NONE}'QUICKSTART'. Did you mean 'quickstart'?"),
        (["configs", "fair", "--all"], "No such option '--all'."),
        (["configs", "copy"], "Missing argument 'NAME'."),
        (["configs", "copy", "quickstart", ""], "FILE is empty: expected a file or a directory."),
        (["configs", "copy", "quickstart", "no/x.toml"], "no/x.toml: there is no directory no."),
        (
            ["fit", "configs/cifar/fair/resnet32-entropy-dlr.toml"],
            "run file configs/cifar/fair/resnet32-entropy-dlr.toml: no such file. Did you mean "
            "'cifar/fair/resnet32-entropy-dlr'?",
        ),
        (
            ["fit", "resnet32-entropy-dlr"],
            "run file resnet32-entropy-dlr: no such file. Did you mean "
            "'cifar/fair/resnet32-entropy-dlr'?",
        ),
        (
            ["fit", "none.toml"],
            "run file none.toml: no such file. kgraft configs lists kgraft's own.",
        ),
        (["fit", "mine"], "run file mine: no such file. Did you mean 'mine.toml'?"),
        (["fit", "cifar"], "run file cifar cannot be read: [Errno 21] Is a directory: 'cifar'."),
        (
            ["fit", "comparisons/committee"],
            "comparisons/committee is a comparison: kgraft compare comparisons/committee.",
        ),
        (
            ["fit", "digits-precision"],
            "run file digits-precision: no such file. Did you mean 'comparisons/digits-precision'?",
        ),
        (["compare", "quickstart"], "quickstart is a run file: kgraft fit quickstart."),
        (
            ["compare", "committee"],
            "comparison committee: no such file. Did you mean 'comparisons/committee'?",
        ),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(kgraft, tmp_path, arguments, line):
    (tmp_path / "mine.toml").write_text("")
    (tmp_path / "cifar").mkdir()
    before = sorted(tmp_path.rglob("*"))
    code, out, err = kgraft(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("kgraft: ") and err.endswith(f"{line}\n") and err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_what_cannot_be_written_is_one_line_and_exit_code_1(kgraft):
    code, _, err = kgraft("configs", "copy", "quickstart", "a" * 300)
    assert code == 1 and err == f"kgraft: {'a' * 300} cannot be written: File name too long.\n"


def test_a_wheel_has_them_where_they_are_looked_for():
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    wheel = wheel["targets"]["wheel"]
    assert "configs" in wheel["only-include"]
    assert wheel["sources"]["configs"] == f"kgraft_cli/{shipped.PACKAGED}"


def test_the_examples_hold():
    """Those of apps/ are not among pytest's doctests."""
    found = doctest.testmod(shipped)
    assert found.attempted and not found.failed
