"""Same process, on the CPU: the weights of K peers as one NumPy matrix, a row a peer."""

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from kgraft.engines.backends import BACKEND
from kgraft.links.columns import Columns, ids, is_float

_FLOATS = ("float32", "float64")
_BLOCK = 1 << 16  # columns that a mixer sees at once


class HostMatrix:
    """All floating-point weights of K peers, copied to the host and back in a few calls.

    A loop over a backend's weights costs tens of microseconds a weight in Python and dispatch,
    many times what the arithmetic costs. The matrix' memory stays for the next time.

    Attributes:
        values: the weights that `read` found, shape `(K, number of weights)`, to be changed.
        columns: for each index of `model.weights` where it lies in a row; None for a weight that
            is not floating-point.
    """

    def __init__(self, peers: Sequence[Sequence[Any]]) -> None:
        self._peers = peers
        self._layout = Columns(peers[0])
        self.columns = self._layout.of
        floats = [[weight for weight in peer if is_float(weight)] for peer in peers]
        self.values: NDArray[Any] = np.empty((len(peers), self._layout.size), floats[0][0].dtype)
        self._transfer = BACKEND.transfer(floats)

    @classmethod
    def of(cls, models: Sequence[Any]) -> "HostMatrix | None":
        """The matrix of some models, the same one while they have the same weights.

        Args:
            models: what has `weights` of equal shapes, built models usually.

        Returns:
            None where the weights are on an accelerator, or not all float32 or all float64.
        """
        peers = [model.weights for model in models]
        known = _KNOWN.get(models[0])
        moved = not BACKEND.is_on_host(peers[0][0].value)
        if known is None or moved or ids(known._peers) != ids(peers):
            dtypes = {weight.dtype for peer in peers for weight in peer if is_float(weight)}
            elsewhere = not all(BACKEND.is_on_host(w.value) for peer in peers for w in peer)
            if elsewhere or len(dtypes) != 1 or not dtypes <= set(_FLOATS):
                return None
            known = _KNOWN[models[0]] = cls(peers)
        return known

    def read(self) -> NDArray[Any]:
        """`values` as the weights are now."""
        self._transfer.read(self.values)
        return self.values

    def write(self) -> None:
        """Give the peers the weights that `values` holds."""
        self._transfer.write(self.values)

    def runs(self, members: Sequence[int]) -> list[slice]:
        """Columns of some weights, neighbours joined, in blocks that stay in the cache.

        Args:
            members: ascending indices of `model.weights`.
        """
        return self._layout.runs(members, _BLOCK)


_KNOWN: WeakKeyDictionary[Any, HostMatrix] = WeakKeyDictionary()
