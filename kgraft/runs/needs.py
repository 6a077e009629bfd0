"""The names of all methods, and how many networks and teachers each needs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """What a method needs.

    Attributes:
        peers: how many networks it trains where nobody says.
        least: how many it needs at least.
        taught: whether it needs teachers; it has none otherwise.
    """

    peers: int = 1
    least: int = 1
    taught: bool = False


_POPULATION = Method(peers=4, least=2)

METHODS = {
    "baseline": Method(),
    "graft": _POPULATION,
    "graft+": Method(peers=4, least=2, taught=True),
    "distill": Method(taught=True),
    "mutual": Method(peers=2, least=2),
    "repr": Method(),
    "noise": Method(),
    "internal": Method(),
    "rotation": _POPULATION,
    "fixed": _POPULATION,
    "papa": _POPULATION,
    "wash": _POPULATION,
    "ema": Method(),
    "ensemble": _POPULATION,
}
