"""What the processes of a ring must have in common, to train what one process trains."""

import itertools
import json
import textwrap
import zlib
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from kgraft.errors import UserError
from kgraft.grafting.mixer import Mixer
from kgraft.grafting.peers import Peers
from kgraft.keras_private import flat_layers
from kgraft.links.link import Here

_WIDE = 80  # characters of a value that is told


def check_same(everybody: Mapping[int, dict[str, Any]], rule: str) -> None:
    """Refuse what is not the same on all ranks.

    Args:
        everybody: by rank, values by the words that name them.
        rule: why they have to be.

    Raises:
        UserError: names two ranks, and in what they differ.
    """
    first = next(iter(everybody))
    for rank, found in everybody.items():
        for what, value in found.items():
            before = everybody[first][what]
            if before != value:
                raise UserError(
                    f"{what} is {before} on rank {first} and {value} on rank {rank}: {rule}."
                )


def check_alike(peers: Peers, mixer: Mixer, said: dict[str, Any]) -> tuple[int, int] | None:
    """Refuse a ring whose processes do not train the same.

    Args:
        peers: those of this process.
        mixer: what is done to all of them.
        said: what else has to be the same, by the words that name it.

    Returns:
        Places of two peers in different processes that have equal weights, if there are any.

    Raises:
        UserError: names the first peer of another process that differs, and in what.
    """
    groups = peers.plan.groups
    told = {
        **said,
        "mixers": mixer.get_config(),
        "weights": [f"{[*w.shape]}" for w in peers.models[0].weights],
        "kernels that are blended": [f"{[*group.kernel_shape]}" for group in groups],
        "dtype policies": sorted({own.dtype_policy.name for own in flat_layers(peers.models[0])}),
    }
    alone = isinstance(peers.link, Here)
    sums = [0 if alone else _checksum(model) for model in peers.models]
    everybody = peers.gather([[json.dumps(told), own] for own in sums], opens=True)
    there = {k: own for k, own in enumerate(everybody) if own is not None}
    others = {k: json.loads(own) for k, (own, _) in there.items()}
    first = next(iter(others.values()))
    for k, own in others.items():
        for what, value in own.items():
            if value != first[what]:
                raise UserError(
                    f"peer 1 and peer {k + 1}, which is in another process, have different {what}"
                    f"{_first_of(first[what], value)}: all processes of a ring run the same "
                    "program."
                )
    owner, start = peers.link.owner, {k: own for k, (_, own) in there.items()}
    pairs = itertools.combinations(start, 2)
    return next(((a, b) for a, b in pairs if start[a] == start[b] and owner(a) != owner(b)), None)


def _checksum(model: keras.Model) -> int:
    """Of all that it learns."""
    found = 0
    for variable in model.trainable_variables:
        own = np.ascontiguousarray(keras.ops.convert_to_numpy(variable))
        found = zlib.crc32(own.tobytes(), found)
    return found


def _first_of(these: Any, those: Any, name: str = "") -> str:
    """The first difference between two values, in words."""
    if isinstance(these, dict) and isinstance(those, dict):
        key = next(key for key in {**these, **those} if these.get(key) != those.get(key))
        return _first_of(these.get(key), those.get(key), str(key))
    if isinstance(these, list) and isinstance(those, list):
        pairs = enumerate(itertools.zip_longest(these, those, fillvalue="none"), start=1)
        place, (one, other) = next((n, pair) for n, pair in pairs if pair[0] != pair[1])
        return f" (number {place} is {one} and {other})"
    return f" ({name and f'{name} is '}{_short(these)} and {_short(those)})"


def _short(value: Any) -> str:
    return textwrap.shorten(str(value), _WIDE, placeholder="...")
