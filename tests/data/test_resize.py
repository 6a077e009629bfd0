"""Images of another size: what the filter is, and what follows from it for a set."""

import numpy as np
import pytest

from kgraft import data
from kgraft.data import channel_statistics
from kgraft.data.dataset import Split
from kgraft.data.resize import resized
from kgraft.errors import UserError

RANDOM = np.random.default_rng(0)


def triangle(plane, size):
    """The antialiased triangle filter in float64, both axes: its support grows with the scale."""
    for _ in range(2):
        count = plane.shape[0]
        scale = count / size
        support = max(scale, 1.0)
        centres = (np.arange(size) + 0.5) * scale
        offsets = np.abs(np.arange(count)[None] + 0.5 - centres[:, None]) / support
        weights = np.maximum(0.0, 1.0 - offsets)
        plane = (weights / weights.sum(axis=1, keepdims=True) @ plane).T
    return plane


@pytest.mark.parametrize(("side", "size"), [(32, 16), (32, 12), (8, 5), (8, 12)])
def test_every_pixel_has_its_part(side, size):
    images = RANDOM.integers(0, 256, (4, side, side, 3), dtype=np.uint8)
    found = resized(Split(images, np.arange(4)), size)
    assert found.images.shape == (4, size, size, 3) and found.images.dtype == np.uint8
    for own, image in zip(found.images, images, strict=True):
        for channel in range(3):
            expected = triangle(image[..., channel].astype(float), size)
            np.testing.assert_allclose(own[..., channel], expected, atol=1.01)  # rounded twice
    assert found.labels.tolist() == [0, 1, 2, 3]


def test_a_grating_finer_than_the_pixels_is_grey():
    stripes = np.zeros((1, 32, 32, 1), np.uint8)
    stripes[:, :, ::2] = 254
    inner = resized(Split(stripes, np.zeros(1, int)), 16).images[0, 2:-2, 2:-2, 0]
    assert inner.min() >= 126 and inner.max() <= 128


def test_a_set_of_another_size_has_its_own_statistics(tmp_path):
    images = RANDOM.integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
    labels = np.arange(30) % 3
    file = tmp_path / "set.npz"
    np.savez(file, x_train=images, y_train=labels, x_test=images[:5], y_test=labels[:5])
    whole, half = data.load(file, validation=0), data.load(file, size=4, validation=0)
    assert whole.train.images.shape[1:] == (8, 8, 3) and half.test.images.shape == (5, 4, 4, 3)
    assert (half.mean, half.std) == channel_statistics(half.train.images)
    assert np.mean(half.std) < 0.8 * np.mean(whole.std)  # noise is averaged
    same = data.load(file, size=8, validation=0)
    np.testing.assert_array_equal(same.train.images, whole.train.images)
    np.testing.assert_array_equal(half.train.labels, whole.train.labels)


@pytest.mark.parametrize("size", [0, -4, 2.5, "16", True])
def test_a_size_that_is_none_is_refused(size):
    with pytest.raises(UserError, match="size"):
        data.load("digits", size=size)
