"""Presence: what the system says of a process, and how long one has been silent."""

import os
import signal
import subprocess
import sys
import time

import pytest

from kgraft.links.presence import Heartbeat, Listener, _began, own_presence, state_of
from tests.links.memory_store import MemoryStore

if not sys.platform.startswith("linux"):
    pytest.skip("there is no /proc", allow_module_level=True)


@pytest.fixture
def child():
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def until(presence, state):
    for _ in range(500):
        if state_of(presence) == state:
            return
        time.sleep(0.01)
    assert state_of(presence) == state


def test_this_process_runs():
    assert state_of(own_presence()) == "runs"


def test_a_process_is_stopped_goes_on_and_is_gone(child):
    presence = {**own_presence(), "pid": child.pid, "began": _began(child.pid)}
    until(presence, "runs")
    os.kill(child.pid, signal.SIGSTOP)
    until(presence, "stopped")
    os.kill(child.pid, signal.SIGCONT)
    until(presence, "runs")
    child.kill()
    until(presence, "gone")  # a zombie yet
    child.wait()
    assert state_of(presence) == "gone"


def test_another_process_of_that_number_is_another_one():
    assert state_of({**own_presence(), "began": "1"}) == "gone"


@pytest.mark.parametrize("machine", ["", "another pid:[1]"])
def test_of_another_machine_nothing_is_known(machine):
    assert state_of({**own_presence(), "machine": machine}) == "unknown"


def test_where_there_is_no_proc_nothing_is_known(monkeypatch):
    monkeypatch.setattr("kgraft.links.presence._machine", lambda: "")
    assert state_of(own_presence()) == "unknown"


def test_a_heart_beats_until_it_is_stopped():
    store = MemoryStore()
    heart, listener = Heartbeat(store, "beat", 0.02), Listener(store)
    listener.begin("beat")
    time.sleep(0.3)
    assert listener.silent("beat") < 0.2
    heart.stop()
    last = store.get("beat")
    assert int(last) >= 3
    listener.silent("beat")
    time.sleep(0.1)
    assert store.get("beat") == last
    assert 0.1 <= listener.silent("beat") < 0.4


def test_a_heart_beats_on_when_the_store_is_gone_for_a_moment():
    class Failing(MemoryStore):
        fails = True

        def set(self, key, value):
            if self.fails:
                raise OSError("gone")
            super().set(key, value)

    store = Failing()
    heart = Heartbeat(store, "beat", 0.01)
    time.sleep(0.05)
    assert store.get("beat") is None
    store.fails = False
    time.sleep(0.1)
    heart.stop()
    assert store.get("beat") is not None
