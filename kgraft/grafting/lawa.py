"""Latest weight averaging: a network ends as the mean of its last epochs."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kgraft.errors import UserError
from kgraft.grafting.mixer import Independent, State
from kgraft.grafting.peers import Moment, Peers
from kgraft.settings import setting

_log = logging.getLogger("kgraft")


@dataclass(frozen=True)
class Lawa(Independent):
    """Each network ends as the mean of its weights at the ends of its last epochs.

    When: where the learning rate does not fall to nothing by itself. Cost: a copy of the weights on
    the host for every epoch that counts; no step is longer. The validations of single epochs are of
    the network in training; the mean takes its place when the training ends, its batch statistics
    are means too. A fit that goes on afterwards goes on from the last epoch's weights; where
    somebody has set others since, from these, and the epochs before do not count any more.

    Args:
        last: how many epochs count.

    Raises:
        UserError: `last` is below 1.

    Source: Kaddour, "Stop Wasting My Time!", arXiv 2209.14981 (LAWA); Izmailov et al., UAI 2018
    (SWA), there with batch statistics estimated anew.
    """

    name = "lawa"
    last: int = setting(5, low=1)

    def due(self, moment: Moment) -> bool:
        """See `Mixer`."""
        return moment.ends_epoch

    def init(self, peers: Peers, last: State | None = None) -> State:
        """See `Mixer`: back to the last epoch's weights, where a training has ended with means."""
        state = last or {"kept": [[] for _ in peers.models], "ended": []}
        kept = []
        ended = state["ended"] or [None] * len(peers.models)
        for k, model, epochs, mean in zip(
            peers.places, peers.models, state["kept"], ended, strict=True
        ):
            own = model.get_weights()
            if mean is not None and _equal(own, mean):
                model.set_weights(epochs[-1])
            elif epochs and not _equal(own, epochs[-1]):
                _log.info("lawa: peer %d begins with other weights than it ended with", k + 1)
                epochs = []
            kept.append(epochs)
        return {"kept": kept, "ended": []}

    def apply(self, peers: Peers, state: State, moment: Moment) -> tuple[State, None]:
        """See `Mixer`: keep the weights; nothing is moved."""
        kept = [
            [*epochs, model.get_weights()][-self.last :]
            for model, epochs in zip(peers.models, state["kept"], strict=True)
        ]
        return {**state, "kept": kept}, None

    def finish(self, peers: Peers, state: State) -> State:
        """See `Mixer`."""
        if not all(state["kept"]):
            return state
        ended = [mean_weights(epochs) for epochs in state["kept"]]
        for model, mean in zip(peers.models, ended, strict=True):
            model.set_weights(mean)
        return {**state, "ended": ended}


def _equal(these: Sequence[Any], those: Sequence[Any]) -> bool:
    """Whether weights are the same to the last bit, NaN included."""
    return len(these) == len(those) and all(
        np.array_equal(a, b, equal_nan=np.issubdtype(np.asarray(a).dtype, np.floating))
        for a, b in zip(these, those, strict=True)
    )


def mean_weights(weights: Sequence[Sequence[Any]]) -> list[Any]:
    """Mean of several networks' weights; of those that are not floating-point the first's.

    Args:
        weights: of each network, as from `get_weights`.

    Returns:
        As for `set_weights`.

    Raises:
        UserError: no network.

    Source: Wortsman et al., "Model soups", ICML 2022 (uniform soup).
    """
    if not weights:
        raise UserError("a soup needs at least one network.")
    return [
        np.mean([np.asarray(own, np.float64) for own in parts], axis=0).astype(parts[0].dtype)
        if np.issubdtype(parts[0].dtype, np.floating)
        else parts[0]
        for parts in zip(*weights, strict=True)
    ]
