"""How fast photographs are read: kgraft's streams beside torch's DataLoader, the same files."""

import importlib.util
import statistics
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kgraft import data
from kgraft.data import Augment, Dataset, PhotoStream, RandomResizedCrop
from kgraft.data.photo_sets import IMAGENET_MEAN, IMAGENET_STD
from kgraft.errors import UserError

_WORKERS = 2
_LOADER = "torch DataLoaders"

Batches = Any  # a generator of them


def measure_photographs(
    folder: str,
    data_dir: str | None,
    *,
    size: int,
    peers: int,
    batch_size: int,
    steps: int,
    repeats: int,
) -> list[dict[str, Any]]:
    """Read batches of all peers in several ways, in turns, in one process.

    Args:
        folder: the folder of photographs.
        data_dir: where what is known of its files is kept.
        size: side of the squares that are seen, pixels.
        peers: K.
        batch_size: photographs of a peer's batch.
        steps: batches of every peer in a round, which is an epoch of so many photographs.
        repeats: rounds; ratios are taken within a round.

    Returns:
        One JSON-able row a way: photographs x peers a second, and how many times as fast kgraft's
        windows are.

    Raises:
        UserError: the folder holds too few photographs for a round.
    """
    place = data.data_directory(data_dir)
    found = data.load_folder(Path(folder), place, size=size, validation=0, workers=_WORKERS)
    if len(found.train) < steps * batch_size:
        raise UserError(
            f"{folder} holds {len(found.train)} photographs to learn from; expected "
            f"{steps * batch_size} or more, --steps x --batch-size."
        )
    few = replace(found, train=found.train.first(steps * batch_size))
    ways = _ways(few, peers, batch_size)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(repeats + 2):
        for name, opened in ways.items():
            began = time.perf_counter()
            seen = _read(opened, number)
            # in the first round files come into the page cache and the loaders' processes begin, in
            # the second one all memory that these share with this one is copied
            if number > 1:
                rates[name].append(seen / (time.perf_counter() - began))
    first = rates["kgraft"]
    rows = []
    for name, own in rates.items():
        ratios = [mine / theirs for mine, theirs in zip(first, own, strict=True)]
        rows.append(
            {
                "contender": name,
                "size": size,
                "peers": peers,
                "batch_size": batch_size,
                "images_per_second": statistics.median(own),
                "images_per_second_range": [min(own), max(own)],
                "kgraft_over_this": statistics.median(ratios),
                "kgraft_over_this_range": [min(ratios), max(ratios)],
            }
        )
    return rows


def _read(opened: Callable[[int], list[Batches]], epoch: int) -> int:
    """How many photographs were read, of all peers in lockstep, over an epoch."""
    seen = 0
    with ExitStack() as closed:
        readers = [closed.enter_context(closing(own)) for own in opened(epoch)]
        for batches in zip(*readers, strict=True):
            seen += sum(len(labels) for _, labels in batches)
    return seen


def _ways(found: Dataset, peers: int, batch_size: int) -> dict[str, Callable[[int], list[Batches]]]:
    photos = found.train.images
    augment = Augment(0, False, found.mean, found.std)
    options: dict[str, Any] = {
        "batch_size": batch_size,
        "seed": 0,
        "peer": 0,
        "peers": peers,
        "augment": augment,
        "workers": _WORKERS,
    }

    def of(**own: Any) -> Callable[[int], list[Batches]]:
        stream = PhotoStream(photos, found.train.labels, **options, **own)
        siblings = [stream.for_peer(k) for k in range(peers)]
        return lambda epoch: [sibling.epoch(epoch) for sibling in siblings]

    ways = {"kgraft": of(), "kgraft, scaled": of(scaled=True)}
    if peers > 1:
        ways["kgraft, independent"] = of(order="independent")
    if importlib.util.find_spec("torch") is not None:
        ways[_LOADER] = _loaders(found, peers, batch_size)
    return ways


def _loaders(found: Dataset, peers: int, batch_size: int) -> Callable[[int], list[Batches]]:
    """One DataLoader a peer, as torchvision's reference training has it, with two workers."""
    import torch

    loaders = [
        torch.utils.data.DataLoader(
            _Twin(found, peer),
            batch_size=batch_size,
            shuffle=True,
            num_workers=_WORKERS,
            persistent_workers=True,
        )
        for peer in range(peers)
    ]
    return lambda epoch: [_once(loader) for loader in loaders]


def _once(loader: Any) -> Generator[Any, None, None]:
    yield from loader


class _Twin:
    """`ImageFolder` with `RandomResizedCrop`, a flip, `ToTensor` and `Normalize`, by Pillow.

    What torchvision's transforms do to images of Pillow, call by call; torchvision itself does not
    install beside every build of torch.
    """

    def __init__(self, found: Dataset, peer: int) -> None:
        photos = found.train.images
        self._paths = [photos.source.name(int(number)) for number in photos.numbers]
        self._labels = found.train.labels
        self._crop = RandomResizedCrop(photos.size)
        self._peer = peer

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, number: int) -> tuple[Any, int]:
        import torch

        with Path(self._paths[number]).open("rb") as file:
            image = Image.open(file).convert("RGB")
        rng = np.random.default_rng()
        width, height = image.size
        own = self._crop.crop(self._crop.draw(rng, 1)[0], height, width)
        image = image.crop((own.left, own.top, own.left + own.width, own.top + own.height))
        side = self._crop.size
        image = image.resize((side, side), Image.Resampling.BILINEAR)
        if own.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().div(255)
        mean, std = (torch.tensor(own)[:, None, None] for own in (IMAGENET_MEAN, IMAGENET_STD))
        return pixels.sub_(mean).div_(std), int(self._labels[number])
