import io
import zipfile

import numpy as np
import pytest

from kgraft import data
from kgraft.errors import UserError


def arrays(**changes):
    rng = np.random.default_rng(0)
    whole = {
        "x_train": rng.integers(0, 256, (20, 6, 5, 3), dtype=np.uint8),
        "y_train": np.arange(20) % 4,
        "x_test": rng.integers(0, 256, (6, 6, 5, 3), dtype=np.uint8),
        "y_test": np.arange(6) % 4,
    }
    whole.update(changes)
    return {key: value for key, value in whole.items() if value is not None}


def write(folder, **changes):
    path = folder / "mine.npz"
    np.savez_compressed(path, **arrays(**changes))
    return path


def refusal(path, **options):
    with pytest.raises(UserError) as caught:
        data.load(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_arrays_come_back_as_they_were(tmp_path):
    path = write(tmp_path)
    mine = data.load(str(path), validation=0)
    np.testing.assert_array_equal(mine.train.images, arrays()["x_train"])
    np.testing.assert_array_equal(mine.test.labels, arrays()["y_test"])
    assert mine.train.labels.dtype == np.int64
    assert (mine.name, mine.classes, mine.class_names) == ("mine", 4, ("0", "1", "2", "3"))
    assert mine.source == str(path)


def test_statistics_are_those_of_the_training_images(tmp_path):
    mine = data.load(write(tmp_path), validation=0)
    pixels = arrays()["x_train"] / 255.0
    np.testing.assert_allclose(mine.mean, pixels.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(mine.std, pixels.std((0, 1, 2)), rtol=1e-12)


def test_a_constant_channel_has_a_deviation_to_divide_by(tmp_path):
    black = np.zeros((20, 6, 5, 3), np.uint8)
    mine = data.load(write(tmp_path, x_train=black))
    assert (mine.mean, mine.std) == ((0.0,) * 3, (1.0,) * 3)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"x_train": None}, "no array 'x_train'. Did you mean 'y_train'?"),
        ({"y_test": None}, "no array 'y_test'."),
        (
            {"x_train": np.zeros((20, 6, 5), np.uint8)},
            "x_train is uint8 of shape (20, 6, 5); expected uint8 of shape (n, height, width, "
            "channels)",
        ),
        ({"x_test": np.zeros((6, 6, 5, 3), np.float32)}, "x_test is float32 of shape (6, 6, 5, 3)"),
        ({"x_train": np.zeros((0, 6, 5, 3), np.uint8)}, "not empty"),
        ({"y_train": np.zeros(20)}, "y_train is float64 of shape (20,); expected integers"),
        ({"y_train": np.zeros((20, 1), int)}, "y_train is int64 of shape (20, 1)"),
        ({"y_train": np.zeros(19, int)}, "x_train has 20 images, y_train 19 labels"),
        ({"y_train": np.arange(20) - 3}, "y_train[0] is -3; expected labels counted from 0"),
        ({"y_train": np.arange(20) * 10**6}, "y_train[1] is 1000000"),
        ({"y_test": np.arange(6)}, "y_test[5] is 5; expected labels in 0..3, as in y_train"),
        (
            {"x_test": np.zeros((6, 6, 6, 3), np.uint8)},
            "x_test holds images of 6x6x3, x_train of 6x5x3",
        ),
        (
            {"x_test": np.array([{}] * 6, dtype=object)},
            "x_test cannot be read: it is damaged or holds pickled Python objects",
        ),
    ],
)
def test_an_array_that_does_not_fit_is_refused(tmp_path, changes, said):
    assert said in refusal(write(tmp_path, **changes))


def test_a_missing_file_is_refused(tmp_path):
    assert "no such file" in refusal(tmp_path / "absent.npz")


def test_a_folder_is_refused(tmp_path):
    folder = tmp_path / "folder.npz"
    folder.mkdir()
    assert "folder.npz is a directory; expected an .npz file" in refusal(folder)


@pytest.mark.parametrize("content", [b"", b"some text", b"PK\x03\x04 and then nothing"])
def test_a_file_that_is_no_npz_is_refused(tmp_path, content):
    path = tmp_path / "text.npz"
    path.write_bytes(content)
    assert "is not an .npz archive, or is damaged" in refusal(path)


def test_a_truncated_file_is_refused(tmp_path):
    path = write(tmp_path)
    path.write_bytes(path.read_bytes()[:-200])
    assert "damaged" in refusal(path)


def test_a_damaged_array_is_refused(tmp_path):
    path = write(tmp_path)
    content = bytearray(path.read_bytes())
    content[300:400] = bytes(100)
    path.write_bytes(content)
    assert "x_train cannot be read: it is damaged" in refusal(path)


def test_a_single_array_is_refused(tmp_path):
    path = tmp_path / "array.npz"
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    assert "holds a single array" in refusal(path)


def test_a_pickle_is_never_loaded(tmp_path):
    path = tmp_path / "pickle.npz"
    np.array([{}], dtype=object).dump(path)
    assert "is not an .npz archive" in refusal(path)


def claiming(path, shape, *, size=None):
    """A file whose x_train says to be of a shape, and the archive's directory to be of a size."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, array in arrays(x_train=None).items():
            with archive.open(f"{key}.npy", "w") as stream:
                np.lib.format.write_array(stream, array)
        archive.writestr("x_train.npy", header.getvalue() + bytes(1800))
        if size is not None:
            archive.getinfo("x_train.npy").file_size = size
    return path


@pytest.mark.parametrize("size", [None, 2**45])
def test_an_array_that_claims_more_than_the_file_holds_is_refused_before_it_has_room(
    tmp_path, size, monkeypatch
):
    path = claiming(tmp_path / "mine.npz", (20, 1000000, 500000, 3), size=size)
    monkeypatch.setattr(np.lib.npyio.NpzFile, "__getitem__", lambda *_: pytest.fail("it was read"))
    said = refusal(path)
    assert "x_train says to be uint8 of shape (20, 1000000, 500000, 3), 30,000,000,000,0" in said
    assert f"a file of {path.stat().st_size:,} bytes does not hold" in said


def test_what_packs_as_well_as_deflate_can_is_read(tmp_path):
    black = np.zeros((4000, 32, 32, 3), np.uint8)
    mine = data.load(write(tmp_path, x_train=black, y_train=np.arange(4000) % 4, x_test=black[:6]))
    assert sum(map(len, (mine.train, mine.validation))) == 4000
