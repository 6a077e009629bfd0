"""A run that another process trains is told of as its files say, and they are left alone."""

import json
import os

import pytest

from kgraft.errors import UserError
from kgraft.runs import following
from kgraft.runs.config import Config
from kgraft.runs.following import Following, Phase, is_on, planned
from tests.runs.conftest import changed


class Told:
    """What an observer is told, and what happens while nobody looks."""

    def __init__(self, *happens):
        self.told, self.happens = [], list(happens)

    def begin(self, phase, models, epochs, steps):
        self.told.append((phase, models, epochs, steps))

    def step(self, phase, epoch, step):
        raise AssertionError("steps are in no file")

    def epoch(self, phase, epoch, rows):
        self.told.append((phase, epoch, [row.get("loss") for row in rows]))

    def wait(self, seconds):
        self.happens.pop(0)()


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The directory of a run with a teacher and two peers, three epochs, at which somebody is."""
    config = changed(Config(), run__epochs=3, peers__count=2, teachers__count=1)
    (tmp_path / "run.toml").write_text(config.resolved())
    monkeypatch.setattr(following, "has_writer", lambda path: True)
    return tmp_path


def line(phase, model, epoch, loss):
    row = {"phase": phase, "model": model, "epoch": epoch, "lr": 0.1, "loss": loss}
    return json.dumps(row) + "\n"


def write(run, *lines):
    (run / "metrics.jsonl").write_text("".join(lines))
    stamp = write.clock = write.clock + 10
    os.utime(run / "metrics.jsonl", (stamp, stamp))


write.clock = 1_000_000
TEACHER = [line("teacher 1", 1, epoch, 3.0 - epoch) for epoch in (1, 2, 3)]
PEERS = [line("peers", k, epoch, epoch / k) for epoch in (1, 2, 3) for k in (1, 2)]


def finish(run):
    return lambda: (run / "summary.json").write_text("{}")


def test_what_is_planned_follows_from_the_settings():
    def phases(**changes):
        return [(own.name, own.models, own.epochs) for own in planned(changed(Config(), **changes))]

    assert phases(teachers__count=0, peers__count=3) == [("peers", 3, 25)]
    assert phases(teachers__count=2, teachers__epochs=9, run__epochs=4) == [
        ("teacher 1", 1, 9), ("teacher 2", 1, 9), ("peers", 4, 4)
    ]  # fmt: skip
    assert phases(teachers__count=3, teachers__files=("a.keras",)) == [
        ("teacher 2", 1, 25), ("teacher 3", 1, 25), ("peers", 4, 25)
    ]  # fmt: skip
    assert phases(teachers__count=2, teachers__grafted=True)[0] == ("teachers", 2, 25)
    assert planned(Config())[-1] == Phase("peers", 4, 25)


def test_a_run_is_followed_from_its_beginning_to_its_end(run):
    follows = Following(run)
    told = Told(
        lambda: write(run, *TEACHER[:1]),
        lambda: write(run, *TEACHER),
        lambda: write(run, *TEACHER, PEERS[0], PEERS[1][:9]),  # half an epoch
        lambda: write(run, *TEACHER, *PEERS[:4]),
        lambda: write(run, *TEACHER, *PEERS),
        finish(run),
    )
    assert follows.tell(told, told.wait)
    assert told.told == [
        ("teacher 1", 1, 3, 0),
        ("teacher 1", 1, [2.0]), ("teacher 1", 2, [1.0]), ("teacher 1", 3, [0.0]),
        ("peers", 2, 3, 0),
        ("peers", 1, [1.0, 0.5]), ("peers", 2, [2.0, 1.0]), ("peers", 3, [3.0, 1.5]),
    ]  # fmt: skip
    assert follows.written == write.clock


def test_epochs_that_a_lost_peer_missed_are_told_when_no_row_of_it_can_come(run):
    alone = [line("peers", 1, 2, 2.0), line("peers", 1, 3, 3.0)]
    write(run, *TEACHER, *PEERS[:2])
    told = Told(
        lambda: write(run, *TEACHER, *PEERS[:2], alone[0]),  # another row may follow
        lambda: told.told.append("not yet"),
        lambda: write(run, *TEACHER, *PEERS[:2], *alone),
        finish(run),
    )
    assert Following(run).tell(told, told.wait)
    assert told.told == [
        ("peers", 2, 3, 0),
        ("peers", 1, [1.0, 0.5]), "not yet", ("peers", 2, [2.0]), ("peers", 3, [3.0])
    ]  # fmt: skip


def test_of_what_is_there_the_newest_epoch_is_told(run):
    write(run, *TEACHER, *PEERS[:4])
    told = Told(lambda: write(run, *TEACHER, *PEERS), finish(run))
    assert Following(run).tell(told, told.wait)
    assert told.told == [("peers", 2, 3, 0), ("peers", 2, [2.0, 1.0]), ("peers", 3, [3.0, 1.5])]


def test_a_finished_run_is_told_at_once(run):
    write(run, *TEACHER, *PEERS)
    finish(run)()
    told = Told()
    assert Following(run).tell(told, told.wait)
    assert told.told == [("peers", 2, 3, 0), ("peers", 3, [3.0, 1.5])]


def test_epochs_that_are_trained_again_are_told_again(run):
    write(run, *TEACHER, *PEERS[:4])
    again = [line("peers", k, 2, 7.0) for k in (1, 2)]
    told = Told(
        lambda: write(run, *TEACHER, *PEERS[:2]),
        lambda: write(run, *TEACHER, *PEERS[:2], *again),
        finish(run),
    )
    assert Following(run).tell(told, told.wait)
    assert told.told[1:] == [("peers", 2, [2.0, 1.0]), ("peers", 2, [7.0, 7.0])]


@pytest.mark.parametrize(
    "damage",
    ["{", "[]\n", '{"phase": 1}\n', "\x1b[2J\n", line("elsewhere", 1, 1, 1.0), "9" * 5000 + "\n"],
)
def test_lines_that_are_none_are_waited_for(run, damage):
    write(run, TEACHER[0], damage)
    told = Told(finish(run))
    Following(run).tell(told, told.wait)
    assert told.told == [("teacher 1", 1, 3, 0), ("teacher 1", 1, [2.0])]


@pytest.mark.parametrize(
    ("written", "told_as"),
    [('"\\u001b[2J"', None), ("9" * 400, None), ("[1.0]", None), ("null", None), ("3", 3)],
)
def test_what_is_no_figure_is_not_told(run, written, told_as):
    write(run, TEACHER[0].replace("2.0", written))
    told = Told(finish(run))
    Following(run).tell(told, told.wait)
    assert told.told[1] == ("teacher 1", 1, [told_as])


def test_a_run_that_nobody_trains_any_more_is_left_after_a_while(run, monkeypatch):
    now, there = [0.0], [True]
    monkeypatch.setattr(following, "has_writer", lambda path: there[0])
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def later(seconds, held):
        def happens():
            now[0] += seconds
            there[0] = held

        return happens

    told = Told(  # it is let go of, and gone on with
        later(60.0, True), later(0.5, False), later(3.0, False),
        later(0.5, True), later(0.5, False), later(5.0, False),
    )  # fmt: skip
    assert not Following(run).tell(told, told.wait)
    assert not told.happens
    assert told.told == [("teacher 1", 1, 3, 0)]


def test_where_nobody_can_tell_who_writes_it_goes_on(run, monkeypatch):
    monkeypatch.setattr(following, "has_writer", lambda path: None)
    monkeypatch.setattr("time.monotonic", iter(range(0, 10_000, 1000)).__next__)
    told = Told(lambda: None, lambda: None, finish(run))
    assert Following(run).tell(told, told.wait)


def test_nothing_is_written(run):
    write(run, *TEACHER)
    finish(run)()
    before = {path: path.stat().st_mtime_ns for path in [run, *run.iterdir()]}
    Following(run).tell(Told())
    assert {path: path.stat().st_mtime_ns for path in [run, *run.iterdir()]} == before


def test_what_is_no_run_is_said_to_be_something_else(tmp_path):
    with pytest.raises(UserError, match=r"nowhere: there is no such directory\."):
        Following(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no run's directory, it holds no run\.toml\."):
        Following(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file: it is a file\."):
        Following(tmp_path / "file")


def runs_in(folder, *names):
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "run.toml").write_text("")


def refused(path):
    with pytest.raises(UserError) as error:
        Following(path)
    return str(error.value).replace(f"{path}/", "").replace(str(path), "DIR")


def test_the_runs_that_a_directory_holds_are_named_those_on_now_first(tmp_path, monkeypatch):
    on = set()
    monkeypatch.setattr(following, "has_writer", lambda path: path.name in on)
    entry, table = tmp_path / "compare/graft", tmp_path / "table"
    runs_in(entry, "seed-0", "seed-1")
    assert refused(entry) == "DIR holds 2 runs: name one, e.g.: seed-0, seed-1."
    on.add("seed-1")
    assert refused(entry) == "DIR holds 2 runs: name one, on now: seed-1; others: seed-0."
    named = "DIR holds 2 runs: name one, on now: graft/seed-1; others: graft/seed-0."
    assert refused(entry.parent) == named
    (entry / "seed-1" / "summary.json").write_text("{}")
    runs_in(entry / "seed-0", "within")  # is none of the comparison's
    assert refused(entry) == "DIR holds 2 runs: name one, e.g.: seed-0, seed-1."
    runs_in(table, *(f"short/panel-a/graft/seed-{n}" for n in (2, 3, 4, 5, 6, 7)))
    on.add("seed-7")
    others = ", ".join(f"short/panel-a/graft/seed-{n}" for n in (2, 3, 4))
    assert refused(table) == (
        f"DIR holds 6 runs: name one, on now: short/panel-a/graft/seed-7; others: {others}; and 2 "
        "more."
    )
    runs_in(tmp_path / "deep", "1/2/3/4/5")
    assert "it holds no run.toml" in refused(tmp_path / "deep")
    runs_in(tmp_path / "one", "run")
    assert refused(tmp_path / "one") == "DIR holds a run: name one, e.g.: run."


def test_a_run_is_on_as_soon_as_somebody_trains_it(tmp_path, monkeypatch):
    held = [False]
    monkeypatch.setattr(following, "has_writer", lambda path: held[0])
    run = tmp_path / "compare/run"
    assert not is_on(run)
    run.mkdir(parents=True)
    assert not is_on(run)
    (run / "run.toml").write_text("")
    assert not is_on(run)
    for held[0] in (True, None):
        assert is_on(run)
    held[0] = False
    (run / "summary.json").write_text("{}")
    assert is_on(run)
    with pytest.raises(UserError, match="compare holds a run: name one"):
        is_on(tmp_path / "compare")
    with pytest.raises(UserError, match=r"run\.toml: it is a file"):
        is_on(run / "run.toml")
