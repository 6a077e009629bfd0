"""Images of bytes in another size, by torch on the host, whatever the backend."""

import numpy as np
import torch


def antialiased(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """An image in another size, bilinear and antialiased; other threads run meanwhile.

    Args:
        pixels: uint8 `(rows, columns, channels)`.
        height: Rows that it will have.
        width: Columns.
    """
    given = torch.from_numpy(np.require(pixels, requirements=["C", "W"])).permute(2, 0, 1)[None]
    found = torch.nn.functional.interpolate(given, (height, width), mode="bilinear", antialias=True)
    seen: np.ndarray = found[0].permute(1, 2, 0).numpy()
    return seen
