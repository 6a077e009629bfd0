"""Event files hold what was added, once, and maps of filters the colours that they should."""

import io

import keras
import numpy as np
import pytest
from PIL import Image

from kgraft.analysis import event_files
from kgraft.analysis.event_files import EventFiles, filter_image
from kgraft.analysis.filters import LayerFilters
from kgraft.errors import StorageError, UserError
from tests.reference.event_files import events, steps, values


def layer(*norms):
    return LayerFilters("kernel", np.array(norms), None, 1.0, 9)


def filled(folder, numbers, factor=1.0):
    files = EventFiles(folder, numbers[0])
    for step in numbers:
        files.add(step, {"loss": factor * step}, {}, {})


def losses(folder):
    return [(step, round(value, 4)) for step, value in values(folder)["loss"]]


def test_what_is_added_is_read_back(tmp_path):
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    alpha = np.array([0.05, 0.5, 0.5, 1.0, np.nan])
    EventFiles(tmp_path, 3).add(3, {"lr": 0.25, "loss": np.nan}, {"alpha": alpha}, {"f": pixels})
    found = values(tmp_path)
    assert {tag: [step for step, _ in own] for tag, own in found.items()} == {
        "lr": [3], "loss": [3], "alpha": [3], "f": [3]
    }  # fmt: skip
    assert found["lr"][0][1] == 0.25
    assert np.isnan(found["loss"][0][1])
    histogram = found["alpha"][0][1]
    assert (histogram.num, histogram.min, histogram.max) == (4, 0.05, 1.0)
    buckets = zip(histogram.bucket, histogram.bucket_limit, strict=True)
    full = [(count, round(limit, 9)) for count, limit in buckets if count]
    assert full == [(1, 0.06), (2, 0.52), (1, 1.0)]
    image = Image.open(io.BytesIO(found["f"][0][1].encoded_image_string))
    np.testing.assert_array_equal(np.asarray(image), pixels)


def test_what_is_not_finite_is_written_without_a_word(tmp_path, caplog):
    EventFiles(tmp_path, 1).add(1, {"loss": np.nan, "val loss": np.inf}, {}, {})
    found = {tag: own[0][1] for tag, own in values(tmp_path).items()}
    assert np.isnan(found["loss"]) and found["val_loss"] == np.inf
    assert not caplog.messages


def test_nothing_finite_is_no_histogram(tmp_path):
    EventFiles(tmp_path, 1).add(1, {}, {"alpha": np.array([np.nan])}, {})
    assert values(tmp_path) == {}


def test_what_came_after_is_written_over(tmp_path):
    filled(tmp_path, range(1, 6))
    filled(tmp_path, range(4, 7), 10.0)
    assert losses(tmp_path) == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0), (5, 50.0), (6, 60.0)]
    filled(tmp_path, range(2, 4), 100.0)
    assert losses(tmp_path) == [(1, 1.0), (2, 200.0), (3, 300.0)]
    assert len(list(tmp_path.iterdir())) == 3


def test_tensorboard_is_told_where_a_training_goes_on(tmp_path):
    filled(tmp_path, [1, 2, 3])
    filled(tmp_path, [3, 4])
    starts = [own.step for own in events(tmp_path) if own.session_log.status]
    assert starts == [1, 3]  # at its first one TensorBoard takes nothing back


@pytest.mark.parametrize("cut", [1, 5, 12, 30])
def test_half_a_record_is_cut_off(tmp_path, cut):
    filled(tmp_path, [1, 2])
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-cut])
    filled(tmp_path, [2, 3])
    assert losses(tmp_path) == [(1, 1.0), (2, 2.0), (3, 3.0)]


@pytest.mark.parametrize("rest", [b"\xff" * 40, b"\x04" + bytes(11) + b"\xff" * 8, b"x" * 15])
def test_what_is_no_record_is_cut_off(tmp_path, rest):
    filled(tmp_path, [1])
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes() + rest)
    filled(tmp_path, [2])
    assert losses(tmp_path) == [(1, 1.0), (2, 2.0)]


def test_a_place_that_is_a_file_is_named(tmp_path):
    (tmp_path / "logs").write_text("")
    with pytest.raises(StorageError, match="logs cannot be written: File exists"):
        EventFiles(tmp_path / "logs", 1)


def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(event_files, "find_spec", {"tensorboardX": None}.get)
    with pytest.raises(UserError, match=r"tensorboardX, which is missing: pip install 'kgraft.li"):
        EventFiles(tmp_path / "logs", 1)
    assert not (tmp_path / "logs").exists()


def test_invalid_filters_are_black_and_the_rest_three_decades():
    layers = [layer(0.0, 0.0999, 0.1, 100.0, 1e6), layer(np.nan, 10**0.5)]
    image = filter_image(layers)
    assert image.shape == (2 * 12, 5 * 12, 3)
    cells = image[6::12, 6::12]
    black, white = [0, 0, 0], [255, 255, 255]
    darkest, middle, lightest = [0, 32, 77], [124, 123, 120], [255, 234, 70]
    assert cells.tolist() == [
        [black, black, darkest, lightest, lightest],
        [black, middle, white, white, white],
    ]
    np.testing.assert_array_equal(image, cells.repeat(12, axis=0).repeat(12, axis=1))


def test_a_wide_network_has_a_narrow_cell_a_filter():
    assert filter_image([layer(*np.ones(1280)), layer(1.0)]).shape == (12, 1280, 3)


@pytest.mark.core
@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="TensorFlow reads its own")
def test_tensorflow_reads_them(tmp_path):
    import tensorflow as tf

    filled(tmp_path, [1, 2])
    (file,) = tmp_path.iterdir()
    records = [tf.compat.v1.Event.FromString(own.numpy()) for own in tf.data.TFRecordDataset(file)]
    assert [v.simple_value for own in records for v in own.summary.value] == [1.0, 2.0]


def test_tensorboard_reads_them(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    filled(tmp_path, range(1, 6))
    filled(tmp_path, range(4, 7), 10.0)
    found = reader.EventAccumulator(str(tmp_path)).Reload().Scalars("loss")
    assert [own.step for own in found] == [1, 2, 3, 4, 5, 6]
    assert steps(tmp_path)["loss"] == [1, 2, 3, 4, 5, 6]
