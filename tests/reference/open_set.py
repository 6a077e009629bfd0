"""An open set of identities from CIFAR-100's classes, under the names of Market-1501's files.

    python -m tests.reference.open_set OUT D

`D` is where `kgraft data prepare cifar100` has put the set. It stands in for people: of the 100
classes 50 are learnt, the others are looked for. Six cameras, each with a brightness, a contrast
and a tint of its own (drawn once, seed 0); image k of a class is taken by camera k % 6. Of the 50
that are not learnt 44 are queries, 5 are nobody's (0000), 1 is junk (-1).
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

CAMERAS = 6
LEARNT, SOUGHT, NOBODYS = 50, 44, 5
OF_EACH = (500, 20, 100)  # images to learn from, queries, gallery


def looks():
    """Of every camera: contrast, brightness and tint, `(6, 1)`, `(6, 1)`, `(6, 3)`."""
    rng = np.random.default_rng(0)
    return (
        rng.uniform(0.6, 1.2, (CAMERAS, 1)),
        rng.uniform(-40, 40, (CAMERAS, 1)),
        rng.uniform(0.85, 1.15, (CAMERAS, 3)),
    )


def taken(pixels, camera):
    """What a camera makes of an image, uint8 `(32, 32, 3)`."""
    contrast, brightness, tint = (own[camera] for own in looks())
    seen = ((pixels - 127.5) * contrast + 127.5 + brightness) * tint
    return np.clip(np.round(seen), 0, 255).astype(np.uint8)


def write(out, images, labels):
    """The whole tree.

    Args:
        out: The folder.
        images: uint8 `(n, 32, 32, 3)`.
        labels: Fine labels, 0..99.
    """
    order = np.random.default_rng(1).permutation(100)
    for place, label in enumerate(order.tolist()):
        own = images[labels == label]
        parts = {"bounding_box_train": range(OF_EACH[0])}
        who = place + 2
        if place >= LEARNT:
            queries, found = OF_EACH[1:]
            parts = {
                "query": range(queries),
                "bounding_box_test": range(queries, queries + found),
            }
        if place >= LEARNT + SOUGHT:
            del parts["query"]
            who = 0 if place < LEARNT + SOUGHT + NOBODYS else -1
        for part, numbers in parts.items():
            folder = Path(out) / part
            folder.mkdir(parents=True, exist_ok=True)
            for k in numbers:
                camera = k % CAMERAS
                name = f"{who:04d}" if who >= 0 else str(who)
                file = folder / f"{name}_c{camera + 1}s1_{100 * label + k % 100:06d}_{k:02d}.jpg"
                seen = Image.fromarray(taken(own[k], camera))
                seen.save(file, quality=95, subsampling=0)


if __name__ == "__main__":
    from kgraft import data

    found = data.load("cifar100", data_dir=sys.argv[2], validation=0)
    write(sys.argv[1], found.train.images, found.train.labels)
