"""How much information a layer's weights hold: entropy, l1 norm, or a user's own measure."""

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import keras
import numpy as np
from numpy.typing import NDArray

from kgraft import equations
from kgraft.equations import Float64
from kgraft.errors import UserError, suggest, told
from kgraft.grafting.arrays import host_array, host_view
from kgraft.parts import called, load
from kgraft.settings import check, setting

# Every bin is counted for every layer, or filter. With more bins than weights almost each has one
# of its own, and the entropy is the logarithm of the layer's size; a filter has a few thousand.
_MOST_BINS = 4096


@runtime_checkable
class Criterion(Protocol):
    """Weights -> information. A larger value makes a receiver keep more of its own weights."""

    def information(
        self, kernels: Sequence[Any], filter_axes: Sequence[tuple[int, ...]]
    ) -> Float64:
        """Information of several kernels at once.

        Args:
            kernels: backend tensors, where the weights are.
            filter_axes: for each kernel the axes that count its filters.

        Returns:
            Shape `(len(kernels),)`, float64.
        """
        ...


@dataclass(frozen=True)
class Entropy:
    """Entropy of all weights of a layer at once (eq. 6), the papers' criterion.

    Only integer bin counts leave the device the weights are on; the entropy is float64.

    Args:
        bins: B, the number of equal-width bins over a layer's range.
        binning: `"closed"`, where the largest weight belongs to the last bin, or `"authors"`, the
            float32 expression of the authors' code, whose last bin is open.
    """

    bins: int = setting(10, low=1, high=_MOST_BINS)
    binning: Literal["closed", "authors"] = setting("closed")

    def __post_init__(self) -> None:
        check(self)

    def information(
        self, kernels: Sequence[Any], filter_axes: Sequence[tuple[int, ...]]
    ) -> Float64:
        """Entropy of each kernel, nats, shape `(len(kernels),)`; see `Criterion`."""
        del filter_axes
        counts = self.counts(kernels)
        return equations.entropy(counts, [int(np.prod(kernel.shape)) for kernel in kernels])

    def counts(self, kernels: Sequence[Any]) -> np.ndarray:
        """Bin counts of each kernel, taken where it lies: int64, shape `(len(kernels), bins)`."""
        views = [self._comparable(host_view(kernel)) for kernel in kernels]
        if any(view is None for view in views):
            return self._counts_on_device(kernels)
        return np.array([self._counts_of(view) for view in views if view is not None]).reshape(
            -1, self.bins
        )

    def _counts_of(self, view: NDArray[Any]) -> NDArray[np.int64]:
        bounds = view.min(), view.max()
        return equations.bin_counts(view, self.edges(*bounds, view.dtype), bounds)

    def _comparable(self, view: NDArray[Any] | None) -> NDArray[Any] | None:
        """The authors' expression is float32's, whatever the weights are."""
        if view is None or self.binning != "authors":
            return view
        return view.astype(np.float32, copy=False)

    def edges(self, minimum: float, maximum: float, dtype: Any) -> np.ndarray:
        """Edges of a layer's bins.

        Args:
            minimum: the layer's smallest weight.
            maximum: its largest.
            dtype: its weights'.

        Returns:
            Shape `(bins + 1,)`, of the dtype in which weights are compared with them: the authors'
            expression is float32's, whatever the weights are.
        """
        if self.binning == "authors":
            return equations.authors_bin_edges(minimum, maximum, self.bins, np.float32)
        return equations.bin_edges(minimum, maximum, self.bins, dtype)

    def _counts_on_device(self, kernels: Sequence[Any]) -> np.ndarray:
        """Two transfers for all kernels: their ranges to the host, their counts to the host."""
        ops = keras.ops
        wide = [
            ops.cast(ops.stop_gradient(kernel), "float32")
            if _is_half(kernel) or self.binning == "authors"
            else ops.stop_gradient(kernel)
            for kernel in kernels
        ]
        ranges = ops.convert_to_numpy(
            ops.stack([ops.stack([ops.min(kernel), ops.max(kernel)]) for kernel in wide])
        )
        at_least = ops.stack(
            [
                ops.stack(
                    [
                        ops.sum(ops.cast(kernel >= edge, "int32"))
                        for edge in self.edges(low, high, ranges.dtype).tolist()
                    ]
                )
                for kernel, (low, high) in zip(wide, ranges, strict=True)
            ]
        )
        host = ops.convert_to_numpy(at_least).astype(np.int64)
        return host[:, :-1] - host[:, 1:]


@dataclass(frozen=True)
class FilterEntropy:
    """Sum of the entropies of a layer's filters (eq. 5).

    Args:
        bins: B, the number of equal-width bins over each filter's range.
    """

    bins: int = setting(10, low=1, high=_MOST_BINS)

    def __post_init__(self) -> None:
        check(self)

    def information(
        self, kernels: Sequence[Any], filter_axes: Sequence[tuple[int, ...]]
    ) -> Float64:
        """Sum of filter entropies of each kernel, nats, `(len(kernels),)`; see `Criterion`."""
        return np.array(
            [
                equations.filter_entropy(host_array(kernel), self.bins, axes)
                for kernel, axes in zip(kernels, filter_axes, strict=True)
            ]
        )


@dataclass(frozen=True)
class L1Norm:
    """Sum of the l1 norms of a layer's filters (eq. 3), the papers' first criterion."""

    def information(
        self, kernels: Sequence[Any], filter_axes: Sequence[tuple[int, ...]]
    ) -> Float64:
        """L1 norm of each kernel, shape `(len(kernels),)`; see `Criterion`."""
        return np.array(
            [
                equations.filter_l1(host_array(kernel), axes).sum()
                for kernel, axes in zip(kernels, filter_axes, strict=True)
            ]
        )


@dataclass(frozen=True)
class Measured:
    """A user's own criterion.

    Args:
        measure: NumPy array of one kernel's weights (not to be written to) -> a number.
    """

    measure: Callable[[np.ndarray], float]

    def information(
        self, kernels: Sequence[Any], filter_axes: Sequence[tuple[int, ...]]
    ) -> Float64:
        """What `measure` says of each kernel, shape `(len(kernels),)`; see `Criterion`."""
        del filter_axes
        return np.array([self._number(host_array(kernel)) for kernel in kernels], np.float64)

    def _number(self, kernel: np.ndarray) -> float:
        name = called_in_errors(self.measure)
        value = called(f"criterion {name}", self.measure, kernel)
        if keras.ops.is_tensor(value):
            value = keras.ops.convert_to_numpy(value)
        if isinstance(value, Real):
            return float(value)
        what = f"a {type(value).__name__}"
        if isinstance(value, np.ndarray):
            if value.shape == ():
                return float(value)
            what = f"an array of shape {value.shape}"
        raise UserError(
            f"criterion {name} gave {what} for a kernel of shape {kernel.shape}: it must return "
            "one number, larger for more information."
        )


def called_in_errors(criterion: Any) -> str:
    """What a criterion is called in errors: a function by its name."""
    own = criterion.measure if isinstance(criterion, Measured) else criterion
    return own.__name__ if inspect.isfunction(own) else repr(own)


class _Criteria(Mapping[str, Callable[..., Criterion]]):
    """What makes a criterion, by its word: kgraft's, and anybody's by `module:name`."""

    _own: ClassVar[dict[str, type[Criterion]]] = {
        "entropy": Entropy,
        "filter-entropy": FilterEntropy,
        "l1": L1Norm,
    }

    def __getitem__(self, name: str) -> Callable[..., Criterion]:
        if name in self._own or not isinstance(name, str) or ":" not in name:
            return self._own[name]
        found = load(name, "criterion", "mypkg.crit:MyCriterion")
        if inspect.isclass(found) and issubclass(found, Criterion):
            _check_makeable(found, name)
            return found
        if inspect.isroutine(found):
            return partial(Measured, found)
        raise UserError(
            f"criterion {name!r} is {told(found)}: expected a class with information(kernels, "
            "filter_axes), or a function of a kernel's weights."
        )

    def __contains__(self, name: object) -> bool:
        try:
            return isinstance(name, str) and bool(self[name])
        except KeyError:
            return False

    def __iter__(self) -> Iterator[str]:
        return iter(self._own)

    def __len__(self) -> int:
        return len(self._own)


def _check_makeable(found: type, name: str) -> None:
    """Refuse a class that a run file cannot make: its settings are the fields of a dataclass."""
    if dataclasses.is_dataclass(found):
        return
    needed = [
        own.name
        for own in inspect.signature(found).parameters.values()
        if own.default is own.empty and own.kind not in (own.VAR_POSITIONAL, own.VAR_KEYWORD)
    ]
    if needed:
        raise UserError(
            f"criterion {name!r} needs {needed[0]} and is no dataclass: make it one, whose fields "
            "are settings."
        )


BY_NAME = _Criteria()

READ_ON_HOST = (FilterEntropy, L1Norm, Measured)
"""Criteria that take kernels to the host wherever they lie."""


def get(criterion: "str | Criterion | Callable[[np.ndarray], float]") -> Criterion:
    """A criterion from its name, itself, or a function of one kernel.

    Args:
        criterion: `"entropy"`, `"filter-entropy"`, `"l1"`, `"module:name"` of one's own, a
            `Criterion`, or a callable that maps a kernel's NumPy weights to a number.

    Returns:
        The criterion.

    Raises:
        UserError: an unknown name, or something that is none of these.

    Example:
        >>> get("entropy")
        Entropy(bins=10, binning='closed')
    """
    if isinstance(criterion, str):
        if criterion not in BY_NAME:
            raise UserError(f"unknown criterion {criterion!r}." + suggest(criterion, BY_NAME))
        return BY_NAME[criterion]()
    if inspect.isclass(criterion):
        name = criterion.__name__
        raise UserError(f"criterion is the class {name}: pass {name}(...).")
    if isinstance(criterion, Criterion):
        return criterion
    if callable(criterion):
        return Measured(criterion)
    raise UserError(
        f"criterion is a {type(criterion).__name__}; expected a name ({', '.join(BY_NAME)}), "
        "a Criterion or a function of a kernel's weights."
    )


def _is_half(kernel: Any) -> bool:
    return keras.backend.standardize_dtype(kernel.dtype) in ("float16", "bfloat16")
