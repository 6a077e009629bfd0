"""Parts by `module:name`: how they are found, called, and written down."""

import hashlib
import sys

import keras
import pytest

from kgraft.errors import UserError
from kgraft.parts import Part, blamed, is_reference, load, origin

pytestmark = pytest.mark.core

EXAMPLE = "mypkg.nets:build"
CODE = """
class Inner:
    @staticmethod
    def made(width):
        return width


def build(shape, width=16, name="a", rate=0.5, *, deep: bool = False, depth: int | None = None):
    return shape, width


def anything(**options):
    return options


def needs(shape, width):
    return width


def fails():
    raise ValueError("\\n  first line.\\nsecond line")


def fails_below():
    return int("x")


def leaves():
    raise SystemExit(0)


def ends():
    return next(iter(()))


def only_by_place(a, /):
    return a


_hidden = build
number = 3
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module `mine_of_kgraft`, and a package with a submodule."""
    (tmp_path / "mine_of_kgraft.py").write_text(CODE)
    (tmp_path / "pack_of_kgraft").mkdir()
    (tmp_path / "pack_of_kgraft" / "__init__.py").touch()
    (tmp_path / "pack_of_kgraft" / "nets.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if "_of_kgraft" in name]:
        del sys.modules[name]


def part(name):
    return Part(f"model {name!r}", load(f"mine_of_kgraft:{name}", "model", EXAMPLE), ("shape",))


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("a:b", True),
        ("a.b.c:D.e", True),
        ("a", False),
        ("a.b", False),
        (":b", False),
        ("a:", False),
        ("a..b:c", False),
        ("mnist:3.0.1", False),
        ("a/b.py:c", False),
        ("C:\\set.npz", False),
        (None, False),
        (["a:b"], False),
    ],
)
def test_a_reference_is_a_module_and_a_name_in_it(name, own):
    assert is_reference(name) is own


def test_a_reference_finds_what_it_names(mine):
    assert load("mine_of_kgraft:build", "model", EXAMPLE)((8,)) == ((8,), 16)
    assert load("mine_of_kgraft:Inner.made", "model", EXAMPLE)(3) == 3
    assert load("pack_of_kgraft.nets:build", "model", EXAMPLE)((8,)) == ((8,), 16)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("mine_of_kgraft:biuld", "mine_of_kgraft.py has no 'biuld'. Did you mean 'build'?"),
        ("mine_of_kgraft:Inner.mode", "mine_of_kgraft.py has no 'mode'. Did you mean 'made'?"),
        ("none_of_kgraft:build", "cannot be loaded: there is no module 'none_of_kgraft'."),
        ("pack_of_kgraft.nest:build", "no module 'pack_of_kgraft.nest'. Did you mean 'nets'?"),
        ("mine_of_kgraft.nets:build", "there is no module 'mine_of_kgraft.nets'."),
        ("mine_of_kgraft.py:build", ": expected module:function, e.g. mine_of_kgraft:build."),
        ("some/mine.py:build", ": expected module:function, e.g. some.mine:build."),
        (":build", ": expected module:function, e.g. mypkg.nets:build."),
        ("torn_of_kgraft:build", "cannot be loaded: SyntaxError: '(' was never closed (torn_of_kg"),
        ("lost_of_kgraft:build", "cannot be loaded: ModuleNotFoundError: No module named 'nowhere"),
        ("odd_of_kgraft:build", "cannot be loaded: ValueError: odd (odd_of_kgraft.py:2)."),
    ],
)
def test_what_cannot_be_loaded_is_told_in_one_line(mine, reference, message):
    (mine / "torn_of_kgraft.py").write_text("x = (")
    (mine / "lost_of_kgraft.py").write_text("import nowhere_at_all")
    (mine / "odd_of_kgraft.py").write_text("\nraise ValueError('odd')")
    with pytest.raises(UserError) as refused:
        load(reference, "model", EXAMPLE)
    said = str(refused.value)
    assert said.startswith(f"model {reference!r}") and message in said and "\n" not in said


def test_a_module_in_the_current_directory_is_pointed_to_and_not_imported(tmp_path, monkeypatch):
    (tmp_path / "near_of_kgraft.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [own for own in sys.path if own])
    with pytest.raises(UserError, match=f"{tmp_path} has one: --here searches the current dir"):
        load("near_of_kgraft:build", "model", EXAMPLE)
    assert "near_of_kgraft" not in sys.modules


def test_an_argument_reaches_it_and_kgrafts_own_too(mine):
    own = {"width": 3, "name": "b", "rate": 1, "deep": True, "depth": 2}
    part("build").check(own, lambda key: "[model]")
    assert part("build").made(own, shape=(8,)) == ((8,), 3)
    assert part("anything").made({"a": [1]}, shape=(8,)) == {"a": [1], "shape": (8,)}
    assert (part("build").default("width"), part("needs").default("width")) == (16, None)


@pytest.mark.parametrize(
    ("name", "own", "message"),
    [
        ("build", {"widht": 3}, "r.toml: [model] unknown key 'widht': model 'build' has no such "
         "argument. Did you mean 'width'?"),
        ("build", {"x": 3}, "no such argument. Known: deep, depth, name, rate, width."),
        ("build", {"shape": 3}, "r.toml: [model] shape: kgraft itself gives it to model 'build'."),
        ("build", {"width": "3"}, "r.toml: [model] width='3': expected a number."),
        ("build", {"width": True}, "width=True: expected a number."),
        ("build", {"name": 3}, "name=3: expected a string."),
        ("build", {"deep": 1}, "deep=1: expected true or false."),
        ("build", {"depth": 1.5}, "depth=1.5: expected a whole number."),
        ("needs", {}, "model 'needs' needs width: set it in its table."),
        ("needs", {"width": 1, "widt": 1}, "no such argument. Did you mean 'width'?"),
        ("fails", {"a": 1}, "no such argument. It has none that one could set."),
        ("fails", {}, "model 'fails' takes no argument shape, which it is called with."),
        ("only_by_place", {"a": 1}, "no such argument."),
        ("number", {}, "model 'number' is 3: expected a function."),
    ],
)  # fmt: skip
def test_arguments_that_it_has_not_are_refused_with_the_nearest(mine, name, own, message):
    with pytest.raises(UserError) as refused:
        part(name).check(own, lambda key: "r.toml: [model]")
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fails", "model 'fails' failed: ValueError: first line (mine_of_kgraft.py:21)."),
        ("fails_below", "failed: ValueError: invalid literal for int() with base 10: 'x' (mine_of"),
    ],
)
def test_what_fails_says_where_in_its_own_file(mine, name, message):
    with pytest.raises(UserError) as refused:
        part(name).made({})
    assert message in str(refused.value)


def test_what_fails_later_is_told_where_its_own_file_has_failed(mine):
    file = str(mine / "mine_of_kgraft.py")
    own = part("fails_below").call
    with (
        pytest.raises(UserError, match=r"^'m:Own' failed: ValueError: .*\(mine_of_kgraft\.py:25\)"),
        blamed({"m:Own": file, "weights": None}),
    ):
        own()
    with pytest.raises(ZeroDivisionError), blamed({"m:Own": file}):
        1 / 0  # noqa: B018  (raises, outside that file)
    with pytest.raises(KeyboardInterrupt), blamed({"m:Own": __file__}):
        raise KeyboardInterrupt


def test_an_end_inside_a_part_and_a_generators_end_are_failures_too(mine):
    file = str(mine / "mine_of_kgraft.py")
    leaves, ends = part("leaves"), part("ends")
    with pytest.raises(UserError, match=r"model 'leaves' failed: SystemExit: 0 \(mine_of_kgraft"):
        leaves.made({})
    with pytest.raises(UserError, match="'m:Own' failed: SystemExit: 0"), blamed({"m:Own": file}):
        leaves.call()

    def batches():
        yield ends.call()

    with (
        pytest.raises(UserError, match=r"^mine_of_kgraft\.py failed: StopIteration \(mine_of_kg"),
        blamed({"m:Own": file, "m:Other": file}),
    ):
        list(batches())


def test_a_list_is_its_receivers_own(mine):
    given = {"a": [1, [2]]}
    part("anything").made(given)["a"][1].append(3)
    assert given == {"a": [1, [2]]}


def test_arguments_of_base_classes_count_where_options_are_passed_on():
    class Mine(keras.optimizers.AdamW):
        def __init__(self, learning_rate=0.1, mine=1.0, **options):
            super().__init__(learning_rate, **options)

    part = Part("optimizer 'mine'", Mine, ("learning_rate",), strict=True)
    part.check({"mine": 2.0, "weight_decay": 0.1, "clipnorm": 1.0}, lambda key: "[optimizer]")
    with pytest.raises(UserError, match=r"'weight_decy'.* Did you mean 'weight_decay'\?"):
        part.check({"weight_decy": 0.1}, lambda key: "[optimizer]")


def test_an_origin_is_the_file_that_defines_it(mine):
    (mine / "again_of_kgraft.py").write_text("from mine_of_kgraft import build, number\n")
    file = mine / "mine_of_kgraft.py"
    found = {
        "file": str(file),
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "distribution": None,
        "version": None,
    }
    for reference in ("mine_of_kgraft:build", "again_of_kgraft:build", "mine_of_kgraft:Inner"):
        assert origin(load(reference, "model", EXAMPLE), reference) == found
    number = origin(load("again_of_kgraft:number", "model", EXAMPLE), "again_of_kgraft:number")
    assert number["file"] == str(mine / "again_of_kgraft.py")


def test_an_origin_has_the_package_that_is_installed():
    found = origin(keras.datasets.cifar10.load_data, "keras.datasets.cifar10:load_data")
    assert (found["distribution"], found["version"]) == ("keras", keras.version())
    assert origin(len, "builtins:len") == dict.fromkeys(found)
