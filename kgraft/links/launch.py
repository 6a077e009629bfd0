"""What launched a process says: which rank it is, and where the others are to be met."""

import contextlib
import os
import sys
import weakref
from typing import Any

from kgraft.errors import UserError, kind_and_line_of, told
from kgraft.links.carrier import Carrier, StoreCarrier
from kgraft.links.roll import PATIENCE
from kgraft.links.store import DirectoryStore, Store
from kgraft.settings import argument


def store_of(directory: str | os.PathLike[str] | None, timeout: float) -> Store:
    """What the ranks of a ring agree by.

    Args:
        directory: a directory that all reach; None for what the launcher has.
        timeout: seconds after which one is lost.
    """
    if directory is not None:
        if not isinstance(directory, str | os.PathLike) or not str(directory):
            raise UserError(f"directory is {told(directory)}: expected a directory's name.")
        return DirectoryStore(directory)
    if (found := _of_jax()) is not None:
        return found
    from kgraft.links.torch_store import TorchStore

    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return TorchStore.of_environment(timeout * PATIENCE, attempt)


def carrier_of(store: Store) -> Carrier:
    """What weights travel by, where the ranks agree by a store."""
    if "torch" in sys.modules:
        from kgraft.links.torch_store import GlooCarrier, TorchStore

        if isinstance(store, TorchStore):
            return GlooCarrier(store)
    return StoreCarrier(store)


def _of_jax() -> Any:
    """The store of `jax.distributed`, None where it is not initialised."""
    if "jax" not in sys.modules:
        return None
    from kgraft.links.jax_store import JaxStore

    return JaxStore() if JaxStore.is_there() else None


def place_of(rank: int | None, ranks: int | None, each: int) -> tuple[int, int]:
    """Which rank of how many a process is.

    Args:
        rank: as given; the launcher's where it is None, as `ranks`.
        ranks: how many.
        each: how many a peer has.

    Raises:
        UserError: nobody knows, or they cannot be.
    """
    found = at_hand() if rank is None or ranks is None else (rank, ranks)
    rank = found[0] if rank is None else argument("rank", rank, int, low=0)
    ranks = found[1] if ranks is None else argument("ranks", ranks, int, low=1)
    if rank >= ranks:
        raise UserError(f"rank is {rank} of {ranks} ranks: they are counted from 0.")
    if ranks % each:
        raise UserError(
            f"{ranks} ranks are no multiple of ranks_per_peer = {each}: every peer needs as many."
        )
    return rank, ranks


def at_hand() -> tuple[int, int]:
    """This process' rank and how many there are, as its launcher says."""
    jax = _of_jax()
    if jax is not None:
        return jax.rank(), jax.ranks()
    with contextlib.suppress(KeyError, ValueError):
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    raise UserError(
        "RingLink does not know which rank of how many this is: start with torchrun "
        "--nproc-per-node N, or give both rank= and ranks=."
    )


def torchrun_rank(rank: int) -> int:
    """What this process is called by its launcher: a ring may be one of several."""
    known = os.environ.get("RANK", "")
    return int(known) if known.isdecimal() else rank


def leave(link: "weakref.ref[Any]") -> None:
    """When the process ends, tell the others at once, and why.

    Args:
        link: a link that has joined, if it is still there.
    """
    found = link()
    if found is not None:
        error = vars(sys).get("last_value")
        found.end("" if error is None else kind_and_line_of(error))
