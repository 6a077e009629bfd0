from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kgraft import models
from kgraft.errors import UserError
from kgraft.runs import config as configs
from kgraft.runs.comparisons.file import read_comparison
from kgraft.runs.config import Config
from kgraft.runs.methods import tables
from kgraft.runs.toml_text import parse_assignment
from kgraft.settings import default_of, keys_of

ROOT = Path(__file__).parents[2]
COMPARISONS = sorted((ROOT / "configs" / "comparisons").glob("*.toml"))
OTHERS = ("comparisons", "tables")
FILES = [f for f in sorted((ROOT / "configs").rglob("*.toml")) if f.parent.name not in OTHERS]


def test_the_quickstart_file_is_the_default():
    quickstart = next(file for file in FILES if file.name == "quickstart.toml")
    assert configs.read(quickstart) == Config()


@pytest.mark.parametrize("file", COMPARISONS, ids=lambda file: file.stem)
def test_every_comparison_is_a_fair_one(file):
    comparison = read_comparison(file)
    assert len(comparison.seeds) >= 3
    methods = {entry.config.run.method for entry in comparison.entries}
    alone = len(methods) == 1  # it is their precisions that are compared
    assert alone or comparison.entry(comparison.baseline).config.run.method == "baseline"


def test_every_run_file_builds_its_models():
    read = [configs.read(file) for file in FILES]
    for name in {c.model.name for c in read} | {c.teachers.model for c in read}:
        model = models.build(name, input_shape=(32, 32, 3), classes=10)
        assert model.output_shape == (None, 10)


ROWS = {"baseline", "distillation", "l1-slr", "entropy-slr", "entropy-dlr"}
PUBLISHED = {  # FG tables 3 and 5: which rows have numbers
    "resnet32": ROWS | {"mutual", "repr"},
    "resnet56": ROWS,
    "resnet110": ROWS | {"repr"},
    "mobilenet_v2": ROWS,
    "wrn-28-10": {"baseline", "distillation", "entropy-dlr", "mutual"},
}
AUTHORS = {
    "run.select": "test",
    "data.validation": 0.0,
    "data.mean": (0.4914, 0.4822, 0.4465),
    "data.std": (0.2023, 0.1994, 0.2010),
}
AUTHORS_GRAFTING = {"graft.decimals": 2, "graft.grouping": "authors", "graft.evaluate": "before"}


METHODS_SETTINGS = {
    f"{table}.{key}": default_of(owner, key)
    for table, owner in tables().items()
    for key in keys_of(owner)
}


def flat(config):
    return {**METHODS_SETTINGS, **config.flat()}


@pytest.mark.parametrize(
    ("model", "row"), [(model, row) for model, rows in PUBLISHED.items() for row in sorted(rows)]
)
def test_authors_and_fair_run_files_differ_in_the_authors_ways_alone(model, row):
    authors, fair = (
        flat(configs.read(ROOT / "configs" / "cifar" / side / f"{model}-{row}.toml"))
        for side in ("authors", "fair")
    )
    grafts = row.endswith(("-slr", "-dlr"))
    expected = {**AUTHORS, **(AUTHORS_GRAFTING if grafts else {})}
    if row.startswith("entropy"):
        expected["graft.binning"] = "authors"
    if model.startswith("wrn"):
        expected["model.head_init"] = "torch"
    assert {key: value for key, value in authors.items() if fair[key] != value} == expected
    assert fair["data.validation"] == 0.1
    assert (fair["run.batch_size"], fair["run.epochs"]) == (128, 200)
    assert (fair["optimizer.lr"], fair["optimizer.momentum"], fair["optimizer.l2"]) == (
        *(0.1, 0.9),
        5e-4,
    )
    dlr = row == "entropy-dlr"
    assert (fair["schedule.name"], fair["schedule.spread"]) == (
        ("cosine-per-step", True) if dlr else ("step", False)
    )
    assert fair["peers.count"] == (2 if grafts or row == "mutual" else 1)
    assert fair["run.method"] == (row if row in ("mutual", "repr") else None)
    assert fair["teachers.count"] == (1 if row == "distillation" else 0)
    assert fair["teachers.count"] == 0 or fair["teachers.model"] == model
    assert fair["model.name"] == model
    assert fair["graft.criterion"] == ("l1" if row == "l1-slr" else "entropy")


def test_there_is_no_run_file_for_a_row_without_published_numbers():
    for side in ("authors", "fair"):
        found = {file.stem for file in (ROOT / "configs" / "cifar" / side).iterdir()}
        assert found == {f"{model}-{row}" for model, rows in PUBLISHED.items() for row in rows}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_resolved_run_file_reads_back_the_same(file):
    config = configs.read(file)
    assert configs.parse(config.to_toml(), "copy") == config


@given(
    st.text(st.characters(exclude_categories=("Cs",)), max_size=20),
    st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=8), max_size=3),
    st.floats(1e-9, 1e9),
    st.booleans(),
    st.none() | st.integers(1, 10**9),
)
def test_any_settings_survive_being_written(name, files, lr, nesterov, limit):
    config = Config()
    for key, value in {
        "data.name": name,
        "teachers.files": files,
        "optimizer.lr": lr,
        "optimizer.nesterov": nesterov,
    }.items():
        config = config.changed(key, value, "test")
    if limit is not None:
        config = config.changed("data.limit_train", limit, "test")
    assert configs.parse(config.to_toml(), "copy") == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[optimizer]\nmomentun = 0.9",
            "r.toml: [optimizer] unknown key 'momentun'. Did you mean 'momentum'?",
        ),
        ("[optimiser]\nlr = 0.1", "r.toml: unknown table 'optimiser'. Did you mean 'optimizer'?"),
        ("epochs = 3", "r.toml: unknown key outside any table 'epochs'. Known: "),
        ("run = 3", "r.toml: run is a value; expected a table [run]."),
        ("[run]\nepochs = 2.5", "r.toml: [run] epochs = 2.5: expected a whole number."),
        ("[run]\nepochs = true", "r.toml: [run] epochs = true: expected a whole number."),
        ("[run]\nepochs = 0", "r.toml: [run] epochs = 0: expected 1 or more."),
        ("[peers]\ncount = 0", "r.toml: [peers] count = 0: expected 1..1024."),
        (
            "[peers]\ncount = 100000000000",
            "r.toml: [peers] count = 100000000000: expected 1..1024.",
        ),
        ("[teachers]\ncount = 1025", "r.toml: [teachers] count = 1025: expected 0..1024."),
        (
            "[optimizer]\nmomentum = 1.0",
            "r.toml: [optimizer] momentum = 1.0: expected 0.0 or more, less than 1.0.",
        ),
        ("[graft]\ndecimals = 400", "r.toml: [graft] decimals = 400: expected 1..15."),
        (
            "[graft]\nbins = 1000000000000",
            "r.toml: [graft] bins = 1000000000000: expected 1..4096.",
        ),
        ("[graft]\namplitude = 1.5", "r.toml: [graft] amplitude = 1.5: expected 0.0..1.0."),
        ("[graft]\nsharpness = 0", "r.toml: [graft] sharpness = 0.0: expected more than 0."),
        ("[graft]\nsharpness = nan", "r.toml: [graft] sharpness = nan: expected more than 0."),
        (
            '[schedule]\nname = "cosin"',
            "r.toml: [schedule] name = \"cosin\". Did you mean 'cosine'?",
        ),
        ('[data]\nflip = "no"', 'r.toml: [data] flip = "no": expected true or false.'),
        ("[teachers]\nfiles = [1]", "r.toml: [teachers] files = [1]: expected a list of strings."),
        ("[run\nepochs = 3", "r.toml is not TOML: "),
        ("[run]\nseed = " + "1" * 5000, "r.toml is not TOML: "),
        ("[data]\nstd = [0.2, 0]", "r.toml: [data] std = [0.2, 0.0]: expected more than 0."),
        ("[data]\nmean = [nan]", "r.toml: [data] mean = [nan]: expected finite numbers."),
        ("[data]\nstd = [inf]", "r.toml: [data] std = [inf]: expected finite numbers."),
    ],
)
def test_a_mistake_names_file_key_and_what_is_valid(text, message):
    with pytest.raises(UserError) as error:
        configs.parse(text, "r.toml")
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_missing_or_unreadable_file_is_named(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        configs.read(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        configs.read(tmp_path / "binary.toml")
    with pytest.raises(UserError, match="cannot be read"):
        configs.read(tmp_path)
    (tmp_path / "empty.toml").write_text("\n")
    with pytest.raises(UserError, match=r"empty\.toml is empty: expected TOML"):
        configs.read(tmp_path / "empty.toml")


def test_an_editors_byte_order_mark_is_no_part_of_a_file(tmp_path):
    (tmp_path / "marked.toml").write_text("[peers]\ncount = 3", encoding="utf-8-sig")
    assert configs.read(tmp_path / "marked.toml").peers.count == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("optimizer.lr=0.05", ("optimizer.lr", 0.05)),
        ("run.epochs = 3", ("run.epochs", 3)),
        ("model.name=resnet20", ("model.name", "resnet20")),
        ('teachers.files=["a.keras"]', ("teachers.files", ["a.keras"])),
        ("data.name=a=b", ("data.name", "a=b")),
    ],
)
def test_assignments_of_the_command_line(text, expected):
    assert parse_assignment(text) == expected


def test_an_assignment_without_a_value_is_refused():
    with pytest.raises(UserError, match=r"expected table\.key=value"):
        parse_assignment("epochs")
    with pytest.raises(UserError, match=r"--set run: expected table\.key=value"):
        Config().changed("run", 3, "--set run")


@pytest.mark.parametrize("text", ["graft.every=1\nepochs = 0", "graft.every=1\n[run]\nepochs = 0"])
def test_an_assignment_has_one_value(text):
    with pytest.raises(UserError, match=r"--set graft\.every: expected one value, found '1\\n"):
        parse_assignment(text)


def test_every_setting_has_a_default_of_its_own_type():
    for key, value in flat(Config()).items():
        if value is not None:
            given = list(value) if isinstance(value, tuple) else value
            assert flat(Config().changed(key, given, "default")) == flat(Config())


FLOATS = [key for key, value in flat(Config()).items() if isinstance(value, float)]


def test_the_numbers_of_every_method_are_tried():
    assert {
        "optimizer.lr",
        "optimizer.backbone",
        "graft.sharpness",
        "papa.rate",
        "mutual.weight",
    } < set(FLOATS)
    assert len(FLOATS) == 25


@pytest.mark.parametrize("key", FLOATS)
@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e400", "1e39", "1" + "0" * 400])
def test_no_setting_may_be_anything_but_a_finite_number(key, text):
    """Finite as the networks reckon: 1e39 is infinite in float32."""
    table, _, name = key.partition(".")
    with pytest.raises(UserError, match=rf"^r\.toml: \[{table}\] {name} = .*: expected "):
        configs.parse(f"[{table}]\n{name} = {text}", "r.toml")
