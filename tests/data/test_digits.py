import numpy as np

from kgraft import data

# images a class in the test part of the UCI set, as its makers list them
PUBLISHED = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]

FIRST_IMAGE = """
 0  0  5 13  9  1  0  0
 0  0 13 15 10 15  5  0
 0  3 15  2  0 11  8  0
 0  4 12  0  0  8  8  0
 0  5  8  0  0  9  8  0
 0  4 11  0  1 12  7  0
 0  2 14  5 10 12  0  0
 0  0  6 13 10  0  0  0
"""


def test_all_published_images_are_there():
    digits = data.load("digits", validation=0)
    labels = np.concatenate([digits.train.labels, digits.test.labels])
    assert np.bincount(labels).tolist() == PUBLISHED
    assert digits.train.images.shape == (1442, 8, 8, 1)
    assert digits.test.images.shape == (355, 8, 8, 1)
    assert digits.train.images.dtype == np.uint8
    assert digits.train.labels.dtype == np.int64
    assert digits.classes == 10


def test_the_first_image_is_the_published_one():
    image = data.load("digits", validation=0).train.images[0, :, :, 0]
    levels = np.array(FIRST_IMAGE.split(), float).reshape(8, 8)
    np.testing.assert_array_equal(image, np.round(levels * 255 / 16))


def test_every_grey_level_can_be_told_from_its_pixel_value():
    pixels = np.unique(data.load("digits", validation=0).train.images)
    np.testing.assert_array_equal(np.round(pixels / 255 * 16), np.arange(17))


def test_every_fifth_image_of_a_class_is_a_test_image():
    digits = data.load("digits", validation=0)
    assert np.bincount(digits.test.labels).tolist() == [n // 5 for n in PUBLISHED]


def test_no_image_is_in_both_parts():
    digits = data.load("digits", validation=0)
    train = {image.tobytes() for image in digits.train.images}
    assert not train & {image.tobytes() for image in digits.test.images}


def test_licence_and_source_are_stated():
    digits = data.load("digits")
    assert digits.licence == "CC BY 4.0"
    assert "UCI" in digits.source
