"""TFDS sets of photographs of differing sizes, read without TensorFlow."""

import io

import keras
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from kgraft import data
from kgraft.data.crops import CentreCrop
from kgraft.data.photo_stream import OrderedPhotos, PhotoStream
from kgraft.data.prepared_photos import find_photographs, load_records
from kgraft.errors import UserError
from kgraft.runs.assembly import assemble
from kgraft.runs.evaluation import evaluate_run
from kgraft.runs.execution import execute
from tests.data.test_decode import photograph
from tests.runs.conftest import tiny  # noqa: F401

SIDE = 16


class Shots(tfds.core.GeneratorBasedBuilder):
    """Photographs of differing sizes, as JPEG files hold them."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=["low", "high"]),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            homepage="https://example.org",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(24), "validation": self._generate_examples(8)}

    def _generate_examples(self, count):
        for index in range(count):
            out = io.BytesIO()
            image = Image.fromarray(photograph(20 + index, 40 - index, seed=index))
            image.save(out, "JPEG", quality=90)
            yield index, {"image": io.BytesIO(out.getvalue()), "label": index % 2}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    place = tmp_path_factory.mktemp("tfds")
    builder = Shots(data_dir=place)
    builder.download_and_prepare(file_format="array_record", download_dir=place / "downloads")
    return place


def test_photographs_are_decoded_when_somebody_asks(prepared):
    builder = find_photographs("shots", prepared)
    shots = load_records(builder, name="shots", size=SIDE, validation=4)
    assert (len(shots.train), len(shots.validation), len(shots.test)) == (20, 4, 8)
    assert (shots.classes, shots.class_names) == (2, ("low", "high"))
    assert shots.train.images.shape == (20, SIDE, SIDE, 3)
    whole = load_records(builder, name="shots", size=SIDE, validation=0)
    assert whole.train.labels.tolist() == [0, 1] * 12
    feed = OrderedPhotos(whole.test.images, whole.test.labels, batch_size=8)
    x, _ = next(feed.epoch(0))
    (record,) = builder.as_data_source(split="validation").__getitems__([3])
    seen = CentreCrop(SIDE)(record["image"]) / 255
    np.testing.assert_allclose(keras.ops.convert_to_numpy(x)[3], seen, atol=1e-6)
    stream = PhotoStream(whole.train.images, whole.train.labels, batch_size=8, seed=0, peer=0)
    labels = [keras.ops.convert_to_numpy(y) for _, y in stream.epoch(0)]
    assert sorted(np.concatenate(labels)) == [0] * 12 + [1] * 12


def test_a_run_reads_them_by_name(prepared, tiny, tmp_path):  # noqa: F811
    options = {"data__name": "shots", "data__directory": str(prepared), "data__size": SIDE}
    config = tiny(run__batch_size=8, teachers__count=0, data__limit_test=None, **options)
    assembly = assemble(config)
    assert assembly.dataset.name == "shots" and assembly.dataset.source == "https://example.org"
    summary = execute(assembly, tmp_path / "run")
    again = evaluate_run(tmp_path / "run")  # whose file says every setting, also a folder's
    assert again["peer 1"] == summary["peers"][0]["test_accuracy"]
    with pytest.raises(UserError, match=r"photos\.cache: shots is no folder"):
        assemble(tiny(photos__cache=True, **options))


def test_other_sets_are_none(prepared):
    assert find_photographs("nothing", prepared) is None
    with pytest.raises(UserError, match="which kgraft fit reads as photographs"):
        data.load("shots", data_dir=prepared)
