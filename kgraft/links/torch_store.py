"""torch.distributed below a link: its TCPStore, and process groups that nobody else sees.

A group is built directly and registered nowhere, so that `torch.distributed.is_initialized()`
stays false: from Keras 3.16 on the trainer would otherwise average gradients and metrics over it.
"""

import os
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from kgraft.errors import LostPeerError, UserError, line_of
from kgraft.links.carrier import Exchange, Together, TornError
from kgraft.links.store import DirectoryStore, Store

_STORES: dict[tuple[str, int], Any] = {}  # by host and port
_LINGER = 5.0  # seconds
_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class TorchStore:
    """A `torch.distributed` store; torchrun's own where it has one.

    Args:
        store: a store of torch's.
        where: what it is called.
        is_held: whether it ends with this process.
    """

    def __init__(self, store: Any, where: str, *, is_held: bool = False) -> None:
        self.store, self.where, self._is_held = store, where, is_held

    @classmethod
    def of_environment(cls, timeout: float, attempt: str) -> "TorchStore":
        """The one that torchrun's environment variables name; rank 0 makes it, or torchrun's agent.

        Args:
            timeout: seconds to wait until it is there.
            attempt: keeps the keys of one start of all ranks apart from those of another.

        Raises:
            UserError: variables are missing, or nobody answers.
        """
        missing = [name for name in _NEEDED if not os.environ.get(name)]
        if missing:
            raise UserError(
                f"a link needs the environment variables of torchrun, {', '.join(missing)} is not "
                "set: start with torchrun --nproc-per-node N, or give RingLink(directory=...)."
            )
        host, told = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
        if not told.isdecimal() or not 0 < (port := int(told)) < 1 << 16:
            raise UserError(f"MASTER_PORT is {told!r} in the environment: expected a port.")
        hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        first = os.environ["RANK"] == "0" and not hosted
        if (host, port) not in _STORES:  # several rings of one process meet in one store
            try:
                _STORES[host, port] = distributed.TCPStore(
                    host, port, None, first, timedelta(seconds=timeout), wait_for_workers=False
                )
            except RuntimeError as error:
                reason = line_of(error)
                raise UserError(
                    f"no store answers at {host}:{port} ({reason}): is rank 0 up?"
                ) from None
        store = _STORES[host, port]
        who = "torchrun" if hosted else "rank 0"
        prefixed = distributed.PrefixStore(f"kgraft/{attempt}", store)
        return cls(prefixed, f"store of {who}, {host}:{port}", is_held=first)

    def set(self, key: str, value: bytes) -> None:
        """See `Store`."""
        self._asked(self.store.set, key, value)

    def first(self, key: str, value: str) -> str:
        """See `Store`."""
        found: bytes = self._asked(self.store.compare_set, key, "", value)
        return found.decode()

    def get(self, key: str) -> bytes | None:
        """See `Store`."""
        return self._asked(self.store.get, key) if self.has([key]) else None

    def get_all(self, keys: Sequence[str]) -> list[bytes]:
        """See `Store`."""
        return [bytes(value) for value in self._asked(self.store.multi_get, list(keys))]

    def has(self, keys: Sequence[str]) -> bool:
        """See `Store`."""
        return bool(self._asked(self.store.check, list(keys)))

    def delete(self, key: str) -> None:
        """See `Store`."""
        self._asked(self.store.delete_key, key)

    def leave(self, all_ended: Callable[[], bool]) -> None:
        """See `Store`: who holds it is the last to go, some seconds later at most."""
        until = time.monotonic() + _LINGER
        while self._is_held and time.monotonic() < until and not all_ended():
            time.sleep(0.01)

    def _asked(self, ask: Callable[..., Any], *what: Any) -> Any:
        try:
            return ask(*what)
        except RuntimeError as error:
            reason = line_of(error)
            raise LostPeerError(
                f"the {self.where}, does not answer any more ({reason}): is the process that holds "
                "it alive?"
            ) from None


class GlooCarrier:
    """Rows over gloo, from host memory to host memory, one connection a pair of ranks.

    Args:
        store: where the ranks find each other.
    """

    def __init__(self, store: TorchStore) -> None:
        self._store = store.store.clone()  # who waits in one keeps others, heartbeats, waiting
        self._group: Any = None
        self._of: Together | None = None

    def exchange(self, own: Exchange) -> None:
        """See `Carrier`; a group is made whenever the members have changed."""
        limit = timedelta(seconds=own.wait.limit)
        try:
            group = self._group_of(own.together, limit)
            at = {member: place for place, member in enumerate(own.together.members)}
            works = [
                *(group.recv([torch.from_numpy(row)], at[r], 0) for r, row in own.wanted.items()),
                *(group.send([torch.from_numpy(row)], at[r], 0) for r, row in own.sent.items()),
            ]
            for work in works:
                work.wait(limit)
        except RuntimeError as error:
            self._group = self._of = None
            raise TornError(line_of(error)) from None

    def _group_of(self, together: Together, limit: timedelta) -> Any:
        if self._of != together:
            store = distributed.PrefixStore(f"group/{together.since}", self._store)
            place = together.members.index(together.rank)
            self._group = distributed.ProcessGroupGloo(store, place, len(together.members), limit)
            self._of = together
        return self._group


class ReplicaGroup:
    """Sums tensors over the replicas of a peer: over gloo on the CPU, over NCCL on GPUs.

    Args:
        store: where the replicas find each other, a `torch.distributed` store.
        number: of this replica, counted from 0.
        count: how many there are.
        timeout: seconds that a sum may take.
    """

    def __init__(self, store: Any, number: int, count: int, timeout: float) -> None:
        self._store, self._number, self._count = store, number, count
        self._limit = timedelta(seconds=timeout)
        self._groups: dict[str, Any] = {}

    @classmethod
    def over(
        cls, store: Store, name: str, number: int, count: int, timeout: float
    ) -> "ReplicaGroup":
        """One whose replicas meet where a ring does.

        Args:
            store: the ring's.
            name: keeps it apart from others.
            number: see the class.
            count: see the class.
            timeout: see the class.

        Raises:
            UserError: it is a store that torch knows nothing of.
        """
        if isinstance(store, TorchStore):
            return cls(distributed.PrefixStore(name, store.store.clone()), number, count, timeout)
        if not isinstance(store, DirectoryStore):
            raise UserError(
                f"ranks_per_peer = {count} over the {store.where}: replicas meet in torchrun's "
                "store or in a directory, start with torchrun or give RingLink(directory=...)."
            )
        file = distributed.FileStore(str(store.path / name.replace("/", "+")), count)
        return cls(file, number, count, timeout)

    def add(self, flat: torch.Tensor) -> None:
        """Replace a flat tensor by its sum over all replicas, to the same bits in each.

        Raises:
            RuntimeError: a replica does not answer.
        """
        kind = flat.device.type
        if kind not in self._groups:
            store = distributed.PrefixStore(kind, self._store)
            made = distributed.ProcessGroupNCCL if kind == "cuda" else distributed.ProcessGroupGloo
            self._groups[kind] = made(store, self._number, self._count, self._limit)
        self._groups[kind].allreduce([flat]).wait(self._limit)

    def close(self) -> None:
        """Let go of all connections: gloo's threads end with them."""
        self._groups.clear()
