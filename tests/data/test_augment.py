import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from kgraft import data
from kgraft.errors import UserError

pytestmark = pytest.mark.core


def augmented_one_by_one(images, draw, pad):
    """Independent reference: one image after the other, by slicing."""
    result = []
    for image, row, column, flip in zip(images, draw.rows, draw.columns, draw.flips, strict=True):
        height, width, channels = image.shape
        padded = np.zeros((height + 2 * pad, width + 2 * pad, channels), np.float32)
        padded[pad : pad + height, pad : pad + width] = image
        crop = padded[row : row + height, column : column + width]
        result.append(crop[:, ::-1] if flip else crop)
    return np.stack(result)


def batch(count=5, height=6, width=5, channels=3):
    rng = np.random.default_rng(7)
    return rng.integers(0, 256, (count, height, width, channels), dtype=np.uint8)


def run(augment, images, draw):
    result = augment(ops.convert_to_tensor(images), draw)
    assert keras.backend.standardize_dtype(result.dtype) == "float32"
    return ops.convert_to_numpy(result)


def pixels(augment, images, draw):
    """What `run` gives where nothing but the scale to 0..1 is normalised, as 0..255 again."""
    return np.round(run(augment, images, draw) * 255)


@settings(max_examples=20, deadline=None)
@given(
    # few shapes, since jax compiles for each
    count=st.sampled_from([1, 5]),
    channels=st.sampled_from([1, 3]),
    pad=st.sampled_from([0, 1, 4]),
    flip=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_a_batch_is_augmented_like_one_image_after_the_other(count, channels, pad, flip, seed):
    images = batch(count, channels=channels)
    augment = data.Augment(pad=pad, flip=flip)
    draw = augment.draw(np.random.default_rng(seed), count)
    if draw is None:
        expected = images
    else:
        expected = augmented_one_by_one(images, draw, pad)
    np.testing.assert_array_equal(pixels(augment, images, draw), expected)


def test_offsets_by_hand():
    images = np.arange(1, 5, dtype=np.uint8).reshape(1, 2, 2, 1)
    draw = data.Draw(np.array([0], np.int32), np.array([2], np.int32), np.array([False]))
    result = pixels(data.Augment(pad=1), images, draw)
    # padded: 0 0 0 0 / 0 1 2 0 / 0 3 4 0 / 0 0 0 0, rows 0-1, columns 2-3
    assert result[0, :, :, 0].tolist() == [[0, 0], [2, 0]]


def test_flip_by_hand():
    images = np.arange(1, 5, dtype=np.uint8).reshape(1, 2, 2, 1)
    draw = data.Draw(np.array([0], np.int32), np.array([0], np.int32), np.array([True]))
    result = pixels(data.Augment(pad=0), images, draw)
    assert result[0, :, :, 0].tolist() == [[2, 1], [4, 3]]


def test_no_draw_only_normalises():
    images = batch()
    augment = data.Augment(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    expected = (images / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.3, 0.4]
    np.testing.assert_allclose(run(augment, images, None), expected, rtol=1e-6, atol=1e-6)


def test_the_border_is_black_before_normalisation():
    white = np.full((1, 2, 2, 1), 255, np.uint8)
    augment = data.Augment(pad=2, mean=(0.5,), std=(0.25,))
    corner = data.Draw(np.array([0], np.int32), np.array([0], np.int32), np.array([False]))
    np.testing.assert_allclose(run(augment, white, corner), -2.0)


def test_every_offset_is_drawn_and_half_of_the_images_are_flipped():
    draw = data.Augment(pad=4).draw(np.random.default_rng(0), 4000)
    assert set(draw.rows) == set(draw.columns) == set(range(9))
    assert abs(draw.flips.mean() - 0.5) < 0.03
    assert abs(np.corrcoef(draw.rows, draw.columns)[0, 1]) < 0.05


def test_the_same_generator_draws_the_same():
    draws = [data.Augment().draw(np.random.default_rng(5), 16) for _ in range(2)]
    for one, other in zip(*(vars(draw).values() for draw in draws), strict=True):
        np.testing.assert_array_equal(one, other)


def test_nothing_is_drawn_where_nothing_is_random():
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    assert data.Augment(pad=0, flip=False).draw(rng, 8) is None
    assert rng.bit_generator.state == before


def test_without_flips_no_image_is_flipped():
    assert not data.Augment(flip=False).draw(np.random.default_rng(0), 100).flips.any()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pad": -1}, "pad -1; expected 0 or more"),
        ({"mean": (0.5,), "std": (0.2, 0.2)}, "1 means and 2 deviations"),
        ({"std": (0.0,)}, "expected numbers above 0"),
        ({"std": (float("nan"),)}, "expected numbers above 0"),
    ],
)
def test_impossible_settings_are_refused(options, said):
    with pytest.raises(UserError, match=said):
        data.Augment(**options)


def test_another_number_of_channels_is_refused():
    augment = data.Augment(mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    grey = batch(channels=1)
    for way, images in ((augment, ops.convert_to_tensor(grey)), (augment.normalised, grey)):
        with pytest.raises(UserError, match=r"3 means for images of shape \(6, 5, 1\)"):
            way(images)
