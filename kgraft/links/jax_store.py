"""jax.distributed below a link: the key-value store of its coordinator."""

from collections.abc import Sequence
from typing import Any

import jax

from kgraft.errors import LostPeerError


class JaxStore:
    """The store that all processes of `jax.distributed.initialize` share."""

    where = "coordinator of jax.distributed"

    def __init__(self) -> None:
        self._client: Any = jax._src.distributed.global_state.client  # has no public name

    @staticmethod
    def is_there() -> bool:
        """Whether `jax.distributed` is initialised in this process."""
        return jax._src.distributed.global_state.client is not None

    @staticmethod
    def rank() -> int:
        """Which process this is."""
        return int(jax.process_index())

    @staticmethod
    def ranks() -> int:
        """How many there are."""
        return int(jax.process_count())

    def set(self, key: str, value: bytes) -> None:
        """See `Store`."""
        self._client.key_value_set_bytes(_key(key), value, allow_overwrite=True)

    def first(self, key: str, value: str) -> str:
        """See `Store`."""
        try:
            self._client.key_value_set_bytes(_key(key), value.encode(), allow_overwrite=False)
        except jax.errors.JaxRuntimeError as error:
            if "ALREADY_EXISTS" not in str(error):
                raise LostPeerError(f"the {self.where} does not answer any more.") from error
        found = self.get(key)
        return "" if found is None else found.decode()

    def get(self, key: str) -> bytes | None:
        """See `Store`."""
        try:
            return bytes(self._client.key_value_try_get_bytes(_key(key)))
        except jax.errors.JaxRuntimeError as error:
            if "NOT_FOUND" in str(error):
                return None
            raise LostPeerError(f"the {self.where} does not answer any more.") from error

    def get_all(self, keys: Sequence[str]) -> list[bytes]:
        """See `Store`."""
        return [value for key in keys if (value := self.get(key)) is not None]

    def has(self, keys: Sequence[str]) -> bool:
        """See `Store`."""
        return all(self.get(key) is not None for key in keys)

    def delete(self, key: str) -> None:
        """See `Store`."""
        self._client.key_value_delete(_key(key))


def _key(key: str) -> str:
    """A key under kgraft's own name; to delete one is to delete all below it, so none is below."""
    return "kgraft/" + key.replace("/", "+")
