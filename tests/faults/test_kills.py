"""A short form of the harness: every place once; `python -m tests.faults` is the long one."""

import os
import signal

import keras
import pytest

from tests.faults.__main__ import read_only, vanished
from tests.faults.victims import PLACES, TINY, dies_at, differences, forked, going_on

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.skipif(
        keras.config.backend() != "torch" or not hasattr(os, "fork"),
        reason="jax and tensorflow do not survive a fork",
    ),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    end = forked([*TINY, "--out", str(out)])
    assert end.code == 0, end.said
    assert not (out / "checkpoints").exists()
    return out


@pytest.mark.parametrize("place", PLACES)
def test_a_run_that_is_killed_goes_on_to_the_same_end(whole, tmp_path, place):
    counts = {"in a step": (17,), "in a checkpoint's writing": (1, 2), "in a grafting": (2,)}
    out = tmp_path / "run"
    for count in counts.get(place, (3,)):
        end = forked(going_on(out), dies_at(place, count))
        assert end.code == -signal.SIGKILL, end.said
    end = forked(going_on(out))
    assert end.code == 0, end.said
    assert differences(whole, out) == []


@pytest.mark.parametrize(
    ("number", "code", "name"),
    [
        (signal.SIGTERM, 143, "SIGTERM"),
        (signal.SIGINT, 130, "Ctrl-C"),
        (signal.Signals["SIGHUP"], 129, "SIGHUP"),
    ],
)
def test_a_run_that_is_asked_to_end_says_how_to_go_on(whole, tmp_path, number, code, name):
    out = tmp_path / "run"

    def asks() -> None:
        from kgraft.engines.stepper import Stepper

        signal.signal(number, signal.default_int_handler)  # whatever the tests run under
        real, seen = Stepper.step, [0]

        def step(self, data):
            seen[0] += 1
            if seen[0] == 22:
                os.kill(os.getpid(), number)
            return real(self, data)

        Stepper.step = step

    end = forked([*TINY, "--out", str(out)], asks)
    assert end.code == code, end.said
    assert end.lines == [f"kgraft: stopped by {name}: go on with kgraft fit --resume {out}"]
    assert forked(["fit", "--resume", str(out)]).code == 0
    assert differences(whole, out) == []


def test_a_run_that_is_told_twice_ends_at_once_and_says_how_to_go_on(tmp_path):
    out = tmp_path / "run"

    def asks() -> None:
        from kgraft.engines.stepper import Stepper

        real, seen = Stepper.step, [0]

        def step(self, data):
            seen[0] += 1
            for _ in range(2 * (seen[0] == 22)):
                os.kill(os.getpid(), signal.SIGTERM)
            return real(self, data)

        Stepper.step = step

    end = forked([*TINY, "--out", str(out)], asks)
    assert end.code == 143
    assert end.lines == [f"kgraft: ended at once by SIGTERM: go on with kgraft fit --resume {out}"]


@pytest.mark.parametrize("fault", [vanished, read_only])
def test_a_directory_that_cannot_be_written_to_ends_the_run_in_one_line(whole, tmp_path, fault):
    row = fault(tmp_path, whole, 1)
    assert row.count == 1
    assert row.lost == []
