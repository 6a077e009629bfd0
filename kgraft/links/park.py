"""Machines, and which of their ranks train which peers.

Rates are bytes a second, latencies seconds.
"""

from collections.abc import Iterator
from dataclasses import MISSING, dataclass
from typing import Literal

from kgraft.errors import UserError
from kgraft.settings import argument, check, setting

Way = Literal["process", "host", "network"]
"""How far a ring edge goes: nowhere, to another rank of the host, to another host."""


@dataclass(frozen=True)
class Park:
    """Machines that are alike. Ranks fill one host after the other, as torchrun numbers them.

    Args:
        hosts: how many.
        gpus: ranks on each, one a GPU or a share of the cores.
        network: bytes/s that a host's network card sends, and at the same time receives.
        inside: bytes/s that ranks of one host move among each other, all of them together.
        network_latency: seconds until a message is at another host.
        inside_latency: the same for another rank of the host.
        copying: bytes/s between a rank's device and host memory; None where weights lie in host
            memory already.
        mixing: bytes/s of weights that a rank counts and blends, both done; None for a time that
            is left out.
        answering: seconds that the key-value store takes for a request.

    Raises:
        UserError: an argument is out of range.
    """

    hosts: int = setting(MISSING, low=1)
    gpus: int = setting(MISSING, low=1)
    network: float = setting(MISSING, above=0)
    inside: float = setting(MISSING, above=0)
    network_latency: float = setting(MISSING, low=0)
    inside_latency: float = setting(MISSING, low=0)
    copying: float | None = setting(None, above=0)
    mixing: float | None = setting(None, above=0)
    answering: float = setting(0.0, low=0)

    def __post_init__(self) -> None:
        check(self)

    @property
    def ranks(self) -> int:
        """W, processes in all."""
        return self.hosts * self.gpus

    def host_of(self, rank: int) -> int:
        """The host, from 0, that a rank is on."""
        return rank // self.gpus

    def way(self, sender: int, target: int) -> Way:
        """How far it is from one rank to another."""
        if sender == target:
            return "process"
        return "host" if self.host_of(sender) == self.host_of(target) else "network"

    @property
    def latency(self) -> float:
        """Seconds of a message on the longest way there is."""
        return self.network_latency if self.hosts > 1 else self.inside_latency


@dataclass(frozen=True)
class Placement:
    """Which ranks train which peers: rank = block x R + lane.

    The R ranks of a block train the same peers, on a share of every batch each. Ranks of one lane
    are the M = W / R members of a ring. Neighbours in the ring of peers lie in the same block or in
    neighbouring ones, and the first K mod M blocks have one peer more than the others.

    Args:
        ranks: W.
        peers: K, at least M.
        ranks_per_peer: R, a divisor of W.

    Raises:
        UserError: an argument is out of range, or the ranks cannot be shared so.
    """

    ranks: int = setting(MISSING, low=1)
    peers: int = setting(MISSING, low=1)
    ranks_per_peer: int = setting(1, low=1)

    def __post_init__(self) -> None:
        check(self)
        wide = self.ranks_per_peer
        if self.ranks % wide:
            raise UserError(
                f"{self.ranks} ranks with {wide} per peer: {wide} does not divide {self.ranks}, "
                f"{_nearest(wide, _divisors(self.ranks))} does."
            )
        if self.blocks > self.peers:
            fits = self.ranks % self.peers == 0
            remedy = f"{self.ranks // self.peers} ranks per peer" if fits else "more ranks per peer"
            raise UserError(
                f"{self.ranks} ranks with {wide} per peer are {self.blocks} blocks, more than the "
                f"{self.peers} peers: take {remedy}, or at least {self.blocks} peers."
            )

    @property
    def blocks(self) -> int:
        """M, members of a lane's ring."""
        return self.ranks // self.ranks_per_peer

    @property
    def most(self) -> int:
        """The most peers that a rank has."""
        return -(-self.peers // self.blocks)

    @property
    def least(self) -> int:
        """The fewest peers that a rank has."""
        return self.peers // self.blocks

    def local(self, block: int) -> range:
        """The peers, from 0, of a block."""
        each, more = divmod(self.peers, self.blocks)
        start = block * each + min(block, more)
        return range(start, start + each + (block < more))

    def rank(self, block: int, lane: int) -> int:
        """The rank of a block in a lane."""
        return block * self.ranks_per_peer + lane


def ranks_per_peer(ranks: int, peers: int) -> int:
    """R where every rank is to work and no peer is to have more than another.

    Args:
        ranks: W.
        peers: K.

    Returns:
        W / K, or 1 where there are more peers than ranks.

    Raises:
        UserError: the ranks cannot be shared alike.

    Example:
        >>> ranks_per_peer(512, 16), ranks_per_peer(8, 12)
        (32, 1)
    """
    if peers >= ranks:
        return 1
    if ranks % peers:
        near = _nearest(peers, _divisors(ranks)[1:])
        raise UserError(
            f"{ranks} ranks cannot be shared alike by {peers} peers: {near} peers can; or say "
            "how many ranks a peer gets, a divisor of the ranks."
        )
    return ranks // peers


@dataclass(frozen=True)
class Edge:
    """A ring edge of one lane.

    Attributes:
        donor: peer, from 0, whose weights go.
        receiver: peer that is blended with them.
        sender: the donor's rank.
        target: the receiver's rank.
        way: how far that is.
    """

    donor: int
    receiver: int
    sender: int
    target: int
    way: Way


def edges(park: Park, placement: Placement, lane: int) -> tuple[Edge, ...]:
    """A lane's ring while all peers are well: each receives from the one before it.

    Args:
        park: the machines.
        placement: who is where.
        lane: in 0..R-1.

    Returns:
        K edges, in the receivers' order; none for one peer.
    """
    argument("lane", lane, int, low=0, high=placement.ranks_per_peer - 1)
    if placement.peers == 1:
        return ()
    rank_of = [
        placement.rank(block, lane)
        for block in range(placement.blocks)
        for _ in placement.local(block)
    ]
    return tuple(
        Edge(
            donor := (peer - 1) % placement.peers,
            peer,
            rank_of[donor],
            own,
            park.way(rank_of[donor], own),
        )
        for peer, own in enumerate(rank_of)
    )


def crossings(placement: Placement) -> Iterator[tuple[int, int]]:
    """Senders and targets of the edges of all lanes that leave their rank."""
    blocks = placement.blocks
    for block in range(blocks if blocks > 1 else 0):
        for lane in range(placement.ranks_per_peer):
            yield placement.rank((block - 1) % blocks, lane), placement.rank(block, lane)


def _divisors(number: int) -> list[int]:
    return [own for own in range(1, number + 1) if number % own == 0]


def _nearest(wanted: int, candidates: list[int]) -> str:
    """The candidates below and above a number that is none of them."""
    below = [own for own in candidates if own < wanted][-1:]
    return " or ".join(map(str, below + [own for own in candidates if own > wanted][:1]))
