"""What a run tells others as it goes on: event files, metrics.csv, callbacks of the user's own."""

import csv
import json
import logging
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest

from kgraft.analysis import event_files
from kgraft.errors import UserError
from kgraft.runs.assembly import assemble
from kgraft.runs.ending import trained_epochs
from kgraft.runs.environment import parts_of
from kgraft.runs.execution import execute
from kgraft.runs.methods import settled
from kgraft.runs.stopping import Stopping
from kgraft.runs.unfinished import read_unfinished
from tests.reference.event_files import steps, values
from tests.runs.test_resume import Breaks, Broken, assert_one

OWN = '''
import keras

made = []


class Watch(keras.callbacks.Callback):
    def __init__(self, peer, run, settings):
        super().__init__()
        self.peer, self.run, self.settings, self.heard = peer, run, settings, []
        made.append(self)

    def on_epoch_end(self, epoch, logs=None):
        self.heard.append(epoch)


class Notes(keras.callbacks.Callback):
    """What it knows is in no checkpoint."""

    def __init__(self):
        super().__init__()
        self.notes = {1, 2}


class Stops(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = epoch == 1


class Fails(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        raise RuntimeError("no network")


class FailsLater(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        if epoch == 1:
            raise RuntimeError("no network")


def second_only(peer):
    return Stops() if peer == 2 else keras.callbacks.Callback()


def make(**given):
    made.append(sorted(given))
    return keras.callbacks.Callback()


class Needs(keras.callbacks.Callback):
    def __init__(self, project, peer):
        super().__init__()


class Other:
    pass


def of_keras():
    return keras.callbacks.CSVLogger("/nowhere/metrics.csv")


def nothing():
    return 3


def broken(run):
    raise OSError("no network")


word = "a word"
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_callbacks.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield lambda *names: tuple(f"own_callbacks:{name}" for name in names)
    sys.modules.pop("own_callbacks", None)


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_told(run):
    """The event files and the table have all of metrics.jsonl, and nothing else."""
    rows = metrics(run)
    with (run / "metrics.csv").open() as file:
        read = list(csv.DictReader(file))
    for row, told in zip(rows, read, strict=True):
        assert (told["phase"], int(told["model"]), int(told["epoch"])) == (
            row["phase"], row["model"], row["epoch"]
        )  # fmt: skip
        assert {name: float(own) for name, own in told.items() if own and name != "phase"} == {
            name: value for name, value in row.items() if name != "phase"
        }
    models = {(row["phase"], row["model"]) for row in rows}
    folders = {f"peer {n}" if phase == "peers" else phase for phase, n in models}
    assert {own.name for own in (run / "tensorboard").iterdir()} == folders
    for phase, number in models:
        own = [row for row in rows if (row["phase"], row["model"]) == (phase, number)]
        folder = run / "tensorboard" / (f"peer {number}" if phase == "peers" else phase)
        for tag, told in values(folder).items():
            wanted = [(row["epoch"], row[tag]) for row in own if tag in row]
            if tag not in ("filters", "alpha_of_layers"):
                assert told == [(step, pytest.approx(value, rel=1e-6)) for step, value in wanted]
        assert steps(folder)["filters"] == [row["epoch"] for row in own]
    assert steps(run / "tensorboard" / "peer 1")["alpha_of_layers"] == [1, 2, 3]


def test_a_run_that_goes_on_has_told_every_epoch_once(tiny, tmp_path):
    config = tiny(run__epochs=3, run__tensorboard=True, run__csv=True, checkpoint__every=2)
    execute(assemble(tiny(run__epochs=3)), tmp_path / "whole")
    out = tmp_path / "out"
    for number, where in enumerate([("teacher 1", 2), ("peers", 2), ("peers", 3)]):
        with pytest.raises(Broken):
            execute(assemble(config), out, Breaks(*where), resume=number > 0)
    with (out / "metrics.csv").open("a") as file:
        file.write("half a li")  # of a process that was killed
    execute(assemble(read_unfinished(out)), out, resume=True)
    assert_told(out)
    assert_one(tmp_path / "whole", out)


def test_a_missing_package_is_told_before_anything_is_trained(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(event_files, "find_spec", {"tensorboardX": None}.get)
    with pytest.raises(UserError, match=r"pip install 'kgraft\[live\]'"):
        assemble(tiny(run__tensorboard=True))


def test_grafted_teachers_have_a_folder_each(tiny, tmp_path):
    config = tiny(run__epochs=1, run__tensorboard=True, teachers__count=2, teachers__grafted=True)
    execute(assemble(config), tmp_path / "run")
    folders = {own.name for own in (tmp_path / "run" / "tensorboard").iterdir()}
    assert folders == {"teacher 1", "teacher 2", "peer 1", "peer 2"}


def test_a_callback_watches_every_peer_and_no_teacher(tiny, tmp_path, own):
    config = tiny(run__callbacks=own("Watch", "make"))
    execute(assemble(config), tmp_path / "run")
    from own_callbacks import Watch, made

    watching = [callback for callback in made if isinstance(callback, Watch)]
    assert [callback.peer for callback in watching] == [1, 2]
    assert [callback.heard for callback in watching] == [[0, 1], [0, 1]]
    assert {callback.run for callback in watching} == {tmp_path / "run"}
    assert watching[0].settings["run"]["method"] == "graft+"
    assert watching[0].settings["data"]["limit_train"] == 96
    assert made.count(["peer", "run", "settings"]) == 2  # of a function that takes anything
    told = json.loads((tmp_path / "run" / "environment.json").read_text())["parts"]
    assert told[own("Watch")[0]]["file"] == str(tmp_path / "own_callbacks.py")


def test_keras_own_callbacks_are_no_part_that_is_written_down(tiny):
    config = settled(tiny(run__callbacks=("keras.callbacks:TerminateOnNaN",)))
    assert parts_of(config) == {}


@pytest.mark.parametrize("name", ["Stops", "second_only"])
def test_one_that_stops_its_peer_stops_them_all(tiny, tmp_path, own, name):
    config = tiny(run__epochs=4, teachers__count=0, run__callbacks=own(name))
    summary = execute(assemble(config), tmp_path / "run")
    assert [row["epoch"] for row in metrics(tmp_path / "run")] == [1, 1, 2, 2]
    assert [row["last_epoch"] for row in summary["peers"]] == [2, 2]
    images = summary["images_per_second"] * summary["seconds"]
    assert images == pytest.approx(2 * 2 * 86, rel=0.01)  # peers, epochs, images without held-out


def test_epochs_that_a_lost_peer_missed_are_not_counted(tmp_path):
    rows = [(1, 1), (2, 1), (1, 2), (1, 3), (2, 3)]
    lines = [{"phase": "peers", "model": k, "epoch": e, "lr": 0.1} for k, e in rows]
    lines.append({"phase": "teacher 1", "model": 1, "epoch": 1, "lr": 0.1})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(own) + "\n" for own in lines))
    assert trained_epochs(tmp_path) == 5


def test_what_a_checkpoint_does_not_hold_is_named(tiny, tmp_path, own, caplog):
    config = tiny(run__epochs=3, teachers__count=0, run__callbacks=own("Watch", "Notes"))
    with pytest.raises(Broken):
        execute(assemble(config), tmp_path / "run", Breaks("peers", 3))
    with caplog.at_level(logging.WARNING, "kgraft"):
        execute(assemble(config), tmp_path / "run", resume=True)
    named = [line for line in caplog.messages if "which no checkpoint holds" in line]
    assert len(named) == 2  # one a peer
    assert all(line.startswith("Notes has notes, ") for line in named)
    from own_callbacks import Watch, made

    ends = [callback.heard for callback in made if isinstance(callback, Watch)][-2:]
    assert ends == [[0, 1, 2], [0, 1, 2]]


@pytest.mark.parametrize(
    ("reference", "line"),
    [
        ("Watch", "callback 'Watch': expected module:Class, e.g. my_package.watch:Watch."),
        ("own_callbacks:Wotch", r"own_callbacks.py has no 'Wotch'. Did you mean 'Watch'\?"),
        ("nowhere:Watch", "callback 'nowhere:Watch' cannot be loaded: there is no module 'nowher"),
        ("own_callbacks:Other", "is the class Other: expected a class of Keras callbacks, or a f"),
        ("own_callbacks:word", "callback 'own_callbacks:word' is 'a word': expected a class of K"),
        ("own_callbacks:Needs", "needs project, and is given peer, run, settings at most: name a"),
        ("keras.callbacks:ModelCheckpoint", "needs filepath, and is given peer, run, settings a"),
    ],
)
def test_a_wrong_one_is_told_before_anything_is_trained(tiny, own, reference, line):
    with pytest.raises(UserError, match=line):
        assemble(tiny(run__callbacks=(reference,)))


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("nothing", "callback 'own_callbacks:nothing' has made 3: expected a Keras callback."),
        ("broken", r"callback 'own_callbacks:broken' failed: OSError: no network \(own_callb.*:\d"),
        ("Fails", r"'own_callbacks:Fails' failed: RuntimeError: no network \(own_callbacks.*:\d+"),
    ],
)
def test_one_that_fails_is_told_in_one_line(tiny, tmp_path, own, name, line):
    config = tiny(teachers__count=0, run__epochs=1, run__callbacks=own(name))
    with pytest.raises(UserError, match=line):
        execute(assemble(config), tmp_path / "run")
    assert not list(Path(tmp_path / "run").glob("peers/*"))


def test_one_that_fails_says_how_to_go_on_where_something_is_saved(tiny, tmp_path, own):
    stopping = Stopping(lambda: "kgraft fit --resume RUN")
    config = tiny(teachers__count=0, run__epochs=3, run__callbacks=own("FailsLater"))
    with pytest.raises(UserError) as failed:
        execute(assemble(config), tmp_path / "later", stopping=stopping)
    assert re.fullmatch(
        r"'own_callbacks:FailsLater' failed: RuntimeError: no network \(own_callbacks\.py:\d+\)\. "
        "What was trained is saved, to go on: kgraft fit --resume RUN",
        str(failed.value),
    )
    config = tiny(teachers__count=0, run__epochs=3, run__callbacks=own("Fails"))
    with pytest.raises(UserError) as failed:
        execute(assemble(config), tmp_path / "at once", stopping=stopping)
    assert "--resume" not in str(failed.value)


def test_one_of_keras_own_that_fails_is_told_in_one_line(tiny, tmp_path, own, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "tensorflow.summary", None)
    small = {"teachers__count": 0, "run__epochs": 1}
    config = tiny(**small, run__callbacks=("keras.callbacks:TensorBoard",))
    with pytest.raises(UserError) as failed:
        execute(assemble(config), tmp_path / "board")
    assert re.fullmatch(
        r"'keras.callbacks:TensorBoard' failed: ModuleNotFoundError: .* \(tensorboard\.py:\d+\)\. "
        r"--tensorboard, run\.tensorboard = true, needs no TensorFlow and is for all peers\.",
        str(failed.value),
    )
    config = tiny(**small, run__callbacks=own("of_keras"))  # a function that makes one
    with pytest.raises(UserError, match=r"'own_callbacks:of_keras' failed: FileNotFoundError: "):
        execute(assemble(config), tmp_path / "csv")


DOCUMENT = (Path(__file__).parents[2] / "kgraft/docs/analysis.md").read_text(encoding="utf-8")
TRACKERS = re.findall(r"```python\n(# tracking.*?)```", DOCUMENT, re.S)


class Wandb:
    """A stand-in for a run of wandb, which is not installed here."""

    runs: ClassVar = []

    def __init__(self, **given):
        self.name, self.told, self.ended = given["id"], {}, False
        self.config = given["config"]
        self.runs.append(self)

    def log(self, values, step):
        self.told[step] = values

    def finish(self):
        self.ended = True


class MlflowClient:
    """A stand-in for MLflow's."""

    runs: ClassVar = []

    def __init__(self, store):
        self.name, self.told, self.ended, self.config = "", {}, False, {}
        self.runs.append(self)

    def create_run(self, experiment, run_name):
        self.name = run_name
        return SimpleNamespace(info=SimpleNamespace(run_id=f"id of {run_name}"))

    def log_param(self, run, key, value):
        table, _, name = key.partition(".")
        self.config.setdefault(table, {})[name] = value

    def log_metric(self, run, key, value, step):
        assert run == f"id of {self.name}"
        self.told.setdefault(step, {})[key] = value

    def set_terminated(self, run):
        self.ended = True


@pytest.mark.parametrize(
    ("code", "package", "stand_in", "name"),
    [
        (TRACKERS[0], "wandb", {"init": Wandb}, "tracking:Wandb"),
        (TRACKERS[1], "mlflow", {"MlflowClient": MlflowClient}, "tracking_mlflow:Mlflow"),
    ],
    ids=["wandb", "mlflow"],
)
def test_the_readmes_trackers_get_every_epoch(
    tiny, tmp_path, monkeypatch, code, package, stand_in, name
):
    module, runs = name.partition(":")[0], next(iter(stand_in.values())).runs
    monkeypatch.setitem(sys.modules, package, SimpleNamespace(**stand_in))
    (tmp_path / f"{module}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    execute(assemble(tiny(teachers__count=0, run__callbacks=(name,))), tmp_path / "run")
    sys.modules.pop(module)
    rows = metrics(tmp_path / "run")
    assert len(runs) == 2
    for k, run in enumerate(runs, start=1):
        assert run.name.startswith("run") and run.name.endswith(f"{k}") and run.ended
        assert run.config["peers"] == {"count": 2}
        logged = {row["epoch"]: row["val_loss"] for row in rows if row["model"] == k}
        assert {step: own["val_loss"] for step, own in run.told.items()} == logged
        assert not any(name.startswith("peer") for name in run.told[1])
    runs.clear()
