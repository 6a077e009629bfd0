"""Runs side by side: order, failures, ends, and that they are the runs that they would be alone."""

import functools
import json
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from kgraft.errors import UserError
from kgraft.runs.comparisons.file import read_comparison
from kgraft.runs.comparisons.jobs import Job, side_by_side
from kgraft.runs.comparisons.runs import read_results, train_missing, train_missing_beside
from kgraft.runs.recorder import Silent
from kgraft.runs.stopping import Stopped, Stopping
from tests.runs.comparisons.test_runs import COMMON, PLAIN

pytestmark = pytest.mark.multiprocess


class Seen:
    def __init__(self):
        self.over, self.most, self.shares = [], 0, []

    def progress(self, running, done, left):
        self.most = max(self.most, len(running))
        self.shares.append((dict(running), done, left))

    def ended(self, name, seconds):
        self.over.append(name)


def note(folder, name, observer, stopping, *, seconds=0.2, fails=False):
    (folder / f"{name}.begun").write_text(str(time.monotonic()))
    observer.begin("peers", 1, 2, 1)
    for epoch in (1, 2):
        observer.epoch("peers", epoch, [])
        end = time.monotonic() + seconds
        with stopping.held():
            while time.monotonic() < end:
                time.sleep(0.01)
                stopping.check()
    if fails:
        raise UserError(f"{name} cannot be trained.")
    (folder / f"{name}.over").write_text(str(time.monotonic()))


def dies(folder, name, observer, stopping):
    os._exit(3)


def job(folder, name, needs=(), train=note, **options):
    return Job(name, 1.0, 2, frozenset(needs), functools.partial(train, folder, name, **options))


def at(folder, file):
    return float((folder / file).read_text())


def test_so_many_at_a_time_and_none_before_what_it_needs(tmp_path):
    jobs = [job(tmp_path, "a"), job(tmp_path, "b", ["a"]), job(tmp_path, "c"), job(tmp_path, "d")]
    seen = Seen()
    side_by_side(jobs, 2, seen, Stopping())
    assert sorted(seen.over) == ["a", "b", "c", "d"] and seen.most == 2
    assert at(tmp_path, "b.begun") >= at(tmp_path, "a.over")
    shares, done, left = seen.shares[-1]
    assert (shares, done) == ({}, 1.0) and left == 0.0
    assert any(0 < share < 1 for running, _, _ in seen.shares for share in running.values())


def test_a_job_that_fails_ends_all_and_says_why(tmp_path):
    jobs = [job(tmp_path, "a", fails=True), job(tmp_path, "b", seconds=30), job(tmp_path, "c")]
    began = time.monotonic()
    with pytest.raises(UserError, match="a cannot be trained"):
        side_by_side(jobs, 2, Seen(), Stopping())
    assert time.monotonic() - began < 20
    assert not (tmp_path / "b.over").exists() and not (tmp_path / "c.begun").exists()


def test_a_process_that_dies_is_named(tmp_path):
    with pytest.raises(UserError, match=r"a: its process ended with code 3; call the command"):
        side_by_side([job(tmp_path, "a", train=dies)], 2, Seen(), Stopping())


def test_an_end_that_somebody_asks_for_is_handed_on(tmp_path):
    jobs = [job(tmp_path, name, seconds=30) for name in "ab"]

    def ask():
        while len(list(tmp_path.glob("*.begun"))) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    asking = threading.Thread(target=ask)
    asking.start()
    began = time.monotonic()
    with pytest.raises(Stopped), Stopping() as stopping:
        side_by_side(jobs, 2, Seen(), stopping)
    asking.join()
    assert time.monotonic() - began < 40
    assert not list(tmp_path.glob("*.over"))


def test_an_error_of_whoever_watches_leaves_nobody_behind(tmp_path):
    class Breaks(Seen):
        def progress(self, running, done, left):
            if list(tmp_path.glob("*.begun")):
                raise OSError("output is gone")

    began = time.monotonic()
    with pytest.raises(OSError, match="output is gone"):
        side_by_side([job(tmp_path, "a", seconds=30)], 1, Breaks(), Stopping())
    for process in multiprocessing.active_children():
        process.join()
    assert time.monotonic() - began < 20
    assert not (tmp_path / "a.over").exists()


def written(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        COMMON.replace("[0, 1]", "[1]")
        + PLAIN
        + '[entries."2 networks"]\nrun.method = "ensemble"\npeers.count = 2\n'
        + '[entries.student]\nrun.method = "distill"\nteachers.files = ["@2 networks/peers"]\n'
        + '[entries.teachers]\nruns_of = "student"\nresult = "committee"\n'
    )
    return read_comparison(path)


def test_they_are_the_runs_that_they_would_be_alone(tmp_path):
    comparison = written(tmp_path)
    seen = Seen()
    with Stopping() as stopping:
        train_missing_beside(comparison, tmp_path / "beside", 2, seen, stopping)
    assert len(seen.over) == 3
    train_missing(comparison, tmp_path / "alone", Silent(), lambda text: None)
    found, expected = (
        [
            {name: value for name, value in row.items() if name != "seconds"}
            for row in read_results(comparison, tmp_path / folder)
        ]
        for folder in ("beside", "alone")
    )
    assert found == expected
    student = next(row for row in found if row["entry"] == "student")
    assert student["trainings"] == 3.0
    teachers, networks = (
        next(row for row in found if row["entry"] == name) for name in ("teachers", "2 networks")
    )
    assert (teachers["last"], teachers["networks"]) == (networks["last"], 2)
    summary = Path(tmp_path / "beside" / "student" / "seed-1" / "summary.json").read_text()
    files = [row["file"] for row in json.loads(summary)["teachers"]]
    assert [Path(file).name for file in files] == ["peer-1.keras", "peer-2.keras"]
    assert all("2-networks/seed-1" in file for file in files)

    again = Seen()
    with Stopping() as stopping:
        train_missing_beside(comparison, tmp_path / "beside", 2, again, stopping)
    assert again.over == []


def test_a_run_of_other_settings_is_refused_before_any_begins(tmp_path):
    comparison = written(tmp_path)
    train_missing(comparison, tmp_path / "runs", Silent(), lambda text: None)
    other = (tmp_path / "mine.toml").read_text().replace("epochs = 1", "epochs = 2")
    (tmp_path / "mine.toml").write_text(other)
    with pytest.raises(UserError, match=r"holds a run with run.epochs = 1"), Stopping() as stopping:
        train_missing_beside(
            read_comparison(tmp_path / "mine.toml"), tmp_path / "runs", 2, Seen(), stopping
        )
