"""The equations of filter grafting, as pure functions.

| eq. | function | what |
|---|---|---|
| 1 | `noise_scale`, `noise_scion` | noise added to invalid filters |
| theorem 1 | `internal_scion` | a layer's largest filters added to its smallest |
| 2 | `blend` | receiver and donor blended by the coefficient |
| 3 | `filter_l1` | l1 norm of every filter |
| 4, 6 | `bin_edges`, `authors_bin_edges`, `bin_counts`, `entropy` | entropy of a set of weights |
| 5 | `filter_entropy` | sum of the filters' entropies |
| 7 | `graft_coefficient`, `literal_graft_coefficient` | share of its own that a receiver keeps |
| 8-12 | `mean_probabilities`, `distillation_loss` | what the M teachers add to a student's loss |

Numbers as in Cheng, Meng et al., arXiv 2004.12311v2 (Meng, Cheng et al., CVPR 2020, has the same).

Weights are summarised by *integer* bin counts, which are exact on every device; entropies and
coefficients are computed from them in float64 on the host, because the slope of eq. 7 at equality
is A c / pi = 64 and float32 entropies would be too coarse for it. Only `blend` and the two scions
touch whole weights: they run on `keras.ops`, where the weights are.
"""

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import ArrayLike, NDArray

from kgraft.errors import UserError

Float64 = NDArray[np.float64]


def filter_l1(kernel: NDArray[Any], filter_axes: tuple[int, ...] = (-1,)) -> Float64:
    """L1 norm of every filter of a layer (eq. 3).

    Args:
        kernel: weights, any shape.
        filter_axes: the axes that count the filters: the last one, or `(2, 3)` for a depthwise
            kernel `(kh, kw, channels, multiplier)`.

    Returns:
        Sums of absolute values over the other axes, shape `(filters,)`, float64.

    Source: arXiv 2004.12311, eq. 3.
    """
    return np.abs(_filters_first(kernel, filter_axes)).sum(axis=1, dtype=np.float64)


def bin_edges(minimum: float, maximum: float, bins: int, dtype: Any = np.float32) -> NDArray[Any]:
    """Lower edges of equal-width bins over `[minimum, maximum]`, the last bin closed.

    The edges are computed in float64 and rounded *up* to `dtype`: for a value x of that type,
    `x >= edge` then says the same as the comparison in float64, so that counts are exact wherever
    they are taken.

    Args:
        minimum: smallest weight.
        maximum: largest weight.
        bins: B, the number of bins.
        dtype: float type of the weights that will be compared.

    Returns:
        Shape `(bins + 1,)`: bin i holds `edges[i] <= x < edges[i + 1]`; the last entry is infinite.

    Raises:
        ValueError: `bins` is less than 1.
    """
    if bins < 1:
        raise ValueError(f"bins={bins}: at least 1 bin is needed")
    width = (np.float64(maximum) - np.float64(minimum)) / bins
    exact = np.float64(minimum) + np.arange(bins) * width
    edges = exact.astype(dtype)
    edges = np.where(
        edges.astype(np.float64) < exact, np.nextafter(edges, edges.dtype.type(np.inf)), edges
    )
    return np.append(edges, np.array(np.inf, edges.dtype))


def authors_bin_edges(
    minimum: float, maximum: float, bins: int, dtype: Any = np.float32
) -> NDArray[Any]:
    """Bin edges as the authors' code evaluates them, in the weights' own precision.

    Edge i is `min + i * ((max - min) / n)`; the last bin is open, so the largest weight usually
    falls in no bin and the shares sum to less than one.

    Args:
        minimum: smallest weight.
        maximum: largest weight.
        bins: n, the number of bins.
        dtype: float type in which the expression is evaluated.

    Returns:
        Shape `(bins + 1,)`: bin i holds `edges[i] <= x < edges[i + 1]`.

    Raises:
        ValueError: `bins` is less than 1.

    Source: github.com/fxmeng/filter-grafting (the expression, as a fact).
    """
    if bins < 1:
        raise ValueError(f"bins={bins}: at least 1 bin is needed")
    low, high = np.asarray(minimum, dtype), np.asarray(maximum, dtype)
    scale = (high - low) / low.dtype.type(bins)
    return low + np.arange(bins + 1).astype(low.dtype) * scale


def bin_counts(
    values: NDArray[Any], edges: NDArray[Any], bounds: tuple[float, float] | None = None
) -> NDArray[np.int64]:
    """How many values lie in each bin `edges[i] <= x < edges[i + 1]`.

    Compares block by block, so that a block stays in the cache for all edges.

    Args:
        values: weights, any shape.
        edges: non-decreasing, shape `(bins + 1,)`, of the values' type.
        bounds: the smallest and the largest value, where they are known.

    Returns:
        Counts, shape `(bins,)`.
    """
    flat = values.reshape(-1)
    low, high = bounds or (flat.min(initial=np.inf), flat.max(initial=-np.inf))
    at_least = np.where(edges <= low, flat.size, 0)
    inner = [(i, edge) for i, edge in enumerate(edges) if low < edge <= high]
    block = 1 << 17
    is_at_least = np.empty(min(block, flat.size), bool)
    for start in range(0, flat.size, block):
        part = flat[start : start + block]
        for i, edge in inner:
            at_least[i] += np.count_nonzero(
                np.greater_equal(part, edge, out=is_at_least[: part.size])
            )
    return at_least[:-1] - at_least[1:]


def entropy(counts: ArrayLike, total: ArrayLike) -> Float64:
    """Entropy of a histogram (eq. 4 over one filter, eq. 6 over all weights of a layer).

    H = - sum_k p_k log p_k with p_k = counts_k / total and 0 log 0 = 0.

    Args:
        counts: integer bin counts, shape `(..., bins)`.
        total: number of weights, shape `(...)`; larger than the counts' sum where some weights
            fall in no bin (authors' bins).

    Returns:
        H in nats, shape `(...)`, float64; 0 for a constant layer.

    Source: arXiv 2004.12311, eq. 4 and 6.
    """
    shares = np.asarray(counts, np.float64) / np.asarray(total, np.float64)[..., None]
    return -np.sum(shares * np.log(np.where(shares > 0, shares, 1.0)), axis=-1) + 0.0


def filter_entropy(kernel: NDArray[Any], bins: int, filter_axes: tuple[int, ...] = (-1,)) -> float:
    """Information of a layer as the sum of its filters' entropies (eq. 5).

    Args:
        kernel: weights, any shape.
        bins: B, the number of bins over each filter's own range.
        filter_axes: the axes that count the filters.

    Returns:
        Sum over the filters of eq. 4, nats.

    Source: arXiv 2004.12311, eq. 5.
    """
    filters = _filters_first(kernel, filter_axes)
    return math.fsum(
        float(entropy(bin_counts(row, bin_edges(row.min(), row.max(), bins, row.dtype)), row.size))
        for row in filters
        if row.min() < row.max()
    )


def graft_coefficient(
    own: ArrayLike, donor: ArrayLike, *, amplitude: float, sharpness: float
) -> Float64:
    """Share of its own weights that a receiving layer keeps (eq. 7).

    alpha = (A / pi) * arctan(c * (H_own - H_donor)) + 1/2

    Args:
        own: information H_own of the receiver, nats, shape `(...)`.
        donor: information H_donor of the donor, nats, same shape.
        amplitude: A, in [0, 1].
        sharpness: c, 1/nats, positive.

    Returns:
        alpha in [(1 - A)/2, (1 + A)/2], shape `(...)`, float64.

    Raises:
        ValueError: `amplitude` or `sharpness` is out of range, or a number is not finite.

    Source: Meng et al., CVPR 2020, eq. 7; the division by pi is the authors' code's.
    """
    if not 0 <= amplitude <= 1:
        raise ValueError(f"amplitude={amplitude}: A must lie in [0, 1]")
    if not 0 < sharpness < math.inf:
        raise ValueError(f"sharpness={sharpness}: c must be positive and finite")
    if not (np.isfinite(own).all() and np.isfinite(donor).all()):
        raise ValueError(f"own={own!r}, donor={donor!r}: information must be finite")
    difference = np.asarray(own, np.float64) - np.asarray(donor, np.float64)
    return amplitude / np.pi * np.arctan(sharpness * difference) + 0.5


def literal_graft_coefficient(
    own: ArrayLike, donor: ArrayLike, *, amplitude: float, sharpness: float
) -> Float64:
    """Eq. 7 as printed: alpha = A * arctan(c * (H_own - H_donor)) + 1/2, without the pi.

    Args:
        own: information H_own of the receiver, nats, shape `(...)`.
        donor: information H_donor of the donor, nats, same shape.
        amplitude: A, in [0, 1/pi]; the papers' A = 0.4 would leave [0, 1].
        sharpness: c, 1/nats, positive.

    Returns:
        alpha in [0, 1], shape `(...)`, float64.

    Raises:
        ValueError: alpha could leave [0, 1], or `sharpness` is not positive.
    """
    if not 0 <= amplitude <= 1 / np.pi:
        raise ValueError(
            f"amplitude={amplitude}: eq. 7 without the division by pi stays in [0, 1] only "
            f"for A in [0, 1/pi = {1 / np.pi:.4f}]; use graft_coefficient"
        )
    return graft_coefficient(own, donor, amplitude=amplitude * np.pi, sharpness=sharpness)


def blend(own: Any, donor: Any, alpha: float) -> Any:
    """Receiver's weights after grafting (eq. 2): alpha * own + (1 - alpha) * donor.

    Written as a step from the nearer side, so that equal weights stay equal to the last bit, and
    alpha = 1 gives `own` and alpha = 0 `donor` exactly. Half precision is blended in float32.

    Args:
        own: receiver's weights, any shape.
        donor: donor's weights, same shape and dtype.
        alpha: share of its own weights that the receiver keeps, in [0, 1].

    Returns:
        A tensor of the same shape and dtype: `own` itself at alpha = 1, else a new one.

    Source: arXiv 2004.12311, eq. 2.
    """
    if alpha in (0, 1):  # the step between finite weights may be infinite
        return own if alpha == 1 else donor * 1.0
    dtype = keras.backend.standardize_dtype(own.dtype)
    if dtype in ("float16", "bfloat16"):
        return keras.ops.cast(
            blend(keras.ops.cast(own, "float32"), keras.ops.cast(donor, "float32"), alpha), dtype
        )
    step = donor - own
    return own + step * (1.0 - alpha) if alpha >= 0.5 else donor - step * alpha


def noise_scale(decay: float, epoch: int) -> float:
    """Standard deviation of the noise scion at one epoch (eq. 1): sigma_t = a^t.

    Args:
        decay: a, between 0 and 1, both excluded.
        epoch: t, counted from 0.

    Returns:
        sigma_t.

    Raises:
        ValueError: `decay` is not in (0, 1), or `epoch` is negative.

    Source: arXiv 2004.12311, eq. 1.
    """
    if not 0 < decay < 1:
        raise ValueError(f"decay={decay}: a must lie in (0, 1)")
    if epoch < 0:
        raise ValueError(f"epoch={epoch}: epochs are counted from 0")
    return decay**epoch


def noise_scion(
    kernel: Any, noise: Any, *, threshold: float, filter_axes: tuple[int, ...] = (-1,)
) -> Any:
    """Invalid filters with noise added (eq. 1); the others as they are.

    Args:
        kernel: a layer's weights.
        noise: draws from N(0, sigma_t), of the kernel's shape.
        threshold: gamma; a filter whose l1 norm (eq. 3) is below it is invalid.
        filter_axes: the axes that count the filters.

    Returns:
        A new tensor of the kernel's shape.

    Source: arXiv 2004.12311, eq. 1.
    """
    norms = keras.ops.sum(
        keras.ops.abs(kernel), axis=_other_axes(len(kernel.shape), filter_axes), keepdims=True
    )
    return kernel + keras.ops.where(norms < threshold, noise, keras.ops.zeros_like(noise))


def internal_scion(kernel: Any, *, threshold: float, filter_axes: tuple[int, ...] = (-1,)) -> Any:
    """A layer's i-th smallest filter plus its i-th largest, for the invalid ones (theorem 1).

    Args:
        kernel: a layer's weights.
        threshold: gamma; a filter whose l1 norm (eq. 3) is below it is invalid.
        filter_axes: the axes that count the filters.

    Returns:
        A new tensor of the kernel's shape.

    Source: arXiv 2004.12311, internal scion.
    """
    rank = len(kernel.shape)
    others = _other_axes(rank, filter_axes)
    order = (*(axis % rank for axis in filter_axes), *others)
    moved = keras.ops.transpose(kernel, order)
    counted = moved.shape[: len(filter_axes)]
    filters = keras.ops.reshape(moved, (math.prod(counted), -1))
    norms = keras.ops.sum(keras.ops.abs(filters), axis=1)
    ascending = keras.ops.argsort(norms)
    scions = keras.ops.take(filters, keras.ops.flip(ascending, axis=0), axis=0)
    position = keras.ops.argsort(ascending)
    grafted = filters + keras.ops.where(
        (norms < threshold)[:, None],
        keras.ops.take(scions, position, axis=0),
        keras.ops.zeros_like(filters),
    )
    return keras.ops.transpose(keras.ops.reshape(grafted, moved.shape), np.argsort(order).tolist())


def mean_probabilities(teacher_logits: Sequence[Any], temperature: float = 2.0) -> Any:
    """Mean of the teachers' softened probabilities (pbar in eq. 8-12).

    pbar_k = (1/M) sum_m softmax(z_m / tau)_k

    Args:
        teacher_logits: logits z_m of M >= 1 teachers, each of shape `(..., classes)`. Half
            precision is computed in float32.
        temperature: tau, positive.

    Returns:
        Probabilities, shape `(..., classes)`.

    Raises:
        UserError: no teacher, or teachers with different numbers of classes.

    Source: arXiv 2004.12311, eq. 8-12; softening by tau is kgraft's reading.
    """
    if not teacher_logits:
        raise UserError("no teachers: their mean needs at least one.")
    classes = [logits.shape[-1] for logits in teacher_logits]
    if len({count for count in classes if count is not None}) > 1:
        raise UserError(f"teachers with {classes} classes have no mean: all need the same number.")
    softened = [keras.ops.softmax(widened(z) / temperature, axis=-1) for z in teacher_logits]
    return sum(softened) / len(softened)


def distillation_loss(
    student_logits: Any, teacher_probabilities: Any, temperature: float = 2.0
) -> Any:
    """What a student loses by not saying what its teachers say, per image (KD in eq. 8-12).

    KD_i = - tau^2 sum_k pbar_k log softmax(z_s / tau)_k

    It is tau^2 KL(pbar || softmax(z_s / tau)) plus tau^2 times the entropy of pbar, which the
    student does not move: the gradients, tau (softmax(z_s / tau) - pbar), are equal.

    Args:
        student_logits: z_s, shape `(..., classes)`. Half precision is computed in float32.
        teacher_probabilities: pbar, softened with the same tau, same shape.
        temperature: tau, positive.

    Returns:
        Nats, shape `(...)`; their mean over the batch is added to the loss.

    Raises:
        UserError: student and teachers differ in the number of classes.

    Source: arXiv 2004.12311, eq. 8-12; log softmax(z / tau) is kgraft's reading.
    """
    own, taught = student_logits.shape[-1], teacher_probabilities.shape[-1]
    if None not in (own, taught) and own != taught:
        raise UserError(f"the student has {own} classes and its teachers {taught}.")
    log_probabilities = keras.ops.log_softmax(widened(student_logits) / temperature, axis=-1)
    return -(temperature**2) * keras.ops.sum(
        keras.ops.cast(teacher_probabilities, log_probabilities.dtype) * log_probabilities, axis=-1
    )


def _filters_first(kernel: NDArray[Any], filter_axes: tuple[int, ...]) -> NDArray[Any]:
    count = math.prod(kernel.shape[axis] for axis in filter_axes)
    return np.moveaxis(kernel, filter_axes, range(len(filter_axes))).reshape(count, -1)


def _other_axes(rank: int, filter_axes: tuple[int, ...]) -> tuple[int, ...]:
    counted = {axis % rank for axis in filter_axes}
    return tuple(axis for axis in range(rank) if axis not in counted)


def widened(logits: Any) -> Any:
    """Half-precision logits as float32; any other float type as it is."""
    dtype = keras.backend.standardize_dtype(logits.dtype)
    return keras.ops.cast(logits, "float32") if dtype in ("float16", "bfloat16") else logits
