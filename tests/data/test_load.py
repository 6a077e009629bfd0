from pathlib import Path

import numpy as np
import pytest

from kgraft import data
from kgraft.errors import UserError


@pytest.fixture(autouse=True)
def _no_directories_of_the_user(monkeypatch, tmp_path):
    monkeypatch.delenv("KGRAFT_DATA", raising=False)
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_train_and_validation_part_the_training_images():
    whole = data.load("digits", validation=0)
    parted = data.load("digits")
    assert whole.validation is None
    assert (len(parted.train), len(parted.validation)) == (1298, 144)
    together = sorted(i.tobytes() for p in (parted.train, parted.validation) for i in p.images)
    assert together == sorted(i.tobytes() for i in whole.train.images)
    np.testing.assert_array_equal(parted.test.images, whole.test.images)


def test_the_seed_moves_validation_and_nothing_else():
    one, same, other = (data.load("digits", seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.validation.images, same.validation.images)
    assert (one.validation.images != other.validation.images).any()
    assert (one.mean, one.std) == (other.mean, other.std)


def test_limits_take_the_first_images_before_validation():
    whole = data.load("digits", validation=0)
    limited = data.load("digits", limit_train=50, limit_test=7, validation=10)
    assert (len(limited.train), len(limited.validation), len(limited.test)) == (40, 10, 7)
    of_limited = {i.tobytes() for p in (limited.train, limited.validation) for i in p.images}
    assert of_limited == {image.tobytes() for image in whole.train.images[:50]}
    np.testing.assert_array_equal(limited.test.images, whole.test.images[:7])
    assert limited.classes == 10


def test_a_limit_above_what_there_is_takes_all():
    assert len(data.load("digits", limit_test=10**6).test) == 355


@pytest.mark.parametrize("option", ["limit_train", "limit_test"])
@pytest.mark.parametrize("limit", [0, -5])
def test_a_limit_below_one_is_refused(option, limit):
    with pytest.raises(UserError, match=f"{option} {limit}: expected a number of images"):
        data.load("digits", **{option: limit})


def test_statistics_of_the_digits_are_those_of_train():
    digits = data.load("digits", validation=0)
    pixels = digits.train.images / 255.0
    np.testing.assert_allclose(digits.mean, [pixels.mean()], rtol=1e-12)
    np.testing.assert_allclose(digits.std, [pixels.std()], rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "digit",
            "'digit' is not known, not prepared in .*, and no folder in .* Did you mean 'digits'?",
        ),
        ("CIFAR-10", "Did you mean 'cifar10'?"),
        ("cifar100", r"'cifar100' is not prepared in .*: run kgraft data prepare cifar100"),
    ],
)
def test_a_set_that_is_not_there_is_refused_in_one_line(name, said):
    with pytest.raises(UserError, match=said) as caught:
        data.load(name)
    assert "\n" not in str(caught.value)


def test_the_data_directory(monkeypatch, tmp_path):
    assert data.data_directory() == tmp_path / "tensorflow_datasets"
    assert data.data_directory("~/here") == tmp_path / "here"
    monkeypatch.setenv("TFDS_DATA_DIR", "/tfds")
    assert data.data_directory() == Path("/tfds")
    monkeypatch.setenv("KGRAFT_DATA", "/kgraft")
    assert data.data_directory() == Path("/kgraft")
    assert data.data_directory("/named") == Path("/named")


def test_digits_need_no_preparation():
    assert data.prepare("digits").is_file()


def test_digits_take_no_archive(tmp_path):
    with pytest.raises(UserError, match="takes no archive"):
        data.prepare("digits", archive=tmp_path)


@pytest.mark.parametrize(
    ("name", "said"), [("CIFAR-100", "Did you mean 'cifar100'?"), ("mnist", "tfds.builder")]
)
def test_another_name_cannot_be_prepared(name, said):
    with pytest.raises(UserError, match=f"'{name}' is not one that kgraft prepares") as caught:
        data.prepare(name)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_archive_is_refused_and_nothing_is_made(tmp_path):
    with pytest.raises(UserError, match=r"archive .*absent.tar.gz: no such file"):
        data.prepare("cifar100", archive="absent.tar.gz", data_dir=tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_what_is_listed_of_the_digits_is_what_is_loaded():
    listed = data.describe()[0]
    digits = data.load("digits", validation=0)
    assert (listed.train, listed.test) == (len(digits.train), len(digits.test))
    assert (listed.shape, listed.classes) == (digits.train.images.shape[1:], digits.classes)
    assert (listed.source, listed.licence) == (digits.source, digits.licence)


def test_sets_that_are_not_prepared_are_listed_as_such(tmp_path):
    entries = data.describe(tmp_path)
    assert [entry.name for entry in entries] == ["digits", "cifar10", "cifar100", "cifar100-coarse"]
    assert [entry.prepared is None for entry in entries] == [False, True, True, True]
    assert [entry.classes for entry in entries] == [10, 10, 100, 20]


def test_a_prepared_set_is_listed_with_its_place(
    tmp_path, tiny_cifar100, contents_of, write_archive
):
    archive = write_archive(tiny_cifar100.folder, contents_of(tiny_cifar100))
    path = data.prepare("cifar100", archive=archive, data_dir=tmp_path / "data")
    assert {e.name: e.prepared for e in data.describe(tmp_path / "data")}["cifar100"] == path
