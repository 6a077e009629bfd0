"""A run in several processes: which peers each has, where they meet, and in which directory."""

import os
from pathlib import Path

from kgraft.errors import UserError
from kgraft.links.link import Here, Link
from kgraft.links.ring_link import RingLink
from kgraft.runs.config import Config


def launched() -> int:
    """How many processes torchrun, or another launcher, has started; 1 without one.

    Raises:
        UserError: the environment says what cannot be.
    """
    told = os.environ.get("WORLD_SIZE", "1")
    if not told.isdecimal() or not int(told):
        raise UserError(f"WORLD_SIZE is {told!r} in the environment: expected a number of ranks.")
    return int(told)


def link_of(config: Config) -> Link:
    """The link of this process, joined, with its share of the peers.

    Args:
        config: the settings.

    Raises:
        UserError: the peers cannot be shared out, or the ranks do not find each other.
        LostPeerError: not all of them come.
    """
    count, ranks = config.peers.count, launched()
    if ranks == 1:
        if config.ring.ranks_per_peer > 1:
            raise UserError(
                f"ring.ranks_per_peer is {config.ring.ranks_per_peer}, and there is one process: "
                "start with torchrun --nproc-per-node N -m kgraft_cli fit ..."
            )
        here = Here()
        here.join(count)
        return here
    if count < ranks:
        raise UserError(
            f"{ranks} ranks for {count} peer{'s' if count > 1 else ''}: expected no more ranks "
            "than peers, times --ranks-per-peer."
        )
    link = RingLink(
        config.ring.directory,
        timeout=config.ring.timeout,
        on_lost_peer=config.ring.on_lost_peer,  # type: ignore[arg-type]
    )
    link.join(len(share_of(count, link.rank, ranks)))
    return link


def share_of(count: int, rank: int, ranks: int) -> range:
    """The peers of a rank, counted from 0: neighbours, as many as others have, or one more.

    Args:
        count: K.
        rank: which.
        ranks: how many.

    Example:
        >>> [share_of(5, rank, 2) for rank in range(2)]
        [range(0, 3), range(3, 5)]
    """
    each, more = divmod(count, ranks)
    start = rank * each + min(rank, more)
    return range(start, start + each + (rank < more))


def one_directory(link: Link, path: Path) -> Path:
    """The first rank's directory, for all: a name that nobody gave has the time in it.

    Args:
        link: joined.
        path: this rank's.
    """
    return Path(link.share(str(path)))
