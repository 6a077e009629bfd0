import io

import numpy as np
import pytest
from PIL import Image

from kgraft.data.decode import Unreadable, opened

pytestmark = pytest.mark.core


def photograph(height, width, channels=3, seed=0):
    """Smooth colours, as photographs have: what JPEG keeps."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (5, 7, channels), np.uint8)
    images = [Image.fromarray(small[..., c]).resize((width, height)) for c in range(channels)]
    return np.stack([np.asarray(image) for image in images], axis=-1)


def encoded(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize("subsampling", [0, 2])
def test_a_jpeg_has_the_very_pixels_that_pillow_decodes(subsampling):
    image = Image.fromarray(photograph(61, 90))
    content = encoded(image, "JPEG", quality=85, subsampling=subsampling)
    photo = opened(content)
    assert photo.is_plain and (photo.height, photo.width) == (61, 90)
    assert np.array_equal(photo.pixels(), np.asarray(Image.open(io.BytesIO(content))))


KINDS = {
    "JPEG": ("L", "CMYK"),
    "PNG": ("RGB", "RGBA", "P", "L", "LA", "1"),
    "WEBP": ("RGB",),
    "BMP": ("RGB",),
    "GIF": ("P",),
    "TIFF": ("RGB",),
}


@pytest.mark.parametrize(
    ("kind", "mode"), [(kind, mode) for kind, modes in KINDS.items() for mode in modes]
)
def test_every_kind_of_image_comes_out_in_three_channels(kind, mode):
    image = Image.fromarray(photograph(40, 30)).convert(mode)
    content = encoded(image, kind)
    pixels = opened(content).pixels()
    assert pixels.dtype == np.uint8 and pixels.shape == (40, 30, 3)
    assert np.array_equal(pixels, np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))


def test_sixteen_bits_are_cut_to_eight():
    values = np.array([[0, 255, 256, 32_768, 65_535]], np.uint16)
    pixels = opened(encoded(Image.fromarray(values), "PNG")).pixels()
    assert pixels[0, :, 0].tolist() == [0, 0, 1, 128, 255]


def test_transparent_colours_of_a_palette_are_decoded_without_a_warning():
    image = Image.fromarray(photograph(8, 8)).convert("P")
    content = encoded(image, "PNG", transparency=bytes([0, 128, 255]))
    assert opened(content).pixels().shape == (8, 8, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_photograph_that_was_taken_sideways_is_put_upright(kind, orientation):
    upright = photograph(24, 40)
    turned = {  # how a camera stores what is shown as `upright`
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation](upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    image = Image.fromarray(np.ascontiguousarray(turned))
    photo = opened(encoded(image, kind, exif=exif, **options))
    assert (photo.height, photo.width) == (24, 40)
    assert np.abs(photo.pixels().astype(int) - upright).mean() <= (3 if kind == "JPEG" else 0)


def test_a_large_jpeg_is_decoded_to_the_smallest_part_that_is_large_enough():
    photo = opened(encoded(Image.fromarray(photograph(160, 240)), "JPEG"))
    assert photo.pixels(160, 240).shape == (160, 240, 3)
    assert photo.pixels(81, 10).shape == (160, 240, 3)
    assert photo.pixels(80, 120).shape == (80, 120, 3)
    assert photo.pixels(1, 40).shape == (40, 60, 3)
    assert photo.pixels(20, 30).shape == (20, 30, 3)


def test_what_is_no_image_is_refused_before_it_is_decoded():
    for content in (b"", b"hello", b"\xff\xd8\xff and then nothing", b"\x89PNG\r\n\x1a\nnothing"):
        with pytest.raises(Unreadable):
            opened(content)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_an_image_that_ends_too_early_is_refused(kind):
    content = encoded(Image.fromarray(photograph(120, 120)), kind)
    with pytest.raises(Unreadable):
        opened(content[: len(content) * 3 // 4]).pixels()


def test_an_image_of_too_many_pixels_is_refused_by_its_header():
    content = bytearray(encoded(Image.fromarray(photograph(8, 8)), "JPEG"))
    frame = content.index(b"\xff\xc0")
    content[frame + 5 : frame + 9] = b"\x9c\x40\x9c\x40"  # 40,000 x 40,000
    with pytest.raises(Unreadable, match="40000 x 40000 pixels"):
        opened(bytes(content))


def test_what_pillow_takes_for_a_bomb_is_unreadable(monkeypatch):
    content = encoded(Image.fromarray(photograph(40, 40)), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(Unreadable, match="exceeds limit"):
        opened(content)
