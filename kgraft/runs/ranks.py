"""A run in several processes: which peers each has, where they meet, and in which directory."""

import json
import logging
import os
from dataclasses import replace
from pathlib import Path

from kgraft.errors import UserError, kind_and_line_of
from kgraft.links.link import Here, Link
from kgraft.links.ring_link import RingLink
from kgraft.runs.config import Config, Ring
from kgraft.runs.directory import check_free, check_no_file

_log = logging.getLogger("kgraft")


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
        if told := sorted(key for key in config.given if key.startswith("ring.")):
            _log.warning(
                "%s: no part in a run of one process: RANK and WORLD_SIZE say that there are "
                "several, as torchrun sets them.",
                ", ".join(told),
            )
        here = Here()
        here.join(count)
        return here
    each = config.ring.ranks_per_peer
    if ranks % each or ranks > count * each:
        raise UserError(
            f"{ranks} ranks for {count} peer{'s' if count > 1 else ''} with {each} rank"
            f"{'s' if each > 1 else ''} a peer: expected {count * each} at most, and a multiple of "
            f"{each}. Give more --peers, other --ranks-per-peer, or torchrun fewer ranks."
        )
    link = RingLink(
        config.ring.directory,
        timeout=config.ring.timeout,
        on_lost_peer=config.ring.on_lost_peer,  # type: ignore[arg-type]
        ranks_per_peer=each,
    )
    link.join(len(link.places(count)))
    try:
        _check_settings(link, config)
    except UserError as error:
        link.end(kind_and_line_of(error))
        raise
    return link


def _check_settings(link: RingLink, config: Config) -> None:
    """Refuse a rank whose run is another one than that of the rank that came first.

    Said in the store, so that one that is started again asks nobody. What a run fills in by itself
    is there in a run that goes on, and not in one that begins.
    """
    own = wherever(config).told()
    del own["data.directory"]  # a host may have a copy
    for ring in (link, link.block):
        if isinstance(ring, RingLink):
            first = json.loads(ring.store.first(f"{ring.start}/settings", json.dumps(own)))
            for key in sorted(first.keys() & own.keys()):
                if None not in (first[key], own[key]) and first[key] != own[key]:
                    raise UserError(
                        f"{key} is {own[key]} here, and {first[key]} on the rank that came first: "
                        "all ranks train one run, start them with one command."
                    )


def wherever(config: Config) -> Config:
    """Settings in which how the ranks meet is as if nobody had set it: the results are the same.

    Args:
        config: a run's.
    """
    return replace(config, ring=Ring(ranks_per_peer=config.ring.ranks_per_peer))


def directory_of(link: Link, path: Path, *, named: bool) -> tuple[Path, bool]:
    """The directory of a run, the same for all, and whether the run goes on there.

    Ranks that are started again go on, all (torchrun's restarts) or one.

    Args:
        link: joined.
        path: this rank's; where nobody has named it, the time is in it.
        named: whether somebody has.

    Raises:
        UserError: a run lives there that does not go on.
    """
    again = link.restarted or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    if not named:
        path = Path(_first(link, path) if isinstance(link, RingLink) else path)
    goes_on = again and (path / "run.toml").is_file() and not (path / "summary.json").is_file()
    if link.writes and not goes_on:
        check_free(path) if named else check_no_file(path)
    return path, goes_on


def _first(link: RingLink, path: Path) -> str:
    """The directory that the first start has chosen, which torchrun's agent outlives."""
    from kgraft.links.torch_store import TorchStore  # torch, whatever the backend is

    if not isinstance(link.store, TorchStore):
        return str(link.share(str(path)))
    return TorchStore.of_environment(link.timeout, "run").first("directory", str(path))
