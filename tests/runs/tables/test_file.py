"""Files of the papers' tables: what they become, and what is refused."""

from pathlib import Path

import pytest
from kgraft_cli.shipped import run_files

from kgraft.errors import UserError
from kgraft.runs.config import read
from kgraft.runs.tables.file import BUDGETS, read_table
from kgraft.runs.tables.results import wanted

ROOT = Path(__file__).parents[3]
SHIPPED = {own.last: own.path for name, own in run_files().items() if name.startswith("tables/")}
TEXT = """
[table]
title = "Two ways"
source = "nobody, table 1"
baseline = "plain"
[common]
run.batch_size = 32
optimizer.lr = 0.2
[full]
about = "much"
seeds = [5]
run.epochs = 9
[small]
about = "little"
seeds = [0, 1]
run.epochs = 2
run.batch_size = 16
[sets.Digits]
data.name = "digits"
[networks.A]
full.model.name = "resnet20"
small.model.name = "resnet8"
[networks.B]
model.name = "resnet8"
small.model.name = "wrn-10-1"
[parts.first]
schedule.name = "step"
full.schedule.every = 4
small.schedule.every = 1
[parts.first.entries.plain]
run.method = "baseline"
[parts.first.entries."two of them"]
networks = ["A"]
run.method = "graft"
peers.count = 2
small.graft.sharpness = 7.0
[parts.second]
schedule.name = "cosine"
[parts.second.entries.other]
networks = ["B"]
run.method = "baseline"
[published.Digits.A]
plain = 90.5
"two of them" = 92.25
[published.Digits.B]
plain = { accuracy = 80.0, "0.1" = [3.5, 0.5] }
"""
# by hand from FG's table 5 and 3: row of a table's entry -> the run file that says the same
FAIR = {
    "fg-table-5": {
        "baseline": "baseline",
        "distillation": "distillation",
        "mutual learning": "mutual",
        "RePr": "repr",
        "entropy grafting, dlr": "entropy-dlr",
    },
    "fg-table-3": {
        "baseline": "baseline",
        "l1 grafting": "l1-slr",
        "entropy grafting": "entropy-slr",
    },
}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(TEXT)
    return path


def test_a_table_is_a_comparison_a_set_network_and_part_under_its_budget(file):
    small = read_table(file, "small")
    assert [(p.network, p.part, p.model) for p in small.panels] == [
        ("A", "first", "resnet8"),
        ("B", "first", "wrn-10-1"),
        ("B", "second", "wrn-10-1"),
    ]
    first = small.panels[0].comparison
    assert first.seeds == (0, 1) and [own.name for own in first.entries] == ["plain", "two of them"]
    config = first.entry("two of them").config
    assert (config.run.epochs, config.run.batch_size, config.optimizer.lr) == (2, 16, 0.2)
    assert (config.schedule.name, config.schedule.every) == ("step", 1)
    assert config.flat()["graft.sharpness"] == 7.0
    full = read_table(file, "full")
    assert [p.model for p in full.panels] == ["resnet20", "resnet8", "resnet8"]
    config = full.panels[0].comparison.entry("two of them").config
    assert (config.run.epochs, config.run.batch_size, config.schedule.every) == (9, 32, 4)
    assert config.flat()["graft.sharpness"] == 500.0


def test_published_gains_are_on_the_published_baseline(file):
    own = wanted(read_table(file, "small"))
    assert [(one.network, one.entry, one.baseline, one.published_baseline) for one in own] == [
        ("A", "plain", "plain", None),
        ("A", "two of them", "plain", 90.5),
        ("B", "plain", "plain", None),
        ("B", "other", "other", 80.0),
    ]
    assert own[0].published == {"accuracy": 90.5}
    assert own[2].published["0.1"] == [3.5, 0.5] and own[3].published == {}


def test_fewer_columns_and_other_seeds(file):
    table = read_table(file, "small").of(["B"], 3, "here")
    assert [p.network for p in table.panels] == ["B", "B"]
    assert table.panels[0].comparison.seeds == (0, 1, 2)
    assert table.panels[0].comparison.entries[0].config.data.directory == "here"
    assert len(read_table(file, "small").of(["Digits", "A"]).panels) == 1
    with pytest.raises(UserError, match=r"--only Digit: no set or network of mine\. Did you mean"):
        table.of(["Digit"])


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[common]", "[comon]", "unknown table 'comon'"),
        ('title = "', 'titel = "', "[table] unknown key 'titel'. Did you mean 'title'"),
        ('title = "Two ways"', "title = 2", "[table] title = 2: expected text"),
        (
            'source = "nobody',
            'shows = ["speed"]\nsource = "nobody',
            "expected a list of accuracy, inv",
        ),
        ("[published.Digits.A]", "[published.Digits.C]", "'C' is no network"),
        ("[published.Digits.B]", "[published.Cats.B]", "[published.'Cats'] is no set"),
        ('"two of them" = 92', '"two" = 92', "'two' is no entry"),
        ('networks = ["A"]', 'networks = ["Z"]', "networks: 'Z' is none"),
        ("[sets.Digits]\n", "[sets]\nDigits = 1\n[common2]\n", "unknown table 'common2'"),
        ("run.epochs = 2", "run.epoch = 2", "unknown key 'epoch'"),
        ('data.name = "digits"', "data = 3", "data is a value"),
        (
            "[parts.second.entries.other]",
            "[parts.second.entries.plain]",
            "of the parts 'first' and",
        ),
        ("[parts.second.entries.other]", "entries = 3\n[parts.third]", "entries is a value"),
        ("plain = 90.5", 'plain = "much"', "'plain' = \"much\": expected percent"),
        ('"0.1" = [3.5, 0.5]', '"0.1" = [3.5]', "two figures by threshold"),
        ('networks = ["A"]', 'networks = "A"', "networks = \"A\" of 'two of them'"),
        ('full.model.name = "resnet20"', "full = 3", "full is a value"),
    ],
)
def test_a_mistake_is_named(file, old, new, said):
    assert old in TEXT
    file.write_text(TEXT.replace(old, new, 1))
    with pytest.raises(UserError) as raised:
        read_table(file, "small")
    assert said in str(raised.value)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_table_that_comes_with_kgraft_is_whole(name):
    for budget in BUDGETS:
        table = read_table(SHIPPED[name], budget)
        assert table.title and table.source and table.about and table.panels
        assert {panel.images for panel in table.panels} <= {"CIFAR-10", "CIFAR-100"}
        for panel in table.panels:
            data = {entry.config.data.name for entry in panel.comparison.entries}
            assert data == {panel.images.lower().replace("-", "")}
            small = panel.comparison.entries[0].config.data.limit_train is not None
            assert small == (budget == "small")


def test_tables_that_share_a_directory_want_the_same_runs():
    runs = {}
    for path in SHIPPED.values():
        for budget in BUDGETS:
            for panel in read_table(path, budget).panels:
                for entry in panel.comparison.entries:
                    if entry.runs_of == entry.name:
                        key = (budget, panel.place, entry.directory().lower())
                        assert runs.setdefault(key, entry.config) == entry.config, (key, path)
    assert len(runs) > 100


@pytest.mark.parametrize("name", FAIR)
def test_the_full_budget_is_that_of_the_fair_run_files(name):
    compared = 0
    for panel in read_table(SHIPPED[name], "full").panels:
        if panel.images != "CIFAR-100":
            continue
        for entry in panel.comparison.entries:
            row = FAIR[name].get(entry.name)
            file = ROOT / "configs/cifar/fair" / f"{panel.model}-{row}.toml"
            if row is None:
                continue
            own, fair = entry.config.flat(), read(file).flat()
            differ = {key for key in {*own, *fair} if own.get(key) != fair.get(key)}
            assert differ - {"run.method", "data.name"} <= {"teachers.files", "teachers.model"}
            compared += 1
    assert compared == {"fg-table-5": 19, "fg-table-3": 12}[name]
