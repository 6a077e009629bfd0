"""Encoded photographs -> pixels: JPEG by libjpeg-turbo, everything else by Pillow.

Both let other threads run while they decode.
"""

import io
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ExifTags import Base

from kgraft.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_BROKEN = (
    *(OSError, ValueError, SyntaxError, EOFError, OverflowError, MemoryError),
    Image.DecompressionBombError,  # of Pillow, before there are 2^28 pixels
)
_MOST_PIXELS = 2**28  # 268 million: a photograph of nearly a gigabyte
_SIDEWAYS = (5, 6, 7, 8)  # EXIF's orientations whose rows are shown as columns


class Unreadable(UserError):
    """Bytes that are no image."""


@dataclass(frozen=True)
class Photo:
    """An encoded image of which the header has been read.

    Attributes:
        encoded: The bytes of a file.
        height: Pixels, as it is to be shown.
        width: Pixels, likewise.
        is_plain: Whether it is an upright JPEG, grey or in colour.
    """

    encoded: bytes
    height: int
    width: int
    is_plain: bool

    def pixels(self, rows: int = 0, columns: int = 0) -> np.ndarray:
        """The image, upright and in three channels.

        Grey and palettes are put into colour, 16 bits are cut to 8, transparency is dropped.

        Args:
            rows: Where not 0, a plain JPEG is decoded to the half, the quarter or the eighth of its
                size that still has as many rows,
            columns: and as many columns.

        Returns:
            uint8 `(height, width, 3)`.

        Raises:
            Unreadable: it ends too early, or is damaged.
        """
        try:
            if self.is_plain:
                found: np.ndarray = simplejpeg.decode_jpeg(
                    self.encoded, min_height=rows, min_width=columns, min_factor=2
                )
                return found
            with _pillow(self.encoded) as image:
                return np.asarray(_in_colour(ImageOps.exif_transpose(image)))
        except _BROKEN as error:
            raise Unreadable(_said(error)) from error


def opened(encoded: bytes) -> Photo:
    """An image of which the header is read; its pixels are not decoded.

    Args:
        encoded: The bytes of a file: JPEG, PNG, WebP, or what else Pillow reads.

    Raises:
        Unreadable: they are no image, or one of more than 2^28 pixels.
    """
    try:
        photo = _plain(encoded) or _any(encoded)
    except _BROKEN as error:
        raise Unreadable(_said(error)) from error
    if photo.height * photo.width > _MOST_PIXELS:
        raise Unreadable(f"it has {photo.width} x {photo.height} pixels, more than {_MOST_PIXELS}")
    return photo


def _plain(encoded: bytes) -> Photo | None:
    """A JPEG that libjpeg-turbo takes as it is; None for all else."""
    if encoded[:3] != b"\xff\xd8\xff":
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(encoded)
    except ValueError:  # colours sampled in a way that it does not know, which Pillow does
        return None
    if colours in ("CMYK", "YCCK"):
        return None
    if b"Exif\0\0" in encoded[:65_536]:
        with _pillow(encoded) as image:
            if image.getexif().get(Base.Orientation, 1) not in (0, 1):
                return None
    return Photo(encoded, height, width, is_plain=True)


def _any(encoded: bytes) -> Photo:
    with _pillow(encoded) as image:
        width, height = image.size
        if image.getexif().get(Base.Orientation) in _SIDEWAYS:
            width, height = height, width
    return Photo(encoded, height, width, is_plain=False)


def _pillow(encoded: bytes) -> Image.Image:
    return Image.open(io.BytesIO(encoded))


def _in_colour(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits; Pillow would cut off what is above 255
        high = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255)
        image = Image.fromarray(high.astype(np.uint8))
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _said(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it is no image that Pillow knows"
    return str(error).split("\n")[0].strip().rstrip(".") or type(error).__name__
