"""RePr: drop the filters that overlap most, train the rest, bring them back orthogonal."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import keras
import numpy as np

from kgraft.errors import UserError
from kgraft.grafting.arrays import host_copy
from kgraft.grafting.chains import Chain, chains
from kgraft.grafting.mixer import Mixer, State
from kgraft.grafting.peers import Moment, Peers, plan_of
from kgraft.grafting.plan import GraftPlan
from kgraft.settings import setting

_log = logging.getLogger("kgraft")

_Dropped = list[dict[str, Any]]  # of each convolution its "chain", "filters", and them "before"


@dataclass(frozen=True)
class RePr(Mixer):
    """Alternately trains a network whole and without its most redundant filters.

    After S1 epochs the filters that overlap most with others of their layer, ranked over all
    layers, are dropped: their weights and their batch normalisation are held at 0. After S2 more
    epochs they come back, orthogonal to what they were and to the filters that stayed, with fresh
    batch normalisation. N times in all; then the network trains on whole. The first convolution and
    frozen layers are left alone, and no layer loses its last filter. Where training ends earlier,
    what is dropped then comes back; a training that goes on from there drops it again.

    When: for a single network with redundant filters; each peer by itself. Cost: a pass over the
    batch normalisation of dropped filters after every step of S2; dropped filters are still
    computed.

    Args:
        full_epochs: S1, epochs with all filters.
        pruned_epochs: S2, epochs without the dropped ones.
        cycles: N.
        share: p, share of all filters that is dropped, in (0, 1).
        seed: directions of the filters that come back follow from it.
        evaluate: see `EpochMixer`.

    Raises:
        UserError: an argument is out of range.

    Source: Prakash et al., "RePr: Improved Training of Convolutional Filters", CVPR 2019, eq. 1-2
    and algorithm 1 (S1 = 20, S2 = 10, N = 3, p = 30 %).
    """

    name = "repr"
    between_steps = True  # dropped filters are held after every step
    full_epochs: int = setting(20, low=1)
    pruned_epochs: int = setting(10, low=1)
    cycles: int = setting(3, low=1)
    share: float = setting(0.3, above=0, below=1)
    seed: int = setting(0, low=0, key=False)
    evaluate: Literal["after", "before"] = setting("after", kw_only=True)

    def check_epochs(self, epochs: int) -> None:
        """See `Mixer`."""
        needed = self.cycles * (self.full_epochs + self.pruned_epochs)
        if epochs < needed:
            raise UserError(
                f"method repr: {self.cycles} cycles of {self.full_epochs} + {self.pruned_epochs} "
                f"epochs need {needed}, run.epochs is {epochs}: set repr.full_epochs, "
                "repr.pruned_epochs or repr.cycles."
            )

    def plan(self, models: Sequence[keras.Model]) -> GraftPlan:
        """See `Mixer`; refuses a model with nothing to drop."""
        plan = plan_of(models)
        if not _prunable(models[0], plan):
            raise UserError(
                f"model {models[0].name!r} has no second convolution that trains and is followed "
                "by batch normalisation: there is nothing that RePr could drop."
            )
        return plan

    def due(self, moment: Moment) -> bool:
        """See `Mixer`: after every step, and when an epoch ends."""
        return True

    def init(self, peers: Peers, last: State | None = None) -> State:
        """See `Mixer`: takes up filters that an unfinished training has left silent.

        What they were before is unknown if another process dropped them: they will come back
        orthogonal to those that stayed. Those that came back only because a training ended are
        dropped again, unless the model has other weights since.
        """
        nothing: list[_Dropped] = [[] for _ in peers.models]
        known = last["dropped"] if last else nothing
        ended = last.get("ended", nothing) if last else nothing
        dropped = []
        for model, before, back in zip(peers.models, known, ended, strict=True):
            found = _still_silent(model, peers.plan, before)
            dropped.append(found or _still_back(model, back))
            if found:
                _log.warning(
                    "%d filters of %r are silent, as a RePr that was broken off leaves them: they "
                    "come back with the next epoch that trains all filters.",
                    sum(int(own["filters"].sum()) for own in found),
                    model.name,
                )
        state = {"dropped": dropped}
        _hold(peers, state)
        return state

    def apply(self, peers: Peers, state: State, moment: Moment) -> tuple[State, None]:
        """See `Mixer`: holds what is dropped at 0; drops and restores at the ends of epochs."""
        if not moment.ends_epoch:
            _hold(peers, state)
            return state, None
        cycle, place = divmod(moment.epoch + 1, self.full_epochs + self.pruned_epochs)
        if place < self.full_epochs or cycle >= self.cycles:
            state = self._restore(peers, state, moment.epoch)
        elif not any(state["dropped"]):
            state = self._drop(peers)
        return state, None

    def finish(self, peers: Peers, state: State) -> State:
        """See `Mixer`: brings back what is still dropped."""
        end = self.cycles * (self.full_epochs + self.pruned_epochs)
        back = self._restore(peers, state, end)
        ended = [
            [{**own, "after": _rows(model, own)} for own in dropped]
            for model, dropped in zip(peers.models, state["dropped"], strict=True)
        ]
        return {**back, "ended": ended}

    def _drop(self, peers: Peers) -> State:
        weights, dropped = peers.alone().population(), []
        for k, model in enumerate(peers.models):
            links = _prunable(model, peers.plan)
            kernels = weights.weights(k, [chain.kernel for chain in links])
            filters = [_filters(kernel) for kernel in kernels]
            masks = most_overlapping([overlap(rows) for rows in filters], self.share)
            dropped.append(
                [
                    _dropped(chain, mask, rows[mask])
                    for chain, mask, rows in zip(links, masks, filters, strict=True)
                    if mask.any()
                ]
            )
        state = {"dropped": dropped}
        _hold(peers, state)
        return state

    def _restore(self, peers: Peers, state: State, epoch: int) -> State:
        """Bring back what is dropped; directions follow from the seed, the epoch and the peer."""
        if not any(state["dropped"]):
            return state
        weights = peers.alone().population()  # in other processes it may be nobody's turn
        for k, own in enumerate(state["dropped"]):
            random = np.random.default_rng([self.seed, epoch, peers.places[k]])
            for entry in own:
                chain, mask = Chain(**entry["chain"]), entry["filters"]
                kernel = host_copy(weights.weights(k, [chain.kernel])[0])
                rows = _filters(kernel)
                kernel[..., mask] = (
                    orthogonal_filters(rows[~mask], entry["before"], random)
                    .T.reshape(*kernel.shape[:-1], -1)
                    .astype(kernel.dtype)
                )
                weights.replace(k, chain.kernel, kernel)
                fresh = {chain.scale: 1.0, chain.statistics[0]: 0.0, chain.statistics[1]: 1.0}
                for index in chain.vectors:
                    vector = host_copy(weights.weights(k, [index])[0])
                    vector[mask] = fresh.get(index, 0.0)
                    weights.replace(k, index, vector)
        weights.commit()
        return {"dropped": [[] for _ in peers.models]}


def overlap(filters: np.ndarray) -> np.ndarray:
    """How much each filter of a layer points where others do (inter-filter orthogonality).

    O_f = (1 / J) sum_j |W W^T - I|_fj, with W the J filters at unit length.

    Args:
        filters: shape `(J, weights of a filter)`.

    Returns:
        Shape `(J,)`; 0 for a filter that is orthogonal to all others.

    Example:
        >>> overlap(np.array([[2.0, 0.0], [0.0, 1.0], [0.0, -3.0]])).round(4).tolist()
        [0.0, 0.3333, 0.3333]

    Source: RePr, eq. 1 and 2.
    """
    norms = np.linalg.norm(filters, axis=1, keepdims=True)
    unit = filters / np.where(norms > 0, norms, 1.0)
    off = np.abs(unit @ unit.T)
    np.fill_diagonal(off, 0.0)
    return off.sum(axis=1) / len(filters)


def most_overlapping(scores: Sequence[np.ndarray], share: float) -> list[np.ndarray]:
    """Which filters to drop: those with the highest scores over all layers.

    Args:
        scores: each layer's `overlap`.
        share: of all filters, in (0, 1).

    Returns:
        For each layer a mask, True for a filter to drop; at least one filter a layer stays.
    """
    count = round(share * sum(map(len, scores)))
    masks = [np.zeros(len(own), bool) for own in scores]
    ranked = sorted(
        ((score, layer, f) for layer, own in enumerate(scores) for f, score in enumerate(own)),
        key=lambda entry: (-entry[0], entry[1], entry[2]),
    )
    for _, layer, f in ranked:
        if count and masks[layer].sum() < len(masks[layer]) - 1:
            masks[layer][f] = True
            count -= 1
    return masks


def orthogonal_filters(
    kept: np.ndarray, dropped: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """New filters, orthogonal to each other, to those that stayed and to what was dropped.

    Where a layer has more filters than a filter has weights there is no such direction: then they
    take the directions that the others use least.

    Args:
        kept: filters that stayed, shape `(m, d)`.
        dropped: filters that were dropped, shape `(n, d)`, n at most d or repeated beyond.
        random: where free directions are drawn from.

    Returns:
        Shape `(n, d)`, each as long as the kept ones are on average.
    """
    n, d = dropped.shape
    used = np.concatenate([kept, dropped])
    _, sizes, directions = np.linalg.svd(used, full_matrices=True)
    strengths = np.concatenate([sizes, np.zeros(d - len(sizes))])
    free = directions[strengths <= 1e-6 * max(strengths.max(), 1e-30)]
    if len(free) >= n:
        turned, _ = np.linalg.qr(random.normal(size=(len(free), n)))
        rows = turned.T @ free
    else:
        rows = directions[::-1][np.arange(n) % d]
    return rows * np.linalg.norm(kept, axis=1).mean()


def _prunable(model: keras.Model, plan: GraftPlan) -> list[Chain]:
    """What may lose filters: all but the first of the model, where they train."""
    return [
        chain
        for chain in chains(model)[1:]
        if not chain.depthwise and not {chain.kernel, *chain.vectors} & plan.frozen
    ]


def _still_silent(model: keras.Model, plan: GraftPlan, known: _Dropped) -> _Dropped:
    """Filters whose kernel, scale, shift and bias are exactly 0, with what is known of them."""
    before = {own["chain"]["kernel"]: (own["filters"], own["before"]) for own in known}
    found: _Dropped = []
    for chain in _prunable(model, plan):
        kernel, *vectors = (host_copy(model.weights[index].value) for index in _held(chain))
        filters = _filters(kernel)
        silent = ~filters.any(axis=1) & np.all([vector == 0 for vector in vectors], axis=0)
        if silent.any():
            mask, rows = before.get(chain.kernel, (silent, filters[silent]))
            same = np.array_equal(mask, silent)
            found.append(_dropped(chain, silent, rows if same else filters[silent]))
    return found


def _still_back(model: keras.Model, ended: _Dropped) -> _Dropped:
    """What came back at a training's end, to be dropped again where nothing has changed since."""
    if not all(np.array_equal(_rows(model, own), own["after"]) for own in ended):
        return []
    return [{name: own[name] for name in ("chain", "filters", "before")} for own in ended]


def _rows(model: keras.Model, own: dict[str, Any]) -> np.ndarray:
    """A convolution's filters that were dropped, as they are now."""
    kernel = model.weights[own["chain"]["kernel"]]
    return _filters(host_copy(kernel.value))[own["filters"]]


def _held(chain: Chain) -> list[int]:
    """Indices of the weights in which a dropped filter is 0, the kernel first."""
    indices = (chain.kernel, chain.scale, chain.bias, chain.shift)
    return [index for index in indices if index is not None]


def _filters(kernel: Any) -> np.ndarray:
    host = host_copy(kernel).astype(np.float64)
    return host.reshape(-1, host.shape[-1]).T


def _dropped(chain: Chain, filters: np.ndarray, before: np.ndarray) -> dict[str, Any]:
    """What is known of a convolution: which filters are dropped, and what they were."""
    return {"chain": asdict(chain), "filters": filters, "before": before}


def _hold(peers: Peers, state: State) -> None:
    """Put what is dropped to 0."""
    for model, own in zip(peers.models, state["dropped"], strict=True):
        weights = model.weights if own else []
        for entry in own:
            stays = keras.ops.convert_to_tensor(~entry["filters"])
            for index in _held(Chain(**entry["chain"])):
                value = keras.ops.convert_to_tensor(weights[index].value)
                weights[index].assign(keras.ops.where(stays, value, keras.ops.zeros_like(value)))
