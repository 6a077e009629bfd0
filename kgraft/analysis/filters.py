"""Which filters of a network hold anything: their l1 norms, which are invalid, layers' entropies.

What the papers show in figures 6 and 7 (Meng, Cheng et al., CVPR 2020) and in tables 8 and 10
(Cheng, Meng et al., arXiv 2004.12311v2). A filter is invalid where its l1 norm is below a
threshold. One whose norm is not finite, of a network that diverged, is neither valid nor invalid:
shares and means are over the others.

Behind a convolution batch normalisation takes out how large its filters are, so that weight decay
alone may make norms small that mean nothing; and a filter of any norm is silent where its scale
gamma is 0. The folded norm is that of the filter as it acts: times |gamma| / sqrt(variance + eps).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kgraft.convolutions import CONVOLUTIONS, SEPARABLE
from kgraft.equations import filter_l1
from kgraft.errors import UserError
from kgraft.grafting import Entropy, GraftPlan
from kgraft.grafting.chains import normalised
from kgraft.settings import argument

THRESHOLDS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Those of the papers' tables, and further ones."""
_LORA = "lora_kernel"


@dataclass(frozen=True, eq=False)
class LayerFilters:
    """The filters of one layer.

    Attributes:
        name: path of its kernel.
        norms: l1 norm of each filter (eq. 3), float64 `(filters,)`.
        folded: the same as batch normalisation scales it; None where none follows the layer alone,
            or another activation than the linear one is between, and in a subclassed model, which
            has no graph.
        entropy: of all its weights at once (eq. 6), nats; nan where one is not finite.
        weights: how many a filter has.
    """

    name: str
    norms: np.ndarray
    folded: np.ndarray | None
    entropy: float
    weights: int

    def invalid(self, threshold: float) -> np.ndarray:
        """Which filters are invalid, bool `(filters,)`.

        Args:
            threshold: what the l1 norm of a valid one is not below.
        """
        return self.norms < threshold

    @property
    def finite(self) -> np.ndarray:
        """Which filters' norms are finite, bool `(filters,)`."""
        return np.isfinite(self.norms)


@dataclass(frozen=True)
class SplitNorms:
    """Mean l1 norms of filters that were valid, or invalid, in a baseline (FG+ tables 8, 10).

    Attributes:
        valid: mean of the filters that the baseline has valid; nan where it has none.
        invalid: of the others.
        valid_count: how many these are; those that are not finite in either network are left out.
        invalid_count: how many the others are.
        valid_folded: mean folded norm of the valid ones that have one; nan where none has.
        invalid_folded: of the others.
    """

    valid: float
    invalid: float
    valid_count: int
    invalid_count: int
    valid_folded: float
    invalid_folded: float


def layer_filters(model: keras.Model) -> tuple[LayerFilters, ...]:
    """The filters of every layer that owns a coefficient: of a CNN, its convolutions.

    Kernels that LoRA has put beside a layer's own are left out.

    Args:
        model: a built model; frozen layers too.

    Returns:
        In layer order.

    Raises:
        UserError: it is no model, or has no kernel.

    Example:
        >>> import kgraft
        >>> model = kgraft.models.resnet56(classes=10)
        >>> sum(len(layer.norms) for layer in layer_filters(model))
        2032
    """
    argument("model", model, keras.Model)
    if all(len(weight.shape) < 2 for weight in model.weights):
        raise UserError(f"model {model.name!r} has no filters: no kernel, or it is not built.")
    plan = GraftPlan.of(model, blend_frozen=True)
    groups = [own for own in plan.groups if not own.name.rpartition("/")[2].startswith(_LORA)]
    values = [keras.ops.convert_to_numpy(model.weights[group.kernel]) for group in groups]
    entropies = Entropy().information(values, [group.filter_axes for group in groups])
    scales, found = _scales(model), []
    for group, kernel, entropy in zip(groups, values, entropies.tolist(), strict=True):
        norms = filter_l1(kernel, group.filter_axes)
        scale = scales.get(group.kernel)
        found.append(
            LayerFilters(
                name=group.name,
                norms=norms,
                folded=None if scale is None else norms * scale,
                entropy=entropy if np.isfinite(norms).all() else float("nan"),
                weights=kernel.size // group.filters,
            )
        )
    return tuple(found)


def invalid_ratio(
    layers: Iterable[LayerFilters], thresholds: Sequence[float] = THRESHOLDS
) -> np.ndarray:
    """Share of a network's filters that are invalid, by threshold (FG figure 6).

    Args:
        layers: what `layer_filters` gave.
        thresholds: l1 norms.

    Returns:
        0..1 of those whose norms are finite, float64 `(thresholds,)`; nan where none is.

    Raises:
        UserError: there is no layer.

    Example:
        >>> layer = LayerFilters("kernel", np.array([0.0, 0.5, 2.0, 3.0]), None, 1.0, 9)
        >>> invalid_ratio([layer], [0.1, 1.0, 10.0])
        array([0.25, 0.5 , 1.  ])
    """
    layers = tuple(layers)
    check_any(layers)
    norms = np.sort(np.concatenate([layer.norms[layer.finite] for layer in layers]))
    below = np.searchsorted(norms, np.asarray(thresholds), "left")
    return below / len(norms) if len(norms) else np.full(below.shape, np.nan)


def split_norms(
    layers: Sequence[LayerFilters], baseline: Sequence[LayerFilters], threshold: float = 0.1
) -> SplitNorms:
    """Mean l1 norms of the filters that a baseline has valid, and of those it has not.

    A baseline's own filters are split by what is found in it. Two networks that were trained apart
    have nothing to do with each other, filter by filter: such a table says how large the norms of a
    network are where another one's happen to be small. Beside it belongs the network's own split,
    `split_norms(layers, layers)`.

    Args:
        layers: a network's.
        baseline: another one's, of the same architecture.
        threshold: the l1 norm below which the baseline's are invalid.

    Raises:
        UserError: the two have other layers.

    Source: arXiv 2004.12311v2, tables 8 and 10.

    Example:
        >>> own = LayerFilters("kernel", np.array([1.0, 5.0, 3.0]), None, 1.0, 9)
        >>> other = LayerFilters("kernel", np.array([0.0, 2.0, 2.0]), None, 1.0, 9)
        >>> split = split_norms([own], [other])
        >>> split.valid, split.invalid, split.valid_count, split.invalid_count
        (4.0, 1.0, 2, 1)
    """
    check_alike(layers, baseline)
    norms = np.concatenate([layer.norms for layer in layers])
    dead = np.concatenate([layer.invalid(threshold) for layer in baseline])
    finite = np.isfinite(norms) & np.concatenate([layer.finite for layer in baseline])
    alive, dead = finite & ~dead, finite & dead
    folded = np.concatenate(
        [
            np.full(len(layer.norms), np.nan) if layer.folded is None else layer.folded
            for layer in layers
        ]
    )
    known = np.isfinite(folded)
    return SplitNorms(
        valid=_mean(norms[alive]),
        invalid=_mean(norms[dead]),
        valid_count=int(alive.sum()),
        invalid_count=int(dead.sum()),
        valid_folded=_mean(folded[alive & known]),
        invalid_folded=_mean(folded[dead & known]),
    )


def overlap(
    layers: Sequence[LayerFilters], others: Sequence[LayerFilters], threshold: float = 0.1
) -> float:
    """How far two networks' invalid filters sit at the same places: intersection over union.

    Args:
        layers: a network's.
        others: another one's, of the same architecture.
        threshold: the l1 norm below which a filter is invalid.

    Returns:
        0..1, of the places where both are finite; nan where neither has any there.

    Raises:
        UserError: the two have other layers.
    """
    check_alike(layers, others)
    counts = [
        both_and_either(own, other, threshold) for own, other in zip(layers, others, strict=True)
    ]
    both, either = map(sum, zip(*counts, strict=True))
    return both / either if either else float("nan")


def both_and_either(layer: LayerFilters, other: LayerFilters, threshold: float) -> tuple[int, int]:
    """How many filters of a layer are invalid in two networks, and in one of them at least.

    Args:
        layer: a network's.
        other: of another one, as many filters; places where one is not finite do not count.
        threshold: the l1 norm below which a filter is invalid.
    """
    known = layer.finite & other.finite
    own, theirs = layer.invalid(threshold) & known, other.invalid(threshold) & known
    return int((own & theirs).sum()), int((own | theirs).sum())


def check_alike(layers: Sequence[LayerFilters], others: Sequence[LayerFilters]) -> None:
    """Refuse networks of different architectures.

    Args:
        layers: a network's.
        others: another one's.

    Raises:
        UserError: names the first layer that differs; or there is none.
    """
    check_any(layers)
    if len(layers) != len(others):
        raise UserError(
            f"networks of {len(layers)} and of {len(others)} layers with filters: expected one "
            "architecture."
        )
    for own, other in zip(layers, others, strict=True):
        if len(own.norms) != len(other.norms):
            raise UserError(
                f"{own.name} has {len(own.norms)} filters, and {other.name}, in its place, "
                f"{len(other.norms)}: expected one architecture."
            )


def check_any(layers: Sequence[LayerFilters]) -> None:
    """Refuse a network of no layers.

    Args:
        layers: its.

    Raises:
        UserError: there is none.
    """
    if not layers:
        raise UserError("layers: none; expected what layer_filters gives.")


def _scales(model: keras.Model) -> dict[int, np.ndarray]:
    """By the index of a kernel, what batch normalisation multiplies each of its filters by."""
    index = {id(weight): i for i, weight in enumerate(model.weights)}
    found = {}
    for layer, norm in normalised(model):
        kernel = index.get(id(_last_kernel(layer)))  # LoRA's is a sum, and no weight
        if kernel is None or not _by_channel(layer, norm):
            continue
        variance = keras.ops.convert_to_numpy(norm.moving_variance).astype(np.float64)
        scale = 1 / np.sqrt(variance + norm.epsilon)
        if norm.gamma is not None:
            scale *= np.abs(keras.ops.convert_to_numpy(norm.gamma))
        found[kernel] = scale
    return found


def _last_kernel(layer: keras.Layer) -> Any:
    """The kernel whose filters are the channels that a layer gives; None of one that has none."""
    if isinstance(layer, SEPARABLE):
        return layer.pointwise_kernel
    return layer.kernel if isinstance(layer, (*CONVOLUTIONS, keras.layers.Dense)) else None


def _by_channel(layer: keras.Layer, norm: keras.layers.BatchNormalization) -> bool:
    """Whether batch normalisation has a scale for each channel that a layer gives."""
    first = isinstance(layer, CONVOLUTIONS) and layer.data_format == "channels_first"
    rank = len(layer.output.shape)
    return norm.axis % rank == (1 if first else rank - 1)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
