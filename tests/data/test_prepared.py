import importlib.util
from typing import ClassVar

import numpy as np
import pytest
import tensorflow_datasets as tfds

from kgraft import data
from kgraft.errors import UserError


class Tiles(tfds.core.GeneratorBasedBuilder):
    """Images of one grey level; as any set that TFDS prepares, but stored as tensors."""

    VERSION = tfds.core.Version("1.0.0")
    parts: ClassVar = {"train": 12, "test": 4}
    features: ClassVar = {
        "image": tfds.features.Tensor(shape=(None, None, 1), dtype=np.uint8, encoding="zlib"),
        "label": tfds.features.ClassLabel(names=["low", "high"]),
    }
    grows = 0

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(self.features),
            homepage="https://example.org",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(count) for split, count in self.parts.items()}

    def _generate_examples(self, count):
        for index in range(count):
            image = np.full((3 + self.grows * index, 4, 1), 10 * index, np.uint8)
            values = {"image": image, "label": index % 2, "other": index % 2}
            yield index, {key: values[key] for key in self.features}


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """Prepare `tiles` with some attributes of the builder changed."""

    def prepare(file_format="array_record", **changes):
        for name, value in changes.items():
            monkeypatch.setattr(Tiles, name, value)
        builder = Tiles(data_dir=tmp_path)
        builder.download_and_prepare(file_format=file_format, download_dir=tmp_path / "downloads")
        return tmp_path

    return prepare


def refusal(folder, name="tiles", **options):
    with pytest.raises(UserError) as caught:
        data.load(name, data_dir=folder, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert name in message
    return message


def test_a_prepared_set_is_loaded_by_its_name(prepared):
    tiles = data.load("tiles", data_dir=prepared(), validation=0)
    assert tiles.train.images[:, 0, 0, 0].tolist() == [10 * i for i in range(12)]
    assert tiles.train.labels.tolist() == [0, 1] * 6
    assert tiles.test.images.shape == (4, 3, 4, 1)
    assert (tiles.classes, tiles.class_names) == (2, ("low", "high"))
    assert tiles.source == "https://example.org"
    np.testing.assert_allclose(tiles.mean, [np.arange(0, 120, 10).mean() / 255])


def test_a_version_may_be_named(prepared):
    assert len(data.load("tiles:1.0.0", data_dir=prepared()).test) == 4


def test_limits_take_the_first_images(prepared):
    tiles = data.load("tiles", data_dir=prepared(), validation=0, limit_train=3, limit_test=2)
    assert tiles.train.images[:, 0, 0, 0].tolist() == [0, 10, 20]
    assert len(tiles.test) == 2


def test_validation_stands_in_for_a_missing_test_split(prepared):
    folder = prepared(parts={"train": 4, "validation": 2})
    assert len(data.load("tiles", data_dir=folder).test) == 2


def test_missing_splits_are_refused(prepared):
    folder = prepared(parts={"train": 4, "extra": 2})
    assert "has the splits train, extra; expected train and test" in refusal(folder)


def test_images_of_different_sizes_are_refused(prepared):
    folder = prepared(grows=1, parts={"train": 2, "test": 1})
    assert "has images of 3x4x1 and of 4x4x1; expected one size" in refusal(folder)


def test_a_set_with_two_labels_is_refused(prepared):
    features = {**Tiles.features, "other": tfds.features.ClassLabel(num_classes=2)}
    message = refusal(prepared(features=features))
    assert "has the features image, label, other; expected one uint8 image" in message


def test_a_damaged_set_is_refused(prepared):
    folder = prepared()
    next(folder.glob("tiles/1.0.0/*train.array_record*")).write_bytes(b"\0" * 500)
    assert "is damaged; remove that folder and prepare it again" in refusal(folder)


@pytest.mark.parametrize("file", ["features.json", "dataset_info.json"])
def test_a_set_with_a_damaged_description_is_refused_and_not_listed(prepared, file):
    folder = prepared()
    described = folder / "tiles" / "1.0.0" / file
    described.write_text(described.read_text()[:40])
    assert "what describes it in" in refusal(folder)
    assert [entry.name for entry in data.describe(folder)] == list(data.names())


def test_what_an_interruption_left_is_not_listed(prepared):
    folder = prepared()
    (folder / "tiles").rename(folder / ".kgraft-xyz")
    assert [entry.name for entry in data.describe(folder)] == list(data.names())


def test_a_set_that_only_tensorflow_reads_says_so(prepared, monkeypatch):
    folder = prepared()
    info = folder / "tiles" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "is prepared as tfrecord, which only TensorFlow reads" in refusal(folder)


def test_a_set_that_is_not_prepared_says_how_to_prepare_it(tmp_path):
    message = refusal(tmp_path, "mnist")
    assert f"not prepared in {tmp_path}" in message
    assert "Known: cifar10, cifar100, cifar100-coarse, digits." in message
    assert "tfds.builder('mnist'" in message
    assert "download_and_prepare(file_format='array_record')" in message


def test_a_prepared_set_is_suggested(prepared):
    assert "Did you mean 'tiles'?" in refusal(prepared(), "tile")


@pytest.mark.parametrize("name", ["../tiles", "a b", "", "tiles/none", "tiles:9.9.9"])
def test_a_name_that_is_no_sets_is_refused(prepared, name):
    assert "is not known" in refusal(prepared(), name)


def test_prepared_sets_are_listed(prepared):
    listed = {entry.name: entry for entry in data.describe(prepared())}
    assert list(listed) == ["digits", "cifar10", "cifar100", "cifar100-coarse", "tiles"]
    tiles = listed["tiles"]
    assert (tiles.train, tiles.test, tiles.classes) == (12, 4, 2)
    assert tiles.shape == (None, None, 1)
    assert tiles.prepared.name == "1.0.0"


def test_a_set_with_a_config_is_named_with_it(prepared, monkeypatch):
    monkeypatch.setattr(Tiles, "BUILDER_CONFIGS", [tfds.core.BuilderConfig(name="small")])
    folder = prepared()
    assert [entry.name for entry in data.describe(folder)] == [*data.names(), "tiles/small"]
    assert len(data.load("tiles/small", data_dir=folder).test) == 4


def test_sets_that_are_no_classification_are_not_listed(prepared):
    folder = prepared(parts={"train": 4})
    assert [entry.name for entry in data.describe(folder)] == list(data.names())
