"""Run files, comparison files and command lines that nobody would write, see `fuzz`."""

import tempfile
from pathlib import Path

import hypothesis
import pytest

from tests.faults import fuzz


def each(strategy, number, check):
    @hypothesis.settings(max_examples=number, **fuzz.SETTINGS)
    @hypothesis.given(strategy)
    def checked(given):
        check(given)

    checked()


def check_file(given):
    kind, content = given
    with tempfile.TemporaryDirectory() as folder:
        assert fuzz.outcome_of_file(kind, content, Path(folder)) in ("taken", "refused")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pristine")
    fuzz.folder_of_files(folder)
    return folder


def check_commands(pristine, number):
    """Training is stubbed out at `kgraft.runs.execution.execute`, everything before it is real."""
    with fuzz.nothing_is_trained():
        each(fuzz.command_lines(), number, lambda given: fuzz.outcome_of_command(given, pristine))


def test_a_file_is_taken_or_refused_in_one_line():
    each(fuzz.files, 200, check_file)


def test_a_command_line_is_done_or_refused_in_one_line_and_leaves_nothing(pristine):
    check_commands(pristine, 15)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["fit", "--peers", "2", "--teachers", "0", "--epochs", "1", "--limit-train", "80",
          "--limit-test", "40", "--out", "[/a] :b:"], 0),
        (["fit", "--resume", "broken"], 0),
        (["fit", "quick.toml", "--peers", "0"], 2),
        (["compare", "quick.toml"], 2),
    ],
)  # fmt: skip
def test_so_it_is_with_trainings_that_are_not_left_out(pristine, arguments, code):
    assert fuzz.outcome_of_command(arguments, pristine) == code
