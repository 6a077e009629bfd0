"""Images of another size."""

import numpy as np
from PIL import Image

from kgraft.data.dataset import Split


def resized(split: Split, size: int) -> Split:
    """Images scaled to a square, antialiased.

    Pillow's bilinear filter, whose support grows with the scale, so that every pixel has its part
    in a smaller image; the same bytes whatever the backend.

    Args:
        split: Images of any number of channels.
        size: Their side afterwards, in pixels.

    Returns:
        The images, uint8 `(n, size, size, channels)`, and their labels.
    """
    images = np.empty((len(split), size, size, split.images.shape[-1]), np.uint8)
    for own, image in zip(images, split.images, strict=True):
        for channel in range(image.shape[-1]):
            plane = Image.fromarray(image[..., channel])
            own[..., channel] = np.asarray(plane.resize((size, size), Image.Resampling.BILINEAR))
    return Split(images, split.labels)
