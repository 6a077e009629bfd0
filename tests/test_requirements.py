"""What pyproject.toml requires is what CI tests: the lower bounds are written once."""

import itertools
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
OLDEST = ROOT / ".ci" / "oldest"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIRED = {
    requirement.name: requirement
    for requirement in map(
        Requirement,
        [*PROJECT["dependencies"], *itertools.chain(*PROJECT["optional-dependencies"].values())],
    )
}

in_a_checkout = pytest.mark.skipif(not OLDEST.exists(), reason="not a git checkout")


def bound(name, *operators):
    found = [s.version for s in REQUIRED[name].specifier if s.operator in operators]
    assert len(found) == 1, f"{name}: {operators} once"
    return found[0]


@in_a_checkout
def test_ci_pins_everything_to_its_lower_bound():
    printed = subprocess.run(
        [sys.executable, OLDEST], capture_output=True, text=True, check=True
    ).stdout
    assert dict(line.split("==") for line in printed.splitlines()) == {
        name: bound(name, ">=", "==") for name in REQUIRED
    }


@in_a_checkout
def test_a_requirement_without_a_lower_bound_is_refused(tmp_path):
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci" / "oldest").write_text(OLDEST.read_text())
    (tmp_path / "pyproject.toml").write_text(
        '[project]\ndependencies = ["numpy"]\noptional-dependencies = {}\n'
    )
    done = subprocess.run(
        [sys.executable, tmp_path / ".ci" / "oldest"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == ("pyproject.toml: 'numpy' has no lower bound: write name>=VERSION.\n")


@in_a_checkout
def test_ci_tests_the_pins():
    assert ".ci/oldest >" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("name", ["keras", "torch"])
def test_where_private_names_are_used_releases_that_nobody_has_tested_are_not_allowed(name):
    below = Version(bound(name, "<"))
    assert below > Version(version(name))
    assert below.release[:2] == (Version(version(name)).major, Version(version(name)).minor + 1)


@pytest.mark.parametrize("name", ["keras", "torch", "jax", "tensorflow-cpu"])
def test_the_readme_names_what_is_required(name):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"{name} {bound(name, '>=')}".lower() in readme.lower()
