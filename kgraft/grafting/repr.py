"""RePr: drop the filters that overlap most, train the rest, bring them back orthogonal."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from weakref import WeakKeyDictionary

import keras
import numpy as np

from kgraft.errors import UserError
from kgraft.grafting.arrays import on_host
from kgraft.grafting.chains import Chain, chains
from kgraft.grafting.mixer import Mixer, plan_of
from kgraft.grafting.plan import GraftPlan
from kgraft.grafting.population import population
from kgraft.grafting.ring import GraftRecord
from kgraft.grafting.settings import check_count, check_share

_log = logging.getLogger("kgraft")

_Dropped = list[tuple[Chain, np.ndarray, np.ndarray]]  # which filters of it, what they were


@dataclass
class RePr(Mixer):
    """Alternately trains a network whole and without its most redundant filters.

    After S1 epochs the filters that overlap most with others of their layer, ranked over all
    layers, are dropped: their weights and their batch normalisation are held at 0. After S2 more
    epochs they come back, orthogonal to what they were and to the filters that stayed, with fresh
    batch normalisation. N times in all; then the network trains on whole. The first convolution and
    frozen layers are left alone, and no layer loses its last filter. Where training ends earlier,
    what is dropped then comes back.

    When: for a single network with redundant filters; each peer by itself. Cost: a pass over the
    batch normalisation of dropped filters after every step of S2; dropped filters are still
    computed.

    Args:
        full_epochs: S1, epochs with all filters.
        pruned_epochs: S2, epochs without the dropped ones.
        cycles: N.
        share: p, share of all filters that is dropped, in (0, 1).
        seed: directions of the filters that come back follow from it.

    Raises:
        UserError: an argument is out of range.

    Source: Prakash et al., "RePr: Improved Training of Convolutional Filters", CVPR 2019, eq. 1-2
    and algorithm 1 (S1 = 20, S2 = 10, N = 3, p = 30 %).
    """

    full_epochs: int = 20
    pruned_epochs: int = 10
    cycles: int = 3
    share: float = 0.3
    seed: int = 0
    every_steps = 1  # no field: dropped filters are held after every step
    _dropped: WeakKeyDictionary[keras.Model, _Dropped] = field(
        default_factory=WeakKeyDictionary, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        check_count(self, "full_epochs", "pruned_epochs", "cycles")
        check_share(self, "share", ends=False)
        check_count(self, "seed", least=0)

    def check_schedule(
        self, every: int, epochs_grafted: int | None, evaluate: Literal["after", "before"]
    ) -> None:
        """See `Mixer`: filters are dropped and brought back at the ends of certain epochs."""
        if self.full_epochs % every or self.pruned_epochs % every:
            raise UserError(
                f"RePr({self.full_epochs}, {self.pruned_epochs}) with every={every}: filters are "
                f"dropped after {self.full_epochs} epochs and come back after "
                f"{self.pruned_epochs} more: set every=1."
            )
        needed = self.cycles * (self.full_epochs + self.pruned_epochs)
        if epochs_grafted is not None and epochs_grafted < needed:
            raise UserError(
                f"RePr with epochs_grafted={epochs_grafted}: its {self.cycles} cycles of "
                f"{self.full_epochs} + {self.pruned_epochs} epochs need {needed}, or None."
            )

    def check(self, models: Sequence[keras.Model]) -> GraftPlan:
        """See `Mixer`; refuses a model with nothing to drop."""
        plan = plan_of(models)
        if not _prunable(models[0], plan):
            raise UserError(
                f"model {models[0].name!r} has no second convolution that trains and is followed "
                "by batch normalisation: there is nothing that RePr could drop."
            )
        return plan

    def begin(self, models: Sequence[keras.Model]) -> None:
        """See `Mixer`: takes up filters that an unfinished training has left silent.

        What they were before is unknown if another process dropped them: they will come back
        orthogonal to those that stayed.
        """
        plan = plan_of(models)
        for model in models:
            dropped = _still_silent(model, plan, self._dropped.pop(model, []))
            if dropped:
                self._dropped[model] = dropped
                _log.warning(
                    "%d filters of %r are silent, as a RePr that was broken off leaves them: they "
                    "come back with the next epoch that trains all filters.",
                    sum(int(mask.sum()) for _, mask, _ in dropped),
                    model.name,
                )

    def end(self, models: Sequence[keras.Model], plan: GraftPlan) -> None:
        """See `Mixer`: brings back what is still dropped."""
        self._restore(models, self.cycles * (self.full_epochs + self.pruned_epochs))

    def apply(
        self, models: Sequence[keras.Model], plan: GraftPlan | None = None, epoch: int = 0
    ) -> GraftRecord | None:
        """See `Mixer`: drops and restores filters at the ends of the epochs that are due."""
        cycle, place = divmod(epoch + 1, self.full_epochs + self.pruned_epochs)
        if place < self.full_epochs or cycle >= self.cycles:
            self._restore(models, epoch)
        elif not any(model in self._dropped for model in models):
            self._drop(models, plan or self.check(models))
        return None

    def step(self, models: Sequence[keras.Model], plan: GraftPlan, number: int) -> None:
        """See `Mixer`: holds what is dropped at 0."""
        for model in models:
            for chain, mask, _ in self._dropped.get(model, []):
                _silence(model, chain, mask)

    def _drop(self, models: Sequence[keras.Model], plan: GraftPlan) -> None:
        peers = population(models)
        for k, model in enumerate(models):
            links = _prunable(model, plan)
            kernels = peers.weights(k, [chain.kernel for chain in links])
            filters = [_filters(kernel) for kernel in kernels]
            masks = most_overlapping([overlap(rows) for rows in filters], self.share)
            self._dropped[model] = [
                (chain, mask, rows[mask])
                for chain, mask, rows in zip(links, masks, filters, strict=True)
                if mask.any()
            ]
        self.step(models, plan, 0)

    def _restore(self, models: Sequence[keras.Model], epoch: int) -> None:
        """Bring back what is dropped; directions follow from the seed, the epoch and the peer."""
        if not any(model in self._dropped for model in models):
            return
        peers = population(models)
        for k, model in enumerate(models):
            random = np.random.default_rng([self.seed, epoch, k])
            for chain, mask, before in self._dropped.pop(model, []):
                kernel = on_host(peers.weights(k, [chain.kernel])[0])
                rows = _filters(kernel)
                kernel[..., mask] = (
                    orthogonal_filters(rows[~mask], before, random)
                    .T.reshape(*kernel.shape[:-1], -1)
                    .astype(kernel.dtype)
                )
                peers.replace(k, chain.kernel, kernel)
                fresh = {chain.scale: 1.0, chain.statistics[0]: 0.0, chain.statistics[1]: 1.0}
                for index in chain.vectors:
                    vector = on_host(peers.weights(k, [index])[0])
                    vector[mask] = fresh.get(index, 0.0)
                    peers.replace(k, index, vector)
        peers.commit()


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
    before = {chain.kernel: (mask, rows) for chain, mask, rows in known}
    found: _Dropped = []
    for chain in _prunable(model, plan):
        kernel, *vectors = (on_host(model.weights[index].value) for index in _held(chain))
        filters = _filters(kernel)
        silent = ~filters.any(axis=1) & np.all([vector == 0 for vector in vectors], axis=0)
        if silent.any():
            mask, rows = before.get(chain.kernel, (silent, filters[silent]))
            same = np.array_equal(mask, silent)
            found.append((chain, silent, rows if same else filters[silent]))
    return found


def _held(chain: Chain) -> list[int]:
    """Indices of the weights in which a dropped filter is 0, the kernel first."""
    indices = (chain.kernel, chain.scale, chain.bias, chain.shift)
    return [index for index in indices if index is not None]


def _filters(kernel: Any) -> np.ndarray:
    host = on_host(kernel).astype(np.float64)
    return host.reshape(-1, host.shape[-1]).T


def _silence(model: keras.Model, chain: Chain, mask: np.ndarray) -> None:
    weights = model.weights
    stays = keras.ops.convert_to_tensor(~mask)
    for index in _held(chain):
        value = keras.ops.convert_to_tensor(weights[index].value)
        weights[index].assign(keras.ops.where(stays, value, keras.ops.zeros_like(value)))
