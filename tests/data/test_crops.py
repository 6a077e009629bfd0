import math

import numpy as np
import pytest
from PIL import Image

from kgraft.data.crops import CentreCrop, Crop, RandomResizedCrop, enough_for, resized
from kgraft.errors import UserError
from tests.data.test_decode import photograph
from tests.reference import torchvision

SIZES = [(80, 120), (120, 80), (61, 61), (30, 200), (200, 30), (33, 47)]


class Drawn:
    """torch's random numbers, taken from a row of uniform ones."""

    def __init__(self, row):
        self.row = list(row)

    def uniform_(self, tensor, low, high):
        return tensor.fill_(low + self.row.pop(0) * (high - low))


def of_torchvision(monkeypatch, numbers, height, width, **options):
    """The crop that torchvision chooses, given the numbers that kgraft draws."""
    transforms = torchvision.transforms()
    import torch

    shapes, (down, across, *_) = numbers[:20], numbers[20:]
    drawn, places = Drawn(shapes), [down, across]
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda *own: drawn.uniform_(*own))
    monkeypatch.setattr(
        torch, "randint", lambda low, high, size: torch.tensor([int(places.pop(0) * high)])
    )
    crop = transforms.RandomResizedCrop(1, **options)
    found = crop.get_params(Image.new("RGB", (width, height)), crop.scale, crop.ratio)
    monkeypatch.undo()
    return found


@pytest.mark.parametrize("area", [(0.08, 1.0), (0.9, 1.0)])
def test_crops_are_those_that_torchvision_draws_from_the_same_numbers(monkeypatch, area):
    crop = RandomResizedCrop(32, area=area)
    numbers = crop.draw(np.random.default_rng(1), 300)
    for k, row in enumerate(numbers):
        height, width = SIZES[k % len(SIZES)]
        own = crop.crop(row, height, width)
        theirs = of_torchvision(monkeypatch, row, height, width, scale=area)
        assert (own.top, own.left, own.height, own.width) == theirs


def tensor(pixels):
    """As torchvision has images: channels first."""
    import torch

    return torch.from_numpy(pixels).permute(2, 0, 1)


def test_pixels_are_those_of_torchvision():
    functional, v2 = torchvision.transforms().functional, torchvision.v2().functional
    crop = RandomResizedCrop(32, jitter=0.4)
    changes = (
        functional.adjust_brightness,
        functional.adjust_contrast,
        functional.adjust_saturation,
    )
    for k, row in enumerate(crop.draw(np.random.default_rng(2), 24)):
        pixels = photograph(*SIZES[k % len(SIZES)], seed=k)
        own = crop.crop(row, *pixels.shape[:2])
        seen = v2.resized_crop(tensor(pixels), *own[:4], [32, 32])
        image = Image.fromarray(seen.permute(1, 2, 0).contiguous().numpy())
        for which, factor in own.factors:
            image = changes[which](image, factor)
        image = functional.hflip(image) if own.flip else image
        assert np.array_equal(crop(pixels, own), np.asarray(image))


@pytest.mark.parametrize("size", SIZES)
def test_the_middle_is_that_of_torchvision(size):
    v2 = torchvision.v2()
    pixels = photograph(*size)
    both = v2.Compose([v2.Resize(37), v2.CenterCrop(32)])
    found = CentreCrop(32, resize=37)(pixels)
    assert np.array_equal(found, both(tensor(pixels)).permute(1, 2, 0).numpy())


@pytest.mark.core
@pytest.mark.parametrize("to", [(32, 32), (37, 55), (200, 300)])
@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_nearly_pillows(size, to):
    """Both round sums of bytes, weighed by the same triangle, in whole numbers of their own."""
    pixels = photograph(*size)
    kept = pixels.copy()
    pixels.flags.writeable = False  # as a file that is mapped into memory
    found = resized(pixels, *to)
    theirs = np.asarray(Image.fromarray(pixels).resize(to[::-1], Image.Resampling.BILINEAR))
    off = np.abs(found.astype(int) - theirs)
    assert off.max() <= 2 and off.mean() < 0.3
    assert found.shape == (*to, 3) and np.array_equal(pixels, kept)
    part = pixels[3:-2, 1:-4]
    assert np.array_equal(resized(part, *to), resized(part.copy(), *to))


def test_a_crop_is_of_the_area_and_shape_that_is_asked_for():
    crop = RandomResizedCrop(32)
    crops = [crop.crop(row, 400, 400) for row in crop.draw(np.random.default_rng(0), 2000)]
    shares = np.array([own.height * own.width / 160_000 for own in crops])
    shapes = np.array([own.width / own.height for own in crops])
    assert 0.075 < shares.min() < 0.1 and 0.95 < shares.max() <= 1.0
    assert 0.74 < shapes.min() < 0.77 and 1.3 < shapes.max() < 1.35
    assert abs(np.log(shapes).mean()) < 0.02
    assert all(own.top + own.height <= 400 and own.left + own.width <= 400 for own in crops)
    assert abs(np.mean([own.flip for own in crops]) - 0.5) < 0.05
    lowest = max(own.top + own.height for own in crops)
    assert min(own.top for own in crops) == 0 and lowest == 400


def test_the_whole_of_an_image_that_is_too_long_is_cut_to_the_nearest_shape():
    crop = RandomResizedCrop(8, area=(1.0, 1.0), flip=False)
    numbers = crop.draw(np.random.default_rng(0), 1)[0]
    assert crop.crop(numbers, 30, 300) == Crop(0, 130, 30, 40)
    assert crop.crop(numbers, 300, 30) == Crop(130, 0, 40, 30)


def test_jitter_changes_brightness_contrast_and_saturation_in_any_order():
    crop = RandomResizedCrop(8, jitter=0.4)
    crops = [crop.crop(row, 20, 20) for row in crop.draw(np.random.default_rng(0), 500)]
    orders = {tuple(which for which, _ in own.factors) for own in crops}
    assert len(orders) == math.factorial(3)
    factors = [factor for own in crops for _, factor in own.factors]
    assert 0.6 <= min(factors) < 0.61 and 1.39 < max(factors) <= 1.4
    grey = RandomResizedCrop(8)(photograph(20, 20), Crop(0, 0, 20, 20, factors=((2, 0.0),)))
    assert (grey == grey[..., :1]).all()


def test_a_crop_of_a_photograph_that_is_decoded_smaller_is_the_same_part():
    crop = Crop(20, 40, 60, 80, flip=True)
    assert crop.scaled((160, 240), (80, 120)) == Crop(10, 20, 30, 40, flip=True)
    assert crop.scaled((160, 240), (160, 240, 3)) is crop
    assert Crop(0, 0, 1, 1).scaled((160, 240), (20, 30)) == Crop(0, 0, 1, 1)
    assert enough_for([crop, Crop(0, 0, 160, 200)], (160, 240), (32, 32)) == (86, 96)
    assert enough_for([crop], (160, 240), (200, 200)) == (160, 240)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"area": (0.0, 1.0)}, "area"),
        ({"area": (0.5, 1.5)}, "area"),
        ({"area": (0.9, 0.5)}, "expected two numbers, from and to"),
        ({"area": (0.9,)}, "expected two numbers, from and to"),
        ({"ratio": (2.0, 0.5)}, "expected two numbers, from and to"),
        ({"ratio": (0.0, 1.0)}, "ratio"),
        ({"size": 0}, "size"),
        ({"jitter": 1.5}, "jitter"),
    ],
)
def test_a_crop_that_cannot_be_is_refused(options, said):
    with pytest.raises(UserError, match=said):
        RandomResizedCrop(**options)


def test_the_middle_is_no_larger_than_the_resized_image():
    assert CentreCrop().shorter == 256
    assert CentreCrop(64).shorter == 73
    with pytest.raises(UserError, match="resize 50: expected 64 or more"):
        CentreCrop(64, resize=50)
