"""What the files in `configs/` say of their sources, against a table typed from FG's facts."""

from pathlib import Path

import pytest
from kgraft_cli import shipped

from kgraft.runs import config as configs

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "configs").rglob("*.toml"))
CIFAR = [file for file in FILES if file.parent.parent.name == "cifar"]
IMAGENET = [file for file in FILES if file.parent.parent.name == "imagenet"]
OTHERS = ("staged", "strong")
RECIPES = [f for f in FILES if f.parent.name == "reid" and f.stem.endswith(OTHERS)]
TABLES = [file for file in FILES if file.parent.name == "tables"]
REID = [file for file in FILES if file.parent.name == "reid" and file not in RECIPES]
AUTHORS = [file for file in CIFAR if file.parent.name == "authors"]
MODELS = ("resnet32", "resnet56", "resnet110", "mobilenet_v2", "wrn-28-10")
# row -> table of FG, then CIFAR-10 and CIFAR-100 of each model
FACTS = {
    "baseline": (
        5,
        ("92.83", "69.82"),
        ("93.50", "71.55"),
        ("93.81", "73.21"),
        ("92.42", "71.44"),
        ("95.75", "80.65"),
    ),
    "distillation": (
        5,
        ("93.11", "70.96"),
        ("92.05", "72.03"),
        ("92.34", "73.32"),
        ("92.37", "73.37"),
        ("95.70", "81.03"),
    ),
    "mutual": (5, ("92.80", "70.19"), None, None, None, ("95.66", "80.28")),
    "repr": (5, ("93.90", "69.90"), None, ("94.60", "73.60"), None, None),
    "l1-slr": (
        3,
        ("93.24", "70.69"),
        ("94.09", "72.73"),
        ("94.37", "73.65"),
        ("92.94", "72.90"),
        None,
    ),
    "entropy-slr": (
        3,
        ("93.33", "71.16"),
        ("94.28", "73.09"),
        ("94.60", "74.70"),
        ("93.53", "73.26"),
        None,
    ),
    "entropy-dlr": (
        5,
        ("93.94", "71.28"),
        ("94.73", "72.83"),
        ("94.96", "75.27"),
        ("94.20", "74.15"),
        ("96.40", "81.62"),
    ),
}
# top-1 and top-5 of the baseline, and of two grafted peers
OF_IMAGENET = {
    "resnet18": (("69.15", "88.87"), ("71.19", "90.01")),
    "resnet34": (("72.60", "90.91"), ("74.58", "92.05")),
    "resnet50": (("75.92", "92.81"), ("76.76", "93.34")),
}
# mAP and rank-1 of one network, of two grafted peers, of four
OF_RECIPES = {
    "market1501-resnet50-staged": ("70.4", "87.9"),
    "market1501-resnet50-strong": ("85.7", "94.1"),
}
OF_REID = {
    "market1501-resnet50": (("67.6", "86.7"), ("70.6", "87.8"), ("73.33", "89.2")),
    "market1501-mobilenet_v2": (("56.8", "81.3"), ("63.7", "85.2"), ("64.5", "85.8")),
    "duke-resnet50": (("56.2", "76.2"), ("60.8", "79.8"), ("62.1", "79.8")),
    "duke-mobilenet_v2": (("47.6", "71.7"), ("53.4", "76.1"), ("54.3", "76.3")),
}
IN_THEIR_CODE = ("baseline", "entropy-slr", "entropy-dlr")  # of all models but WRN
QUOTED = {"mutual": "Zhang et al.", "repr": "Prakash et al."}
NO_COUNTERPART = "no counterpart in the authors' present code"


def head(file):
    return shipped.head_of(file.read_text()).text


def row_of(file):
    model = next(model for model in MODELS if file.stem.startswith(f"{model}-"))
    return model, file.stem.removeprefix(f"{model}-")


def in_their_code(file):
    model, row = row_of(file)
    return model != "wrn-28-10" and row in IN_THEIR_CODE


def names(files):
    return [f"{file.parent.name}/{file.stem}" for file in files]


@pytest.mark.parametrize("file", FILES, ids=names(FILES))
def test_every_file_names_its_command_its_source_and_its_published_figure(file):
    name = file.relative_to(ROOT / "configs").as_posix().removesuffix(".toml")
    verb = {"comparisons": "compare", "tables": "reproduce"}.get(file.parent.name, "fit")
    name = name.removeprefix("tables/")
    told = shipped.head_of(file.read_text())
    text = told.text
    *before, command = told.command.split(" && ")
    assert f"{command} ".startswith(f"kgraft {verb} {name} ")
    assert ("--dataset DIR" in command) == (file in [*IMAGENET, *REID, *RECIPES])
    assert before in ([], ["kgraft data prepare cifar100"])
    assert told.what.endswith((".", "?")) and {"Source", "Cost", "Published"} <= {*told.parts}
    for word in ("Source: ", "Cost: ", "Published"):
        assert text.count(word) == 1
    if file in IMAGENET:
        model, row = file.stem.split("-")
        top, five = OF_IMAGENET[model][row == "entropy"]
        figures = f"Published (Meng et al., CVPR 2020): {top} top-1, {five} top-5. Ours: "
        assert figures in told.figures
        return
    if file in REID:
        setting, _, row = file.stem.rpartition("-")
        found, first = OF_REID[setting][("baseline", "graft2", "graft4").index(row)]
        figures = f"Published (Meng et al., CVPR 2020): {found} mAP, {first} rank-1. Ours: "
        assert figures in told.figures
        return
    if file in RECIPES:
        found, first = OF_RECIPES[file.stem]
        assert f"): {found} mAP, {first} rank-1. Ours: " in told.figures
        return
    if file in TABLES:
        assert ("Published: none" in text) == ("[published" not in file.read_text())
        return
    if file not in CIFAR:
        assert "Source: kgraft's own, in no paper." in text
        assert "Published: none" in text
        return
    model, row = row_of(file)
    table, *figures = FACTS[row]
    cifar10, cifar100 = figures[MODELS.index(model)]
    figures = f"{cifar10} on CIFAR-10, {cifar100} on CIFAR-100"
    assert f" Published (Meng et al., CVPR 2020, table {table}): {figures}. Ours: " in told.figures
    assert text.count("table") == 1


@pytest.mark.parametrize("file", CIFAR, ids=names(CIFAR))
def test_how_a_figure_was_chosen_is_said_only_of_the_authors_own_runs(file):
    _, row = row_of(file)
    published = head(file).partition("Published ")[2]
    assert ("best test accuracy over all epochs" in published) == in_their_code(file)
    assert ("of the first network" in published) == (in_their_code(file) and row != "baseline")
    assert ("quoted there from" in published) == (row in QUOTED)
    if row in QUOTED:
        assert f"quoted there from {QUOTED[row]}" in published


def test_15_of_27_rows_have_no_counterpart_in_the_authors_present_code_and_say_so():
    without = [file for file in AUTHORS if not in_their_code(file)]
    assert (len(without), len(AUTHORS)) == (15, 27)
    assert [file for file in AUTHORS if NO_COUNTERPART in head(file)] == without
    for file in without:
        assert "Follows " in head(file)
    for file in set(AUTHORS) - set(without):
        script = "baseline.py" if row_of(file)[1] == "baseline" else "grafting.py"
        assert f"Source: {script} of the authors' code" in head(file)


@pytest.mark.parametrize("file", AUTHORS, ids=names(AUTHORS))
def test_the_five_files_with_a_teacher_say_that_the_authors_old_script_differs(file):
    text = head(file)
    differs = "mean logits, unsoftened, against the softened student, times 4" in text
    assert differs == (row_of(file)[1] == "distillation")


@pytest.mark.parametrize("file", CIFAR, ids=names(CIFAR))
def test_dlr_falls_with_every_step_and_slr_every_60_epochs(file):
    schedule, row = configs.read(file).schedule, row_of(file)[1]
    if row == "entropy-dlr":
        assert (schedule.name, schedule.spread) == ("cosine-per-step", True)
    else:
        assert (schedule.name, schedule.every, schedule.spread) == ("step", 60, False)


@pytest.mark.parametrize("file", CIFAR, ids=names(CIFAR))
def test_a_wide_resnet_of_the_authors_starts_its_classifier_as_torch_does(file):
    theirs = file.parent.name == "authors" and row_of(file)[0] == "wrn-28-10"
    assert configs.read(file).model.head_init == ("torch" if theirs else None)


def test_imagenet_is_trained_as_the_papers_say_and_a_fair_pair_differs_by_its_method_alone():
    assert len(IMAGENET) == 12
    for file in IMAGENET:
        config, grafted = configs.read(file), file.stem.endswith("entropy")
        assert (config.run.epochs, config.run.batch_size, config.data.size) == (90, 256, 224)
        assert (config.optimizer.lr, config.optimizer.l2, config.photos.resize) == (0.1, 1e-4, 256)
        assert config.photos.area == (0.08, 1.0) and config.photos.ratio == (3 / 4, 4 / 3)
        assert config.peers.count == (2 if grafted else 1) and not config.schedule.spread
        by_steps = (config.schedule.name, config.schedule.every) == ("step", 30)
        assert by_steps == (not grafted or file.parent.name == "fair")
    for model in OF_IMAGENET:
        pair = (
            ROOT / "configs/imagenet/fair" / f"{model}-{row}.toml"
            for row in ("baseline", "entropy")
        )
        one, other = (configs.read(file).flat() for file in pair)
        differ = {key for key in {*one, *other} if one.get(key) != other.get(key)}
        assert {key for key in differ if not key.startswith("graft.")} == {"peers.count"}


def test_reid_is_trained_as_the_papers_say_and_rows_differ_by_their_peers_alone():
    assert {file.stem.rpartition("-")[0] for file in REID} == {*OF_REID} and len(REID) == 12
    for file in REID:
        own = configs.read(file)
        assert (own.run.epochs, own.run.batch_size, own.data.size) == (60, 32, (256, 128))
        assert (own.schedule.name, own.schedule.every, own.schedule.factor) == ("step", 20, 0.1)
        assert own.optimizer.lr == 0.1 and own.data.validation == 0
        peers = {"baseline": 1, "graft2": 2, "graft4": 4}[file.stem.rpartition("-")[2]]
        plain = configs.read(file.with_name(f"{file.stem.rpartition('-')[0]}-baseline.toml"))
        assert own.changed("peers.count", 1, "test") == plain and own.peers.count == peers
