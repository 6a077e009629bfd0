"""Run files, comparison files and command lines that nobody would write: what kgraft says to them.

    python -m tests.faults.fuzz --files 10000 --commands 500

prints how many were taken and refused. Run and comparison files are read, checked and settled.
Command lines run in this process; a training is left out (`execute` and `train_missing` do nothing)
and so are `kgraft bench`, which only measures, and downloads. Whatever is neither taken nor refused
in one line is a fault: a traceback, another exit code, something left behind by a refusal.
"""

import argparse
import collections
import contextlib
import io
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import click
import hypothesis
from hypothesis import strategies as st

from kgraft import kinds, settings
from kgraft.errors import UserError
from kgraft.runs import config as configs
from kgraft.runs import methods
from kgraft.runs.comparisons.file import read_comparison

ROOT = Path(__file__).parents[2]
OWNERS = {
    **{table: type(getattr(configs.Config(), table)) for table in configs.TABLES},
    **methods.tables(),
}
KEYS = [(table, key) for table, owner in OWNERS.items() for key in settings.keys_of(owner)]
RUN_FILES = [p for p in sorted(ROOT.glob("configs/**/*.toml")) if p.parent.name != "comparisons"]
COMPARISONS = sorted(ROOT.glob("configs/comparisons/*.toml"))
ODD = [
    *("-1", "0", "1", "2", "3.5", "1e400", "-1e-300", "nan", "inf", "-inf", "10" * 60, "true"),
    *('"x"', '""', '"\\u0000"', '"\\u001b[2J"', '"../../x"', '"@baseline"', f"'{'a' * 300}'"),
    *("[]", "[1]", '["x"]', '[1, "x"]', "[[]]", "[nan]", "{}", "{a = 1}", "2020-02-30", "07:32:00"),
    *("2020-01-01T00:00:00Z", "0x1F", "1_000", '"""a\nb"""', "", "=", "]", "'", "\\", "\u2028"),
]
WORDS = [
    "graft",
    "entropy",
    "resnet8",
    "digits",
    "validation",
    "auto",
    "cosine",
    "a:b",
    ":",
    "os:x",
]


def valid(table, key):
    """TOML of values that a key may have, or nearly."""
    own = settings._fields(settings.keys_of(OWNERS[table])[key])[key]
    rule = settings._rule(own)
    ends = [rule[end] for end in ("low", "high", "above", "below") if end in rule]
    near = [end + step for end in ends for step in (-1, 0, 1, 1e-3)]
    known = [own.default, *(rule.get("choices") or ()), *near]
    shown = [kinds.to_toml(value) for value in known if isinstance(value, bool | int | float | str)]
    return st.sampled_from(shown or ["1"])


text = st.text(max_size=20)
raw = st.one_of(
    st.sampled_from(ODD),
    st.sampled_from(WORDS).map(json.dumps),
    text.map(json.dumps),
    st.integers().map(str),
    st.floats().map(str),
)


@st.composite
def line(draw):
    """A table, and a key of it with a value."""
    table, key = draw(st.sampled_from(KEYS))
    table = draw(st.sampled_from([table] * 8 + [*OWNERS, "runs"]))
    if draw(st.integers(0, 9)) == 0:
        key = draw(st.sampled_from([key[:-1], key + "s", "name", "a.b", '"\\u0000"', ""]))
    fits = table in OWNERS and key in settings.keys_of(OWNERS[table])
    choices = [valid(table, key)] * 6 if fits else []
    return table, key, draw(st.one_of(*choices, raw))


@st.composite
def generated(draw):
    """A run file from the real tables and keys."""
    blocks = {}
    for table, key, value in draw(st.lists(line(), max_size=4)):
        blocks.setdefault(table, {})[key] = value
    return "\n".join(
        f"[{table}]\n" + "\n".join(f"{key} = {value}" for key, value in own.items())
        for table, own in blocks.items()
    ).encode()


@st.composite
def mutated(draw, files):
    """A file of configs/ with some bytes or lines changed."""
    content = draw(st.sampled_from(files)).read_bytes()
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(content)))
        lines = content.splitlines(keepends=True) or [b""]
        k = draw(st.integers(0, len(lines) - 1))
        table, key, value = draw(line())
        new = draw(
            st.sampled_from(
                [
                    content[:at],
                    content[:at] + content[at + 1 :],
                    content[:at] + draw(st.binary(max_size=3)) + content[at:],
                    content[:at] + bytes([draw(st.integers(0, 255))]) + content[at + 1 :],
                    b"".join(lines[:k] + lines[k + 1 :]),
                    b"".join([*lines[:k], lines[k], *lines[k:]]),
                    b"".join([*lines[:k], lines[-1 - k], *lines[k + 1 :]]),
                    b"".join([*lines[:k], f"{key} = {value}\n".encode(), *lines[k:]]),
                    b"".join([*lines[:k], f"{table}.{key} = {value}\n".encode(), *lines[k:]]),
                ]
            )
        )
        content = new
    return content


plain = st.recursive(
    st.one_of(st.booleans(), st.integers(), st.floats(), text),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(text, inner, max_size=3)),
    max_leaves=6,
)


def as_toml(value):
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {as_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    return json.dumps(value) if isinstance(value, str) else str(value).lower()


tables = st.sampled_from([*OWNERS, "comparison", "common", "entries", "scion"])
random_toml = st.one_of(
    st.binary(max_size=60),
    st.dictionaries(st.one_of(tables, text), plain, max_size=4).map(
        lambda d: "\n".join(f"{json.dumps(k)} = {as_toml(v)}" for k, v in d.items()).encode()
    ),
)


@st.composite
def compared(draw):
    """A comparison file from real tables and keys."""
    lines = ["[comparison]"]
    lines += draw(st.lists(st.sampled_from(
        [f"{key} = {value}" for key in ("seeds", "baseline", "seed") for value in
         ("[0]", "[0, 0]", "[-1]", '"a"', '["a"]', "[[]]", "3", "true", '""', "{}", "[1e9]")]
    ), max_size=1))  # fmt: skip
    for table, key, value in draw(st.lists(line(), max_size=2)):
        lines.append(f"[common.{table}]\n{key} = {value}")
    names = draw(st.lists(st.sampled_from(["a", "b", "a b", "", ".", "..", "a/b", "\\u0000",
                                           "[/red]", "A"]), max_size=3))  # fmt: skip
    for name in names:
        lines.append(f'[entries."{name}"]')
        own = draw(st.lists(st.sampled_from(["result", "runs_of", "budget", "line"]), max_size=3))
        for key in own:
            table, setting, value = draw(line())
            value = draw(st.one_of(st.just(value), raw, st.sampled_from(['"a"', '"soup"', "2"])))
            lines.append(f"{table}.{setting} = {value}" if key == "line" else f"{key} = {value}")
    return "\n".join(lines).encode()


files = st.one_of(
    st.tuples(st.just("run"), st.one_of(generated(), mutated(RUN_FILES), random_toml)),
    st.tuples(st.just("comparison"), st.one_of(compared(), mutated(COMPARISONS), random_toml)),
)


def outcome_of_file(kind, content, folder):
    """`"taken"` or `"refused"`; anything else is raised."""
    path = folder / "fuzzed.toml"
    path.write_bytes(content)
    try:
        if kind == "run":
            config = methods.settled(configs.read(path))
            methods.mixer_of(config)
            assert configs.parse(config.to_toml(), "again") == config
        else:
            read_comparison(path)
    except UserError as error:
        assert len(" ".join(str(error).split())) < 4000
        assert "\n" not in str(error).strip(), str(error)
        return "refused"
    finally:
        path.unlink()
    assert not list(folder.iterdir())
    return "taken"


# command lines


def commands():
    """Words of a command -> its options and arguments."""
    from kgraft_cli import compare, data, evaluate, fit, info, models, select
    from kgraft_cli import configs as shipped
    from kgraft_cli import methods as listed
    from kgraft_cli import weights as of_weights

    found = {}
    modules = (compare, data, evaluate, fit, info, models, select, listed, of_weights, shipped)
    for module in modules:
        own = module.command
        if isinstance(own, click.Group):
            for name, sub in own.commands.items():
                found[(own.name, name)] = sub
        else:
            found[(own.name,)] = own
    return found


VALUES = {
    "runfile": ["quick.toml", "quickstart", "bad.toml", "none.toml", "run", "", "/dev/null", "."],
    "comparison": ["c.toml", "comparisons/committee", "quick.toml", "none.toml", "run", ""],
    "run": ["run", "broken", "none", ".", "", "quick.toml", "run/"],
    "resume": ["broken", "run", "none", "", "quick.toml"],
    "source": ["run", "w.pt", "w.safetensors", "m.keras", "none.pt", "quick.toml", "."],
    "model": ["resnet8", "wrn-10-1", "resnet9", "wrn", "", "resnet8,resnet8"],
    "teacher_model": ["resnet8", "none"],
    "out": ["new", "run", "quick.toml", "a/b/c", "", "new.keras", "new.pt", "run/x.keras", "[/x]"],
    "callback": ["keras.callbacks:TerminateOnNaN", "keras.callbacks:Callback", "os:x", "keras:x"],
    "dataset": ["digits", "mine.npz", "none.npz", "mnist", "", "quick.toml"],
    "name": ["digits", "cifar10", "cifar", "mnist", "", "quickstart", "cifar/resnet20"],
    "file": ["new.toml", "quick.toml", "run", "/dev/null", ".", ""],
    "word": ["fair", "x", ""],
    "archive": ["none.tar.gz", "quick.toml", "run", ""],
    "changes": ["run.epochs=2", "graft.sharpness=1", "x", "=", "a.b=c", "run.epochs=[", "run=1"],
    "method": [*sorted(methods.METHODS), "none", "a:b", ":"],
    "peers": ["1", "2", "3", "0", "-1", "x", "1.5", ""],
    "seeds": ["0", "0,1", "0,0", "x", "", ",", "-1"],
    "layout": ["cifar", "torchvision", "none", ""],
    "input_shape": ["8,8,1", "32,32,3", "0,0,0", "8,8", "1,1,1", "x", "8,8,-1", "\u0663,8,1"],
    "size": ["8", "32", "7", "0", "x"],
}
NUMBERS = ["0", "1", "2", "-1", "x", "", "1e3", "nan", "inf", "999999999999", "\u0663", "1_0"]
ANY = st.one_of(
    st.sampled_from(["", "x", "--", "-", "--help", "\x1b[2J", "\u2028", "a" * 300, "../x"]),
    st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=8),
)


@st.composite
def command_lines(draw):
    """Real options with valid and invalid values, and random words."""
    known = commands()
    kind = draw(st.integers(0, 19))
    if kind == 0:
        return draw(st.lists(ANY, max_size=4))
    words, command = draw(st.sampled_from(sorted(known.items())))
    arguments = [*words]
    for own in command.params:
        required = isinstance(own, click.Argument) or own.required
        if not required and draw(st.integers(0, 7)):
            continue
        if required and draw(st.integers(0, 19)) == 0:
            continue
        pool = VALUES.get(own.name, NUMBERS if own.type in (click.INT, click.FLOAT) else None)
        value = draw(st.sampled_from(pool)) if pool and draw(st.integers(0, 9)) else draw(ANY)
        if isinstance(own, click.Argument):
            arguments.append(value)
        elif own.is_flag:
            arguments.append(own.opts[0])
        else:
            arguments += [draw(st.sampled_from(own.opts)), value]
    if draw(st.integers(0, 9)) == 0:
        arguments.insert(draw(st.integers(0, len(arguments))), draw(ANY))
    if words == ("fit",):  # small, so that what is built is
        arguments += ["--limit-train", "80"] * draw(st.booleans())
    return arguments


def folder_of_files(folder):
    """What command lines name: runs, models, weights, data."""
    import keras
    import numpy as np

    from kgraft import models
    from kgraft.runs import state_dict
    from kgraft.runs.assembly import assemble
    from kgraft.runs.execution import execute
    from kgraft.runs.weights import export_weights

    own = {"limit_train": 96, "limit_test": 40}
    config = configs.Config()
    for key, value in {
        **{f"data.{name}": value for name, value in own.items()},
        **{"run.batch_size": 32, "run.epochs": 1, "peers.count": 2, "teachers.count": 0},
    }.items():
        config = config.changed(key, value, "fuzz")
    execute(assemble(config), folder / "run")
    shutil.copytree(folder / "run", folder / "broken")
    (folder / "broken/summary.json").unlink()
    models.resnet8(classes=3, input_shape=(8, 8, 1)).save(folder / "m.keras")
    export_weights(folder / "m.keras", folder / "w.pt")
    state_dict.write(folder / "w.safetensors", state_dict.read(folder / "w.pt"))
    images = np.zeros((40, 8, 8, 1), np.uint8)
    np.savez(folder / "mine.npz", x_train=images, y_train=np.arange(40) % 2,
             x_test=images[:4], y_test=np.arange(4) % 2)  # fmt: skip
    (folder / "quick.toml").write_bytes((ROOT / "configs/quickstart.toml").read_bytes())
    (folder / "bad.toml").write_text("[run\n")
    (folder / "c.toml").write_bytes(COMPARISONS[0].read_bytes())
    keras.backend.clear_session()


SUMMARY = {
    "selected_on": "validation",
    "peers": [],
    "ensemble": {"test_accuracy": 0.5},
    "teachers": [],
    "seconds": 1.0,
    "images_per_second": 1.0,
}


@contextlib.contextmanager
def nothing_is_trained():
    """`execute` and `train_missing` do nothing, nothing is fetched, and nobody is waited for."""

    def offline(*_):
        raise UserError("nothing is fetched here.")

    from kgraft.data import builders

    with (
        mock.patch("kgraft.runs.execution.execute", lambda *_, **__: dict(SUMMARY)),
        mock.patch("kgraft.runs.comparisons.runs.train_missing", lambda *_: None),
        mock.patch.object(builders, "download", offline),
        mock.patch("kgraft.runs.following.has_writer", lambda _: False),
        mock.patch("kgraft.runs.following._LEAVE", 0.0),
    ):
        yield


def listed(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.name != "__pycache__"}


def outcome_of_command(arguments, pristine):
    """Its exit code; whatever must not be is raised."""
    from kgraft_cli.main import main

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(pristine, folder, dirs_exist_ok=True)
        before = listed(folder)
        out, err = io.StringIO(), io.StringIO()
        here = Path.cwd()
        os.chdir(folder)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                main(arguments)
        except SystemExit as left:
            code = left.code
        finally:
            os.chdir(here)
        assert code in (0, 1, 2, 130, 143), code
        if code:
            said = err.getvalue()
            assert said.startswith("Usage: ") or said.count("\n") == 1, said
            assert listed(folder) == before, {*listed(folder)} - {*before}
    return code


SETTINGS = {
    "deadline": None,
    "database": None,
    "suppress_health_check": list(hypothesis.HealthCheck),
    "phases": [hypothesis.Phase.generate, hypothesis.Phase.shrink],
}


def run(argv=None):
    """Fuzz, and print what came of it."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.fuzz")
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--commands", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(argv)
    counts = collections.Counter()
    faults = []

    def count(number, strategy, outcome):
        if not number:
            return

        @hypothesis.seed(asked.seed)
        @hypothesis.settings(max_examples=number, **{**SETTINGS, "phases": SETTINGS["phases"][:1]})
        @hypothesis.given(strategy)
        def each(given):
            try:
                counts[outcome(given)] += 1
            except Exception as error:
                counts["FAULT"] += 1
                faults.append((given, f"{type(error).__name__}: {error}"))

        each()

    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        count(asked.files, files, lambda own: f"{own[0]} file {outcome_of_file(*own, Path(name))}")
    print(f"{asked.files} files in {time.perf_counter() - began:.0f} s")
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        pristine = Path(name)
        if asked.commands:
            folder_of_files(pristine)
        with nothing_is_trained():
            count(
                asked.commands,
                command_lines(),
                lambda own: f"command, exit code {outcome_of_command(own, pristine)}",
            )
    print(f"{asked.commands} command lines in {time.perf_counter() - began:.0f} s")
    for what, number in sorted(counts.items()):
        print(f"{what:<28}{number:>7,}")
    for given, said in faults[:20]:
        print(f"{given!r}\n    {said}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(run())
