"""Data sets that a function of the user's own returns."""

import re
import sys

import keras
import numpy as np
import pytest

from kgraft import data
from kgraft.errors import UserError

CODE = """
from dataclasses import replace

import numpy as np

from kgraft import data

x = np.random.default_rng(0).integers(0, 256, (60, 8, 9, 3), np.uint8)
y = np.arange(60) % 4
given = []


def load(count=60, directory=None):
    given.append(directory)
    return (x[:count], y[:count]), (x[:8], y[:8])


def lists():
    return [[x.tolist()[:2], y[:2].tolist()], [x[:2], y[:2]]]


def grey():
    return (x[..., 0], y[:, None]), (x[..., 0], y[:, None])


def floats():
    return (x / 255.0, y), (x / 255.0, y)


def one_hot():
    return (x, np.eye(4)[y]), (x, y)


def unseen():
    return (x, y), (x, y + 1)


def other_size():
    return (x, y), (x[:, :7], y)


def nothing():
    return None


def train_alone():
    return x, y


def whole(**changes):
    digits = data.load("digits", limit_train=100, limit_test=20, validation=0.2)
    return replace(digits, class_names=tuple("abcdefghij"), **changes)


def fewer_classes():
    return whole(classes=5)


def no_split():
    return whole(test=(x, y))
"""


@pytest.fixture(autouse=True)
def _mine(tmp_path, monkeypatch):
    (tmp_path / "mine_of_data.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("mine_of_data", None)


def test_four_arrays_are_a_set_as_a_file_of_them_is(tmp_path):
    found = data.load("mine_of_data:load", count=40, validation=0.2, seed=3, limit_test=5)
    mine = sys.modules["mine_of_data"]
    arrays = {"x_train": mine.x[:40], "y_train": mine.y[:40], "x_test": mine.x, "y_test": mine.y}
    np.savez(tmp_path / "same.npz", **arrays)
    same = data.load(tmp_path / "same.npz", validation=0.2, seed=3, limit_test=5)
    for part in ("train", "validation", "test"):
        for kind in ("images", "labels"):
            own, other = (getattr(getattr(x, part), kind) for x in (found, same))
            np.testing.assert_array_equal(own, other)
    assert (found.classes, found.mean, found.std) == (same.classes, same.mean, same.std)
    assert found.name == "mine_of_data:load"


def test_grey_images_and_a_column_of_labels_are_taken_as_keras_gives_them():
    found = data.load("mine_of_data:grey", size=4)
    assert found.test.images.shape == (60, 4, 4, 1) and found.test.labels.shape == (60,)


def test_a_set_of_keras_works_by_its_name(monkeypatch):
    """Without the download."""

    def cifar():
        pixels = np.zeros((20, 32, 32, 3), np.uint8)
        return (pixels, np.arange(20)[:, None] % 10), (pixels, np.arange(20)[:, None] % 10)

    monkeypatch.setattr(keras.datasets.cifar10, "load_data", cifar)
    found = data.load("keras.datasets.cifar10:load_data", validation=0.0)
    assert (len(found.train), found.classes) == (20, 10)


def test_the_directory_reaches_a_function_that_takes_one():
    data.load("mine_of_data:load")
    data.load("mine_of_data:load", data_dir="/somewhere")
    assert sys.modules["mine_of_data"].given == [None, "/somewhere"]
    with pytest.raises(UserError, match=r"takes no directory, and data\.directory .* is /somewh"):
        data.load("mine_of_data:grey", data_dir="/somewhere")


def test_a_dataset_keeps_what_it_says_of_itself():
    found = data.load("mine_of_data:whole", validation=0, limit_train=50, size=10)
    assert found.class_names == tuple("abcdefghij") and found.name == "mine_of_data:whole"
    assert (len(found.train), len(found.validation), len(found.test)) == (50, 20, 20)
    assert found.validation.images.shape[1:] == (10, 10, 1)
    assert found.own_validation
    usual = data.load("mine_of_data:whole")
    assert (len(usual.train), len(usual.validation), usual.own_validation) == (80, 20, True)
    assert not data.load("digits").own_validation
    with pytest.raises(UserError, match=r"has 20 validation images of its own, .*: expected 0"):
        data.load("mine_of_data:whole", validation=0.1)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "floats",
            {},
            "x_train is float64 of shape (60, 8, 9, 3); expected uint8 of shape (n, hei",
        ),
        (
            "one_hot",
            {},
            "y_train is float64 of shape (60, 4); expected integers of shape (n,), not",
        ),
        ("unseen", {}, "y_test[3] is 4; expected labels in 0..3, as in y_train."),
        ("other_size", {}, "x_test holds images of 7x9x3, x_train of 8x9x3; expected the same."),
        ("nothing", {}, "returned None: expected a kgraft.data.Dataset, or (x_train, y_train), (x"),
        ("train_alone", {}, "returned a tuple: expected a kgraft.data.Dataset"),
        ("lists", {}, "x_train is int64 of shape (2, 8, 9, 3); expected uint8"),
        ("fewer_classes", {}, "is 9; expected labels in 0..4, as in y_train."),
        ("no_split", {}, "its test is a tuple: expected a kgraft.data.Split."),
        (
            "load",
            {"cuont": 3},
            "kgraft.data.load: unknown key 'cuont': data set 'mine_of_data:load",
        ),
        ("load", {"count": "x"}, "count='x': expected a number."),
        ("load", {"directory": "x"}, "directory: kgraft itself gives it to data set"),
        ("laod", {}, "has no 'laod'. Did you mean 'load'?"),
    ],
)
def test_each_mistake_is_one_line(name, options, message):
    with pytest.raises(UserError, match=re.escape(message)) as refused:
        data.load(f"mine_of_data:{name}", **options)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine_of_data.py:load", "expected module:function, e.g. mine_of_data:load."),
        (":load", "data set ':load': expected module:function, e.g. mypkg.data:load."),
        ("mnist:3.0.1", "data set 'mnist:3.0.1' is not known"),
        ("C:/none.npz", "C:/none.npz: no such file"),
    ],
)
def test_what_is_no_function_is_not_taken_for_one(name, message, tmp_path):
    with pytest.raises(UserError, match=re.escape(message)):
        data.load(name, data_dir=tmp_path)


def test_only_functions_have_arguments():
    with pytest.raises(UserError, match="data set 'digits' has no count: only functions have"):
        data.load("digits", count=3)
