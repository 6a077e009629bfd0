"""What peers on many ranks cost: the bytes that travel, and the seconds that they take.

Numbers alone, no network is looked at. Sizes are bytes, rates bytes a second, latencies seconds. A
message of n bytes takes `latency + n / rate`; what shares a link shares its rate, and a link sends
and receives at once (full duplex). Nothing overlaps with anything else: what kgraft sends while it
validates costs less than is said here.

Sources: Thakur, Rabenseifner and Gropp, "Optimization of Collective Communication Operations in
MPICH", IJHPCA 19(1), 2005, for the model, and for reduce-scatter and all-gather, which take
(M - 1) latency + (M - 1)/M n / rate each where everyone sends to everyone else in turn. Patarasuk
and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations", JPDC 69(2), 2009,
for the ring all-reduce: 2 (R - 1)/R of the data through every link, the least there is, in
2 (R - 1) rounds.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from kgraft.links.park import Park, Placement, crossings

BYTES = 4
"""Of a number that travels: rows are float32, whatever the precision of a step."""


@dataclass(frozen=True)
class Traffic:
    """What travels, bytes.

    Attributes:
        sent: by the rank that sends most.
        received: by the rank that receives most.
        card: through the busiest host's network card, in its busier direction.
        inside: among the ranks of a host, where that is most.
        rounds: messages that a rank sends one after another.
    """

    sent: float = 0.0
    received: float = 0.0
    card: float = 0.0
    inside: float = 0.0
    rounds: int = 0

    def transfer(self, park: Park) -> float:
        """Seconds of the busiest link: max(card / network, inside / inside)."""
        return max(self.card / park.network, self.inside / park.inside)

    def latencies(self, park: Park) -> float:
        """Seconds that messages are on their way: rounds x latency of the longest way taken."""
        return self.rounds * (park.network_latency if self.card else park.inside_latency)


def ring_traffic(park: Park, placement: Placement, size: float) -> Traffic:
    """Of one grafting: in every lane M edges leave their rank, where M > 1, each with one donor.

    Args:
        park: the machines.
        placement: who is where.
        size: of a donor's row (`Columns`): all floating-point weights, batch statistics with them.
    """
    return _traffic(park, ((*pair, size) for pair in crossings(placement)), rounds=1)


def mean_traffic(park: Park, placement: Placement, size: float) -> Traffic:
    """Of one mean of all peers, exact: added in the peers' order, as one process does.

    Reduce-scatter, then all-gather, by pairwise exchange in every lane: a rank sends each other
    member the slice, 1/M, that this one adds up, of each of its peers, and then the slice that it
    has added up itself. With one peer a rank that is 2 (M - 1)/M of `size` each way.

    Args:
        park: the machines.
        placement: who is where.
        size: of all that is averaged of a peer.
    """
    members, peers = placement.blocks, placement.peers
    if members == 1:
        return Traffic()
    there: dict[tuple[int, int], int] = defaultdict(int)  # by host and lane: members,
    slices: dict[tuple[int, int], int] = defaultdict(
        int
    )  # and slices that they send to each other member
    for block in range(members):
        for lane in range(placement.ranks_per_peer):
            place = park.host_of(placement.rank(block, lane)), lane
            there[place] += 1
            slices[place] += len(placement.local(block)) + 1
    card: dict[tuple[int, str], int] = defaultdict(int)
    inside: dict[int, int] = defaultdict(int)
    for (host, lane), count in there.items():
        own = slices[host, lane]
        card[host, "out"] += own * (members - count)
        card[host, "in"] += (peers + members - own) * count
        inside[host] += own * (count - 1)
    part = size / members
    return Traffic(
        sent=part * (placement.most + 1) * (members - 1),
        received=part * (peers - placement.least + members - 1),
        card=part * max(card.values()),
        inside=part * max(inside.values()),
        rounds=2 * (members - 1),
    )


def gradient_traffic(park: Park, placement: Placement, size: float) -> Traffic:
    """Of one step: every block's ring all-reduce of its peers' gradients, in the ranks' order.

    A rank sends, and receives, 2 (R - 1)/R of `size` for each of its peers.

    Args:
        park: the machines.
        placement: who is where.
        size: of a peer's trainable weights.
    """
    wide = placement.ranks_per_peer
    if wide == 1:
        return Traffic()
    share = 2 * (wide - 1) / wide * size
    flows = (
        (
            placement.rank(block, lane),
            placement.rank(block, (lane + 1) % wide),
            share * len(placement.local(block)),
        )
        for block in range(placement.blocks)
        for lane in range(wide)
    )
    return _traffic(park, flows, rounds=2 * (wide - 1) * placement.most)


_REQUESTS = 5  # of a member, where nobody waits


def gather_seconds(park: Park, placement: Placement, value: float) -> float:
    """Of one `gather_small`: every member posts a value and reads all M, through one store.

    5 x 2 latency + 5 W answering + W K value / rate: a member's requests, a round trip each (it
    posts, asks whether all is decided, whether all have come, decides, reads all values); all
    ranks' requests, which the store on host 0 answers one after another; the bytes that it sends.
    The longest way there is counts for all.

    Args:
        park: the machines.
        placement: who is where.
        value: bytes that a member posts for each of its K/M peers.
    """
    members, ranks = placement.blocks, placement.ranks
    if members == 1:
        return 0.0
    requests = _REQUESTS
    rate = park.network if park.hosts > 1 else park.inside
    return (
        2 * requests * park.latency
        + ranks * requests * park.answering
        + ranks * placement.peers * value / rate
    )


@dataclass(frozen=True)
class Mixing:
    """What one mixing of all peers takes.

    Attributes:
        traffic: what travels.
        copies: seconds to copy what a rank sends from its device, and what it receives to it.
        link: seconds of the busiest link.
        latencies: seconds that messages are on their way.
        gathers: seconds of `gather_small`.
        mixing: seconds to count and blend a rank's peers.
    """

    traffic: Traffic
    copies: float
    link: float
    latencies: float
    gathers: float
    mixing: float

    @property
    def seconds(self) -> float:
        """All of it, one after another."""
        return self.copies + self.link + self.latencies + self.gathers + self.mixing


def grafting(park: Park, placement: Placement, size: float, groups: int) -> Mixing:
    """What one grafting takes.

    Three gathers: each peer's health, its information (8 bytes a group), its confirmation.

    Args:
        park: the machines.
        placement: who is where.
        size: see `ring_traffic`.
        groups: G, groups of the graft plan, which have a coefficient each.
    """
    return _mixing(park, placement, size, ring_traffic(park, placement, size), (8, 8 * groups, 8))


def averaging(park: Park, placement: Placement, size: float) -> Mixing:
    """What it takes to move all peers towards their mean, or onto it (PAPA, PAPA-all).

    Three gathers: each peer's health, how many rows a rank has, its confirmation.

    Args:
        park: the machines.
        placement: who is where.
        size: see `mean_traffic`.
    """
    return _mixing(park, placement, size, mean_traffic(park, placement, size), (8, 8, 8))


def training_seconds(placement: Placement, images: int, rate: float) -> float:
    """Of one epoch, on the ranks that have most peers, without any traffic.

    Args:
        placement: who is where.
        images: that every peer sees in an epoch.
        rate: images/s that a rank trains one peer on.
    """
    return placement.most * images / (placement.ranks_per_peer * rate)


@dataclass(frozen=True)
class Epoch:
    """What an epoch takes.

    Attributes:
        mixing: one mixing of all peers.
        mixings: how many there are; 0.2 for one every five epochs.
        steps: of every peer.
        gradients: seconds of one step's all-reduce of gradients.
        training: seconds of the steps themselves.
    """

    mixing: Mixing
    mixings: float
    steps: int
    gradients: float
    training: float

    @property
    def ring(self) -> float:
        """Seconds of all mixings."""
        return self.mixings * self.mixing.seconds

    @property
    def reducing(self) -> float:
        """Seconds of all steps' gradients."""
        return self.steps * self.gradients

    @property
    def seconds(self) -> float:
        """Of the epoch, without its validation."""
        return self.training + self.reducing + self.ring


def predicted_exchange(members: int, size: float, *, bandwidth: float, latency: float) -> float:
    """Seconds of one `exchange` among ranks of one host, to be held against a measurement.

    Every member sends one row to the next: M size / bandwidth + latency.

    Args:
        members: M, one peer each.
        size: of a row, bytes.
        bandwidth: bytes/s that the host's ranks moved together, each byte counted once, when that
            was measured: two ranks that exchange n bytes with each other in t seconds, 2 n / t.
        latency: seconds of a message of no bytes.

    Raises:
        UserError: an argument is out of range.

    Example:
        >>> predicted_exchange(4, 1e6, bandwidth=2e9, latency=0.0)
        0.002
    """
    park = Park(1, members, bandwidth, bandwidth, latency, latency)
    traffic = ring_traffic(park, Placement(members, members), size)
    return traffic.transfer(park) + traffic.latencies(park)


def _mixing(
    park: Park, placement: Placement, size: float, traffic: Traffic, values: tuple[float, ...]
) -> Mixing:
    return Mixing(
        traffic,
        copies=_at(park.copying, traffic.sent + traffic.received),
        link=traffic.transfer(park),
        latencies=traffic.latencies(park),
        gathers=sum(gather_seconds(park, placement, value) for value in values),
        mixing=_at(park.mixing, placement.most * size),
    )


def _at(rate: float | None, size: float) -> float:
    """Seconds of some bytes."""
    return 0.0 if rate is None else size / rate


def _traffic(park: Park, flows: Iterable[tuple[int, int, float]], rounds: int) -> Traffic:
    """What travels where ranks send to ranks: sender, target, bytes."""
    loads: dict[str, dict[int, float]] = {
        name: defaultdict(float) for name in ("sent", "received", "out", "in", "inside")
    }
    for sender, target, size in flows:
        loads["sent"][sender] += size
        loads["received"][target] += size
        source, goal = park.host_of(sender), park.host_of(target)
        if source == goal:
            loads["inside"][source] += size
        else:
            loads["out"][source] += size
            loads["in"][goal] += size
    most = {name: max(own.values(), default=0.0) for name, own in loads.items()}
    card = max(most["out"], most["in"])
    return Traffic(
        most["sent"], most["received"], card, most["inside"], rounds if most["sent"] else 0
    )
