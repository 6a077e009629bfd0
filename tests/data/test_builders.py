import dataclasses
import hashlib
import json

import numpy as np
import pytest

from kgraft import data
from kgraft.data import builders
from kgraft.data.archive import read_archive
from kgraft.errors import StorageError, UserError


@pytest.fixture
def tiny_archive(tiny_cifar100, contents_of, write_archive):
    return write_archive(tiny_cifar100.folder, contents_of(tiny_cifar100))


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_prepared_set_gives_back_the_archives_images_in_their_order(
    tmp_path, tiny_cifar100, tiny_archive
):
    folder = tmp_path / "data"
    assert data.prepare("cifar100", archive=tiny_archive, data_dir=folder).is_dir()
    loaded = data.load("cifar100", data_dir=folder, validation=0)
    contents = read_archive(tiny_archive, tiny_cifar100)
    for split in ("train", "test"):
        part = getattr(loaded, split)
        np.testing.assert_array_equal(part.images, contents.images[split])
        np.testing.assert_array_equal(part.labels, contents.labels[split][:, 1])
    assert loaded.classes == 100
    assert loaded.class_names == contents.class_names["label"]
    assert loaded.mean == (0.5071, 0.4865, 0.4409)
    assert loaded.std == (0.2673, 0.2564, 0.2762)
    assert loaded.name == "cifar100"
    assert "Krizhevsky" in loaded.source


def test_cifar10_is_prepared_likewise(tmp_path, tiny_cifar10, contents_of, write_archive):
    archive = write_archive(tiny_cifar10.folder, contents_of(tiny_cifar10))
    data.prepare("cifar10", archive=str(archive), data_dir=str(tmp_path))
    loaded = data.load("cifar10", data_dir=tmp_path, validation=0)
    assert (len(loaded.train), len(loaded.test), loaded.classes) == (20, 4, 10)
    assert loaded.mean == (0.4914, 0.4822, 0.4465)
    assert loaded.std == (0.2470, 0.2435, 0.2616)


def test_the_archives_checksum_is_recorded(tmp_path, tiny_archive):
    path = data.prepare("cifar100", archive=tiny_archive, data_dir=tmp_path)
    recorded = json.loads((path / "metadata.json").read_text())
    assert recorded == {"archive_sha256": hashlib.sha256(tiny_archive.read_bytes()).hexdigest()}


def test_nothing_else_is_left_and_nothing_is_printed(tmp_path, tiny_archive, capfd):
    folder = tmp_path / "data"
    path = data.prepare("cifar100", archive=tiny_archive, data_dir=folder)
    assert left_in(folder) == ["cifar100_binary"]
    assert left_in(path.parent) == ["1.0.0"]
    assert capfd.readouterr().out == ""


def test_a_set_that_is_prepared_already_is_left_as_it_is(tmp_path, tiny_archive):
    path = data.prepare("cifar100", archive=tiny_archive, data_dir=tmp_path)
    before = {file: file.stat().st_mtime_ns for file in path.iterdir()}
    assert data.prepare("cifar100", archive=tiny_archive, data_dir=tmp_path) == path
    assert data.prepare("cifar100", data_dir=tmp_path) == path
    assert {file: file.stat().st_mtime_ns for file in path.iterdir()} == before


def test_a_refused_archive_leaves_nothing(tmp_path, tiny_archive):
    tiny_archive.write_bytes(tiny_archive.read_bytes()[:-1000])
    folder = tmp_path / "new" / "data"
    with pytest.raises(UserError, match="truncated"):
        data.prepare("cifar100", archive=tiny_archive, data_dir=folder)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_leaves_nothing(tmp_path, tiny_archive, monkeypatch, stop):
    def generate(self, images, labels):
        yield 0, {"image": images[0], "coarse_label": 0, "label": 0}
        raise stop

    monkeypatch.setattr(builders.CifarBinary, "_generate_examples", generate)
    folder = tmp_path / "new" / "data"
    with pytest.raises(stop):
        data.prepare("cifar100", archive=tiny_archive, data_dir=folder)
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    with pytest.raises(stop):
        data.prepare("cifar100", archive=tiny_archive, data_dir=tmp_path / "old")
    assert left_in(tmp_path / "old") == []


def test_a_failed_download_leaves_nothing(tmp_path, monkeypatch, tiny_cifar100):
    nowhere = dataclasses.replace(tiny_cifar100, url=(tmp_path / "absent").as_uri())
    monkeypatch.setattr(builders.Cifar100Binary, "SPEC", nowhere)
    with pytest.raises(UserError, match="cannot be fetched") as caught:
        data.prepare("cifar100", data_dir=tmp_path / "data")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "data").exists()


def test_a_download_is_prepared_like_an_archive_by_path(
    tmp_path, monkeypatch, tiny_cifar100, tiny_archive
):
    content = tiny_archive.read_bytes()
    published = dataclasses.replace(
        tiny_cifar100,
        url=tiny_archive.as_uri(),
        size=len(content),
        md5=hashlib.md5(content).hexdigest(),
        sha256=hashlib.sha256(content).hexdigest(),
    )
    monkeypatch.setattr(builders.Cifar100Binary, "SPEC", published)
    path = data.prepare("cifar100", data_dir=tmp_path / "data")
    assert json.loads((path / "metadata.json").read_text())["archive_sha256"] == published.sha256
    assert left_in(tmp_path / "data") == ["cifar100_binary"]
    assert len(data.load("cifar100", data_dir=tmp_path / "data", validation=0).train) == 30


def test_a_data_directory_that_is_a_file_is_refused(tmp_path, tiny_archive):
    file = tmp_path / "file"
    file.write_text("")
    for folder in (file, file / "below"):
        with pytest.raises(UserError, match="cannot be written") as caught:
            data.prepare("cifar100", archive=tiny_archive, data_dir=folder)
        assert "\n" not in str(caught.value)


def test_a_data_directory_that_cannot_be_made_is_the_machines_failure(tiny_archive):
    with pytest.raises(StorageError, match=r"data directory /proc/no: .* cannot be written: No "):
        data.prepare("cifar100", archive=tiny_archive, data_dir="/proc/no")


@pytest.mark.slow
def test_the_real_archive(real_archive, tmp_path):
    data.prepare("cifar100", archive=real_archive, data_dir=tmp_path)
    loaded = data.load("cifar100", data_dir=tmp_path)
    assert loaded.train.images.shape == (45000, 32, 32, 3)
    assert np.bincount(loaded.validation.labels).tolist() == [50] * 100
    assert np.bincount(loaded.test.labels).tolist() == [100] * 100
    assert loaded.class_names[:2] == ("apple", "aquarium_fish")
    whole = data.load("cifar100", data_dir=tmp_path, validation=0)
    mean, std = data.channel_statistics(whole.train.images)
    np.testing.assert_allclose(mean, loaded.mean, atol=1e-4)
    np.testing.assert_allclose(std, loaded.std, atol=1e-4)
    assert whole.train.labels[:5].tolist() == [19, 29, 0, 11, 1]
    first = data.load("cifar100", data_dir=tmp_path, validation=0, limit_train=5, limit_test=3)
    np.testing.assert_array_equal(first.train.images, whole.train.images[:5])
    np.testing.assert_array_equal(first.test.images, whole.test.images[:3])


def test_the_coarse_classes_are_another_reading_of_the_same_set(
    tmp_path, tiny_cifar100, tiny_archive
):
    folder = tmp_path / "data"
    assert data.prepare("cifar100-coarse", archive=tiny_archive, data_dir=folder).is_dir()
    assert left_in(folder) == ["cifar100_binary"]
    fine = data.load("cifar100", data_dir=folder, validation=0)
    coarse = data.load("cifar100-coarse", data_dir=folder, validation=0)
    contents = read_archive(tiny_archive, tiny_cifar100)
    np.testing.assert_array_equal(coarse.train.images, fine.train.images)
    np.testing.assert_array_equal(coarse.train.labels, contents.labels["train"][:, 0])
    np.testing.assert_array_equal(fine.train.labels, contents.labels["train"][:, 1])
    assert (coarse.classes, fine.classes) == (20, 100)
    assert coarse.class_names == contents.class_names["coarse_label"]
    assert coarse.mean == fine.mean
    entries = {entry.name: entry for entry in data.describe(folder)}
    assert entries["cifar100-coarse"].classes == 20
    assert entries["cifar100-coarse"].prepared == entries["cifar100"].prepared
