"""What a run writes down of the machine it ran on."""

import subprocess
from pathlib import Path

import pytest

import kgraft
from kgraft.runs.environment import environment


def git(folder, *arguments):
    own = ("-c", "user.name=me", "-c", "user.email=me@example.org")
    done = subprocess.run(
        ["git", "-C", str(folder), *own, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def strangers(tmp_path):
    """Somebody's repository, in which kgraft is installed."""
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "commit", "--quiet", "--allow-empty", "--message", "theirs")
    package = tmp_path / ".venv" / "kgraft"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    return package


def test_a_run_without_git_has_no_commit(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment({})["commit"] is None


def test_a_strangers_repository_is_not_kgrafts(monkeypatch, strangers):
    monkeypatch.setattr(kgraft, "__file__", str(strangers / "__init__.py"))
    assert environment({})["commit"] is None


def test_the_commit_is_that_of_the_repository_that_tracks_kgraft(monkeypatch, strangers):
    git(strangers, "add", "__init__.py")
    git(strangers, "commit", "--quiet", "--message", "ours")
    monkeypatch.setattr(kgraft, "__file__", str(strangers / "__init__.py"))
    assert environment({})["commit"] == git(strangers, "rev-parse", "HEAD")


def test_what_git_is_told_by_its_environment_is_not_kgrafts(monkeypatch, strangers):
    """As in a hook, which runs with GIT_DIR."""
    git(strangers, "add", "__init__.py")
    git(strangers, "commit", "--quiet", "--message", "ours")
    own = environment({})["commit"]
    monkeypatch.setenv("GIT_DIR", str(strangers.parents[1] / ".git"))
    monkeypatch.chdir(Path("/"))
    assert environment({})["commit"] == own
