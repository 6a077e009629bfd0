"""jax.distributed below a link: the key-value store of its coordinator.

What jax offers in public, `jax.experimental.multihost_utils`, are collectives of all processes and
all devices: nobody can ask without waiting for everybody, or go on without one that is gone. So
this is the one file that names the client itself.
"""

from collections.abc import Callable, Sequence
from typing import Any

from kgraft.errors import LostPeerError, line_of


class JaxStore:
    """The store that all processes of `jax.distributed.initialize` share."""

    where = "coordinator of jax.distributed"

    def __init__(self) -> None:
        self._client = _client()

    @staticmethod
    def is_there() -> bool:
        """Whether `jax.distributed` is initialised in this process."""
        return _client() is not None

    @staticmethod
    def rank() -> int:
        """Which process this is."""
        import jax

        return int(jax.process_index())

    @staticmethod
    def ranks() -> int:
        """How many there are."""
        import jax

        return int(jax.process_count())

    def set(self, key: str, value: bytes) -> None:
        """See `Store`."""
        self._asked(self._client.key_value_set_bytes, key, value, allow_overwrite=True)

    def first(self, key: str, value: str) -> str:
        """See `Store`."""
        setting, content = self._client.key_value_set_bytes, value.encode()
        self._asked(setting, key, content, unless="ALREADY_EXISTS", allow_overwrite=False)
        found = self.get(key)
        return "" if found is None else found.decode()

    def get(self, key: str) -> bytes | None:
        """See `Store`."""
        found = self._asked(self._client.key_value_try_get_bytes, key, unless="NOT_FOUND")
        return None if found is None else bytes(found)

    def get_all(self, keys: Sequence[str]) -> list[bytes]:
        """See `Store`."""
        return [value for key in keys if (value := self.get(key)) is not None]

    def has(self, keys: Sequence[str]) -> bool:
        """See `Store`."""
        return all(self.get(key) is not None for key in keys)

    def leave(self, all_ended: Callable[[], bool]) -> None:
        """See `Store`: the coordinator is jax' own."""

    def delete(self, key: str) -> None:
        """See `Store`."""
        self._asked(self._client.key_value_delete, key)

    def _asked(
        self, ask: Callable[..., Any], key: str, *what: Any, unless: str = "", **options: Any
    ) -> Any:
        """The coordinator's answer, None where it is the error `unless`.

        A key is below kgraft's own name, and none below another: to delete one is to delete those.
        """
        import jax

        try:
            return ask("kgraft/" + key.replace("/", "+"), *what, **options)
        except jax.errors.JaxRuntimeError as error:
            reason = line_of(error)
            if unless and unless in reason:
                return None
            raise LostPeerError(
                f"the {self.where} does not answer any more ({reason}): is process 0 alive?"
            ) from None


def _client() -> Any:
    """This process' end of the coordinator, which has no public name; None without one."""
    import jax

    return jax._src.distributed.global_state.client
