"""GraftPlan: which weights of a model share one coefficient, read from its graph."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import keras
import numpy as np

from kgraft.errors import UserError, suggest

Grouping = Literal["default", "authors"]

_CONVOLUTIONS = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
)
_TRANSPOSED = (
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)
_DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
_SEPARABLE = (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)


@dataclass(frozen=True)
class Group:
    """Weights that are blended with one coefficient, measured on their kernel.

    Attributes:
        name: path of the kernel, for people and records.
        kernel: index of the kernel in `model.weights`.
        members: indices in `model.weights` of all weights of the group, the kernel included.
        kernel_shape: the kernel's shape.
        filter_axes: the kernel's axes that count its filters.
    """

    name: str
    kernel: int
    members: tuple[int, ...]
    kernel_shape: tuple[int, ...]
    filter_axes: tuple[int, ...]

    @property
    def filters(self) -> int:
        """Number of filters of the kernel."""
        return int(np.prod([self.kernel_shape[axis] for axis in self.filter_axes]))


@dataclass(frozen=True)
class GraftPlan:
    """Which weights of a model share a coefficient, in layer order.

    Every convolution kernel owns a coefficient. Biases, batch normalisation (running statistics
    included) and dense layers ride with the latest convolution before them: in a functional model
    the one that feeds them in the graph, in a subclassed one the one before them in the order of
    its layers. In a network without convolutions every kernel owns one. Weights that are not
    floating point, seeds and optimizer state belong to no group and are never blended.

    Attributes:
        groups: the groups, in layer order.
        weights: path, shape and dtype of every weight of the model, in the order of
            `model.weights`.

    Example:
        >>> import keras
        >>> model = keras.Sequential([
        ...     keras.Input((8, 8, 1)),
        ...     keras.layers.Conv2D(4, 3, name="stem"),
        ...     keras.layers.BatchNormalization(name="norm"),
        ...     keras.layers.Flatten(),
        ...     keras.layers.Dense(10, name="head"),
        ... ], name="tiny")
        >>> print(GraftPlan.of(model))
        1 group, 8 of 8 weights blended
        tiny/stem/kernel (3, 3, 1, 4), 4 filters
            tiny/stem/bias
            tiny/norm/gamma, tiny/norm/beta, tiny/norm/moving_mean, tiny/norm/moving_variance
            tiny/head/kernel, tiny/head/bias
    """

    groups: tuple[Group, ...]
    weights: tuple[tuple[str, tuple[int, ...], str], ...] = field(repr=False)

    @classmethod
    def of(cls, model: keras.Model, grouping: Grouping = "default") -> "GraftPlan":
        """Read the plan of a built model.

        Args:
            model: any functional, sequential or subclassed Keras model with weights.
            grouping: `"default"`, or `"authors"`, where the convolutions of projection shortcuts
                own no coefficient and ride with the block's last convolution, as in the authors'
                code.

        Returns:
            The plan.

        Raises:
            UserError: the model is not built, has no kernel, `grouping` is unknown, or
                `"authors"` is asked of a model without a graph.
        """
        if grouping not in ("default", "authors"):
            raise UserError(
                f"grouping={grouping!r} is unknown." + suggest(grouping, ("default", "authors"))
            )
        if not model.weights:
            raise UserError(f"model {model.name!r} has no weights yet: build it before grafting.")
        reader = _Reader(model, grouping, every_kernel=False)
        if not reader.owners:
            reader = _Reader(model, grouping, every_kernel=True)
        if not reader.owners:
            raise UserError(f"model {model.name!r} has no kernel that could own a coefficient.")
        return cls(reader.groups(), tuple(_describe(weight) for weight in model.weights))

    @property
    def kernels(self) -> tuple[int, ...]:
        """Index in `model.weights` of every group's kernel."""
        return tuple(group.kernel for group in self.groups)

    def check_matches(self, other: "GraftPlan", own_name: str, other_name: str) -> None:
        """Refuse two peers that cannot be blended.

        Args:
            other: the other peer's plan.
            own_name: what to call this peer, e.g. `"peer 1"`.
            other_name: what to call the other one.

        Raises:
            UserError: names the first weight or group in which they differ.
        """
        for (path, shape, dtype), (other_path, other_shape, other_dtype) in zip(
            self.weights, other.weights, strict=False
        ):
            if (shape, dtype) != (other_shape, other_dtype):
                raise UserError(
                    f"{own_name} and {other_name} differ: {path} is {dtype} {shape}, "
                    f"{other_path} is {other_dtype} {other_shape}."
                )
        if len(self.weights) != len(other.weights):
            longer, name = max(
                (self, own_name), (other, other_name), key=lambda p: len(p[0].weights)
            )
            extra = longer.weights[min(len(self.weights), len(other.weights))][0]
            raise UserError(
                f"{own_name} has {len(self.weights)} weights, {other_name} has "
                f"{len(other.weights)}: {extra} is only in {name}."
            )
        for own, theirs in zip(self.groups, other.groups, strict=False):
            if own.members != theirs.members:
                raise UserError(
                    f"{own_name} and {other_name} are wired differently: {own.name} shares its "
                    f"coefficient with weights {list(own.members)} in {own_name}, with "
                    f"{list(theirs.members)} in {other_name}."
                )

    def __str__(self) -> str:
        blended = sum(len(group.members) for group in self.groups)
        plural = "" if len(self.groups) == 1 else "s"
        lines = [
            f"{len(self.groups)} group{plural}, {blended} of {len(self.weights)} weights blended"
        ]
        for group in self.groups:
            lines.append(f"{group.name} {group.kernel_shape}, {group.filters} filters")
            riders: dict[str, list[str]] = {}
            for index in group.members:
                if index != group.kernel:
                    path = self.weights[index][0]
                    riders.setdefault(path.rpartition("/")[0], []).append(path)
            lines.extend(f"    {', '.join(paths)}" for paths in _joined(list(riders.values())))
        return "\n".join(lines)


class _Reader:
    """Walks a model's graph once and assigns each weight to the kernel it rides with."""

    def __init__(self, model: keras.Model, grouping: Grouping, *, every_kernel: bool) -> None:
        self._index = {id(weight): i for i, weight in enumerate(model.weights)}
        self._weights = model.weights
        self._every_kernel = every_kernel
        self._shortcuts = _projection_shortcuts(model) if grouping == "authors" else {}
        self._rider_of: dict[int, int] = {}  # weight -> its owner's position in `owners`
        self._last_of: dict[int, int | None] = {}  # layer -> the owner that leaves it
        self._waiting: list[int] = []  # weights that come before any kernel
        self._stands_for: dict[int, Any] = {}  # a shortcut's position -> the layer it rides with
        self.owners: list[tuple[int, tuple[int, ...]]] = []  # kernel, its filter axes
        self._visit(model, None)

    def groups(self) -> tuple[Group, ...]:
        members: dict[int, list[int]] = {
            position: [] for position in range(len(self.owners)) if position not in self._stands_for
        }
        members[min(members)].extend(self._waiting)
        for weight, owner in self._rider_of.items():
            members[self._resolved(owner)].append(weight)
        return tuple(
            Group(
                name=self._weights[self.owners[position][0]].path,
                kernel=self.owners[position][0],
                members=tuple(sorted(riders)),
                kernel_shape=tuple(self._weights[self.owners[position][0]].shape),
                filter_axes=self.owners[position][1],
            )
            for position, riders in members.items()
        )

    def _resolved(self, owner: int) -> int:
        """The position itself, or that of the convolution which a shortcut rides with."""
        if owner not in self._stands_for:
            return owner
        latest = self._last_of[id(self._stands_for[owner])]
        assert latest is not None  # a convolution owns a coefficient
        return latest

    def _visit(self, layer: Any, incoming: int | None) -> int | None:
        """Assign a layer's weights; returns the owner that what follows it rides with."""
        if not isinstance(layer, keras.Layer):
            return incoming
        if id(layer) in self._last_of:
            return self._last_of[id(layer)]
        graph = _graph_of(layer)
        if graph is not None:
            latest = self._walk(graph, incoming)
        else:
            latest = self._visit_layer(layer, incoming)
        self._last_of[id(layer)] = latest
        return latest

    def _walk(self, graph: Any, incoming: int | None) -> int | None:
        latest_of: dict[int, int | None] = {}
        for depth in sorted(graph._nodes_by_depth, reverse=True):
            for node in graph._nodes_by_depth[depth]:
                before = [latest_of.get(id(tensor), incoming) for tensor in node.input_tensors]
                latest = self._visit(node.operation, _latest([*before, incoming]))
                for tensor in node.output_tensors:
                    latest_of[id(tensor)] = latest
        return _latest([latest_of.get(id(tensor)) for tensor in graph._outputs] + [incoming])

    def _visit_layer(self, layer: keras.Layer, incoming: int | None) -> int | None:
        nested = list(layer._flatten_layers(include_self=False, recursive=False))
        theirs = {id(weight) for inner in nested for weight in inner.weights}
        trainable = {id(weight) for weight in layer._trainable_variables}
        latest = incoming
        for weight in layer.weights:
            if id(weight) in theirs or id(weight) not in self._index:
                continue
            index = self._index[id(weight)]
            if index in self._rider_of or not keras.backend.is_float_dtype(weight.dtype):
                continue
            if self._owns(layer, weight, id(weight) in trainable):
                self.owners.append((index, _filter_axes(layer, weight)))
                latest = len(self.owners) - 1
                if layer in self._shortcuts:
                    self._stands_for[latest] = self._shortcuts[layer]
            if latest is None:
                latest = len(self.owners) - 1 if self.owners else None
            if latest is None:
                self._waiting.append(index)
            else:
                self._rider_of[index] = latest
        for inner in nested:
            latest = self._visit(inner, latest)
        return latest

    def _owns(self, layer: keras.Layer, weight: Any, created_trainable: bool) -> bool:
        rank = len(weight.shape)
        if self._every_kernel:
            return created_trainable and rank >= 2
        if isinstance(layer, _CONVOLUTIONS):
            return rank >= 3
        return created_trainable and rank in (4, 5)


def _graph_of(layer: Any) -> Any | None:
    """The functional graph behind a functional or built sequential model, else None."""
    if isinstance(layer, keras.Sequential):
        return layer._functional
    return layer if isinstance(layer, keras.Function) else None


def _latest(owners: Sequence[int | None]) -> int | None:
    return max((owner for owner in owners if owner is not None), default=None)


def _filter_axes(layer: keras.Layer, weight: Any) -> tuple[int, ...]:
    rank = len(weight.shape)
    if isinstance(layer, _TRANSPOSED):
        return (rank - 2,)
    if isinstance(layer, _DEPTHWISE):
        return (rank - 2, rank - 1)
    if isinstance(layer, _SEPARABLE) and weight is layer.depthwise_kernel:
        return (rank - 2, rank - 1)
    return (rank - 1,)


def _projection_shortcuts(model: keras.Model) -> dict[Any, Any]:
    """Shortcut convolutions of residual blocks -> the last convolution of their main branch.

    Where an addition joins a branch that holds exactly one convolution of its own with one that
    holds more, the lone convolution is a projection shortcut.
    """
    graph = _graph_of(model)
    if graph is None:
        raise UserError(
            f"grouping='authors' finds shortcuts in a model's graph; {model.name!r} is subclassed "
            "and has none."
        )
    upstream: dict[int, tuple[Any, ...]] = {}  # tensor -> the convolutions before it, in order
    shortcuts: dict[Any, Any] = {}
    for depth in sorted(graph._nodes_by_depth, reverse=True):
        for node in graph._nodes_by_depth[depth]:
            branches = [upstream.get(id(tensor), ()) for tensor in node.input_tensors]
            if isinstance(node.operation, keras.layers.Add) and len(branches) == 2:
                own = [[c for c in b if c not in o] for b, o in (branches, branches[::-1])]
                lone, main = sorted(own, key=len)
                if len(lone) == 1 < len(main):
                    shortcuts[lone[0]] = main[-1]
            joined = tuple(dict.fromkeys(layer for branch in branches for layer in branch))
            if isinstance(node.operation, _CONVOLUTIONS):
                joined = (*joined, node.operation)
            for tensor in node.output_tensors:
                upstream[id(tensor)] = joined
    return shortcuts


def _describe(weight: Any) -> tuple[str, tuple[int, ...], str]:
    return weight.path, tuple(weight.shape), keras.backend.standardize_dtype(weight.dtype)


def _joined(layers: list[list[str]], width: int = 92) -> list[list[str]]:
    """Consecutive layers' paths put on one line as long as they fit."""
    lines: list[list[str]] = []
    for paths in layers:
        if lines and len(", ".join([*lines[-1], *paths])) <= width:
            lines[-1].extend(paths)
        else:
            lines.append(list(paths))
    return lines
