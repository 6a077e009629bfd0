"""Where the invalid filters of a network sit: in which layers, how deep, and where another's do."""

from collections.abc import Sequence
from dataclasses import dataclass

from kgraft.analysis.filters import LayerFilters, both_and_either, check_alike, check_any
from kgraft.errors import UserError

PARTS = 3


@dataclass(frozen=True)
class Part:
    """Neighbouring layers of a network.

    Attributes:
        layers: how many.
        filters: of them all, those whose norms are finite.
        invalid: how many of these are invalid.
        share: of all invalid filters of the network, 0..1; nan where it has none.
    """

    layers: int
    filters: int
    invalid: int
    share: float


@dataclass(frozen=True)
class SharedPlaces:
    """The invalid filters of one layer in two networks.

    Attributes:
        name: path of the layer's kernel in the first network.
        both: how many are invalid in both, at the same places.
        either: in one of them at least. Places where one is not finite do not count.
    """

    name: str
    both: int
    either: int


def by_depth(
    layers: Sequence[LayerFilters], threshold: float = 0.1, parts: int = PARTS
) -> tuple[Part, ...]:
    """How deep a network's invalid filters sit.

    Args:
        layers: what `layer_filters` gave.
        threshold: the l1 norm below which a filter is invalid.
        parts: into how many the layers are divided, as evenly as they can be; layer i of L, counted
            from 0, is in part floor(i parts / L).

    Returns:
        The parts, those near the images first; fewer where there are fewer layers.

    Raises:
        UserError: there is no layer, or no part.

    Example:
        >>> import numpy as np
        >>> layers = [LayerFilters("k", np.array([0.0, n]), None, 1.0, 9) for n in (0.0, 2.0, 2.0)]
        >>> [(part.invalid, part.share) for part in by_depth(layers)]
        [(2, 0.5), (1, 0.25), (1, 0.25)]
    """
    check_any(layers)
    if parts < 1:
        raise UserError(f"parts {parts}: expected 1 or more.")
    count = min(parts, len(layers))
    invalid = [int(layer.invalid(threshold).sum()) for layer in layers]
    of = [i * count // len(layers) for i in range(len(layers))]
    total = sum(invalid)
    found = []
    for part in range(count):
        own = [i for i, where in enumerate(of) if where == part]
        dead = sum(invalid[i] for i in own)
        found.append(
            Part(
                layers=len(own),
                filters=sum(int(layers[i].finite.sum()) for i in own),
                invalid=dead,
                share=dead / total if total else float("nan"),
            )
        )
    return tuple(found)


def shared_places(
    layers: Sequence[LayerFilters], others: Sequence[LayerFilters], threshold: float = 0.1
) -> tuple[SharedPlaces, ...]:
    """How many invalid filters two networks have at the same places of each layer.

    Args:
        layers: a network's.
        others: another one's, of the same architecture.
        threshold: the l1 norm below which a filter is invalid.

    Returns:
        One entry a layer; `overlap` is the sum of `both` over the sum of `either`.

    Raises:
        UserError: the two have other layers.
    """
    check_alike(layers, others)
    return tuple(
        SharedPlaces(own.name, *both_and_either(own, other, threshold))
        for own, other in zip(layers, others, strict=True)
    )


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as text, neighbours together.

    Args:
        numbers: ascending.

    Example:
        >>> ranges([0, 1, 2, 5, 7, 8])
        '0-2, 5, 7-8'
    """
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][-1] + 1:
            found[-1] = [found[-1][0], number]
        else:
            found.append([number])
    return ", ".join("-".join(map(str, own)) for own in found)
