"""JPEGs to read, of pixels that are CIFAR-100's, and what decoding them costs.

    python -m tests.reference.jpegs write large D --sides 300 500 --tiles 3 4
    python -m tests.reference.jpegs decode large

`D` is where `kgraft data prepare cifar100` has put the set.
"""

import argparse
import io
import time
from pathlib import Path

import numpy as np
from PIL import Image

QUALITY = 90


def write(out, data_dir, count, classes, sides, tiles):
    """A folder `train` and `test` (a twelfth), each with a folder a class, of unequal sizes.

    Args:
        out: The folder.
        data_dir: See above.
        count: How many files.
        classes: How many classes: the images of the first so many of CIFAR-100's.
        sides: Least and largest rows; an image is 3/4 to 4/3 as wide.
        tiles: Rows and columns of images that a photograph is put together from; 1 1 for one.
    """
    from kgraft import data

    found = data.load("cifar100", data_dir=data_dir, validation=0)
    rng = np.random.default_rng(0)
    for part, split, wanted in (
        ("train", found.train, count - count // 12),
        ("test", found.test, count // 12),
    ):
        own = np.flatnonzero(split.labels < classes)
        # class c keeps one in 1 + c % 3 of its images
        kept = [k for k in own.tolist() if rng.random() * (1 + split.labels[k] % 3) < 1]
        of_class = {c: [k for k in kept if split.labels[k] == c] for c in range(classes)}
        for number in range(wanted):
            label = int(split.labels[kept[number % len(kept)]])
            several = rng.choice(of_class[label], tiles[0] * tiles[1])
            if tiles == [1, 1]:
                several = [kept[number % len(kept)]]
            images = split.images[several].reshape(*tiles, *split.images.shape[1:])
            pixels = np.concatenate(np.concatenate(images, axis=1), axis=1)
            rows = int(rng.integers(sides[0], sides[1] + 1))
            size = (int(rows * rng.uniform(3 / 4, 4 / 3)), rows)
            folder = Path(out) / part / f"{label:02d}"
            folder.mkdir(parents=True, exist_ok=True)
            seen = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
            seen.save(folder / f"{number}.jpg", quality=QUALITY)


def arrays(folder, side):
    """The photographs of a folder in memory, as `photos.area = [1.0, 1.0]` sees them.

    Args:
        folder: With `train` and `test`.
        side: Of the squares, pixels.

    Returns:
        `(x, y), (x, y)`: all of each photograph to learn from, the middles to test on.
    """
    from kgraft.data import CentreCrop
    from kgraft.data.crops import resized
    from kgraft.data.decode import opened

    middle = CentreCrop(side, resize=side)
    names = sorted(own.name for own in (Path(folder) / "train").iterdir())

    def part(name, seen):
        files = sorted((Path(folder) / name).rglob("*.jpg"))
        x = np.stack([seen(opened(own.read_bytes()).pixels()) for own in files])
        return x, np.array([names.index(own.parent.name) for own in files])

    return part("train", lambda own: resized(own, side, side)), part("test", middle)


def decode(folder, repeats):
    """Milliseconds a file, on one core, medians over rounds in turns: decoded, and resized."""
    import simplejpeg

    from kgraft.data.crops import resized

    files = [own.read_bytes() for own in sorted(Path(folder).rglob("*.jpg"))[:200]]
    decoders = {
        "simplejpeg": simplejpeg.decode_jpeg,
        "Pillow": lambda own: np.asarray(Image.open(io.BytesIO(own)).convert("RGB")),
    }
    _in_turns("decoded", decoders, files, repeats)
    side, bilinear = (224, 224), Image.Resampling.BILINEAR
    resizers = {
        "torch": lambda own: resized(own, *side),
        "Pillow": lambda own: np.asarray(Image.fromarray(own).resize(side, bilinear)),
    }
    _in_turns("resized", resizers, list(map(simplejpeg.decode_jpeg, files)), repeats)


def _in_turns(what, ways, given, repeats):
    times = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            began = time.perf_counter()
            for own in given:
                way(own)
            times[name].append((time.perf_counter() - began) / len(given) * 1e3)
    first = np.array(next(iter(times.values())))
    for name, own in times.items():
        ratio = np.array(own) / first
        print(
            f"{what} by {name}: {np.median(own):.2f} ms, {np.median(ratio):.2f} "
            f"({ratio.min():.2f} to {ratio.max():.2f}) times the first"
        )


def main():
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    writing = commands.add_parser("write")
    writing.add_argument("out")
    writing.add_argument("data_dir")
    writing.add_argument("--count", type=int, default=1200)
    writing.add_argument("--classes", type=int, default=20)
    writing.add_argument("--sides", type=int, nargs=2, default=[64, 160])
    writing.add_argument("--tiles", type=int, nargs=2, default=[1, 1])
    timing = commands.add_parser("decode")
    timing.add_argument("folder")
    timing.add_argument("--repeats", type=int, default=7)
    given = vars(parser.parse_args())
    {"write": write, "decode": decode}[given.pop("command")](**given)


if __name__ == "__main__":
    main()
