import numpy as np
import pytest
from PIL import Image

from kgraft.data import Files, OrderedPhotos, Photos, PhotoStream, ShiftedWhole, Whole
from kgraft.data.whole import WholeCrop
from kgraft.errors import UserError
from tests.reference import torchvision

SIZE = (24, 12)


def numbered():
    """An image of SIZE of which every pixel says where it is, and none is black."""
    rows, columns = np.indices(SIZE)
    return np.stack([rows + 1, columns + 1, rows * 0 + 200], axis=-1).astype(np.uint8)


def drawn(view, count, seed=0):
    numbers = view.draw(np.random.default_rng(seed), count)
    return [view.crop(row, *SIZE) for row in numbers]


def test_the_whole_is_resized_as_torchvision_does():
    v2 = torchvision.v2()
    import torch

    pixels = np.random.default_rng(0).integers(0, 256, (50, 37, 3)).astype(np.uint8)
    theirs = v2.Resize(SIZE, antialias=True)(torch.from_numpy(pixels).permute(2, 0, 1))
    np.testing.assert_array_equal(Whole(SIZE)(pixels), theirs.permute(1, 2, 0).numpy())
    view = ShiftedWhole(SIZE, pad=0, flip=False)
    crop = view.crop(view.draw(np.random.default_rng(0), 1)[0], 50, 37)
    np.testing.assert_array_equal(view(pixels, crop), theirs.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("pad", [0, 3])
def test_a_crop_shows_the_image_shifted_between_black_borders(pad):
    view, pixels = ShiftedWhole(SIZE, pad=pad, flip=False), numbered()
    seen = set()
    for crop in drawn(view, 400):
        shown = view(pixels, crop)
        down, across = crop.shift[0] - pad, crop.shift[1] - pad
        seen.add((down, across))
        expected = np.zeros_like(pixels)
        for i in range(SIZE[0]):
            for j in range(SIZE[1]):
                if 0 <= i + down < SIZE[0] and 0 <= j + across < SIZE[1]:
                    expected[i, j] = pixels[i + down, j + across]
        np.testing.assert_array_equal(shown, expected)
    steps = range(-pad, pad + 1)
    assert seen == {(down, across) for down in steps for across in steps}


def test_half_of_the_images_are_mirrored():
    view, pixels = ShiftedWhole(SIZE, pad=0), numbered()
    crops = drawn(view, 1000)
    assert 440 < sum(crop.flip for crop in crops) < 560
    mirrored = next(crop for crop in crops if crop.flip)
    np.testing.assert_array_equal(view(pixels, mirrored), pixels[:, ::-1])


def test_a_rectangle_is_painted_over_in_a_share_of_the_images():
    view = ShiftedWhole((64, 32), pad=0, flip=False, erase=0.4, fill=(0.2, 0.4, 0.6))
    pixels = np.full((64, 32, 3), 7, np.uint8)
    crops, shares, ratios = drawn(view, 2000), [], []
    for crop in crops:
        shown = view(pixels, crop)
        painted = (shown == (51, 102, 153)).all(axis=2)
        assert (shown[~painted] == 7).all()
        assert painted.any() == (crop.erased is not None)
        if painted.any():
            rows, columns = np.flatnonzero(painted.any(1)), np.flatnonzero(painted.any(0))
            high, wide = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
            assert painted.sum() == high * wide  # one rectangle
            shares.append(high * wide / 2048)
            ratios.append(high / wide)
    assert 0.36 < len(shares) / 2000 < 0.44
    assert 0.01 < min(shares) < 0.03 and 0.35 < max(shares) < 0.42
    assert 0.25 < min(ratios) < 0.4 and 2.7 < max(ratios) < 4
    assert (pixels == 7).all()


def test_no_random_numbers_hang_on_how_large_a_photograph_is():
    view = ShiftedWhole(SIZE, erase=1.0)
    row = view.draw(np.random.default_rng(3), 1)[0]
    small, large = view.crop(row, 10, 10), view.crop(row, 500, 300)
    assert small[2:] == large[2:] and large.scaled((500, 300), (250, 150)) == large
    assert WholeCrop._fields[:2] == ("height", "width")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Whole((1, 2, 3)), "expected two numbers"),
        (lambda: Whole((0, 2)), r"size=\(0, 2\)"),
        (lambda: ShiftedWhole(SIZE, pad=12), "pad 12: expected less than 12"),
        (lambda: ShiftedWhole(SIZE, erase=1.5), "erase"),
        (lambda: ShiftedWhole(SIZE, fill=(0.5,)), "fill"),
    ],
)
def test_arguments_are_checked(make, said):
    with pytest.raises(UserError, match=said):
        make()


@pytest.fixture
def photos(tmp_path):
    paths = []
    for k in range(6):
        pixels = np.random.default_rng(k).integers(0, 256, (40 + k, 30, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{k}.png")
        paths.append(f"{k}.png")
    return Photos.of(Files(tmp_path, paths), SIZE)


@pytest.mark.core
def test_streams_show_photographs_that_are_no_squares(photos):
    import keras

    labels = np.arange(6)
    options = {"batch_size": 4, "seed": 0, "peer": 0}
    stream = PhotoStream(photos, labels, crop=ShiftedWhole(SIZE, pad=2), **options)
    batches = [(tuple(x.shape), len(y)) for x, y in stream.epoch(0)]
    assert batches == [((4, *SIZE, 3), 4), ((2, *SIZE, 3), 2)]
    feed = OrderedPhotos(photos, labels, batch_size=6, crop=Whole(SIZE))
    (x, _), *rest = feed.epoch(0)
    seen = np.stack([Whole(SIZE)(photos.pixels(k, photos.opened(k))) for k in range(6)])
    np.testing.assert_allclose(keras.ops.convert_to_numpy(x), seen / 255, atol=1e-6)
    assert not rest and photos.shape == (6, *SIZE, 3) and photos.nbytes == 6 * 24 * 12 * 3


def test_a_view_of_another_size_is_refused(photos):
    labels = np.arange(6)
    with pytest.raises(UserError, match="there is no usual one for 24x12"):
        PhotoStream(photos, labels, batch_size=4, seed=0, peer=0)
    with pytest.raises(UserError, match="it shows 12x24; expected 24x12"):
        OrderedPhotos(photos, labels, batch_size=4, crop=Whole((12, 24)))
