"""GraftPlan: which weights of a model share one coefficient, read from its graph."""

from dataclasses import dataclass, field
from typing import Any, Literal

import keras
import numpy as np

from kgraft.errors import UserError
from kgraft.grafting.layer_kinds import frozen_weights
from kgraft.grafting.reader import Owner, Reader
from kgraft.settings import argument

Grouping = Literal["default", "authors"]


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

    Every convolution kernel owns a coefficient. So does every kernel of a dense, attention or
    recurrent layer, unless the latest kernel before it is a convolution's in the same block; then
    it rides with that. Biases, normalisation (running statistics included) and embeddings ride
    with the latest kernel before them; those that have none before them, an input's normalisation
    or embedding, with the model's first. What is before them follows from the calls in a functional
    model's graph, in a subclassed one from the order of its layers. Where branches are joined by
    anything but an addition, the latest kernel of all branches counts, that of the fewest calls
    from the outputs: a head behind the concatenation of a convolution's branch and a dense one owns
    a coefficient if that kernel is the dense one, and rides if it is the convolution's.

    A block is a residual branch: what lies between a tensor and the addition that joins it with
    what became of it. Outside of such branches it is the whole model: a CNN's classifier and its
    squeeze-excitations ride, an attention behind a convolutional stem does not. Where there is no
    graph, a layer that holds attention, or layer normalisation and dense layers but no
    convolution, is a block.

    Frozen weights (`trainable=False`) belong to no group, and what comes behind a frozen
    convolution does not ride with it. Nor do weights that are not floating point, seeds and
    optimizer state: none of these are blended.

    Attributes:
        groups: the groups, in layer order.
        weights: path, shape and dtype of every weight of the model, in the order of
            `model.weights`.
        frozen: indices in `model.weights` of the weights that were frozen when it was read.

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
    frozen: frozenset[int] = field(default=frozenset(), repr=False)

    @classmethod
    def of(
        cls, model: keras.Model, grouping: Grouping = "default", *, blend_frozen: bool = False
    ) -> "GraftPlan":
        """Read the plan of a built model, as it is now: which weights are frozen belongs to it.

        Args:
            model: any functional, sequential or subclassed Keras model with weights.
            grouping: `"default"`, or `"authors"`, which weights share a coefficient in the
                authors' code. Convolutions of projection shortcuts own none and ride with the
                block's last convolution (their ResNets, MobileNetV2), except for a bare one that
                reads what the block's first convolution reads: that one owns a coefficient, and
                what follows the block rides with it (their WRN). In a plain chain of layers
                (their VGG16) only kernels of convolutions and batch normalisation are blended:
                neither the convolutions' biases nor the classifier are.
            blend_frozen: let frozen weights take part as if they were not.

        Returns:
            The plan.

        Raises:
            UserError: it is no model, or not built, has no kernel, all of its kernels are frozen,
                `grouping` is unknown, or `"authors"` is asked of a model without a graph.
        """
        argument("model", model, keras.Model)
        argument("grouping", grouping, Grouping)
        argument("blend_frozen", blend_frozen, bool)
        if not model.weights:
            raise UserError(f"model {model.name!r} has no weights yet: build it before grafting.")
        frozen = frozen_weights(model)
        left = frozenset() if blend_frozen else frozen
        reader = Reader(model, left, authors=grouping == "authors")
        if not reader.found:
            reader = Reader(model, left, every_kernel=True)
        if not reader.found:
            what = "no kernel that could own a coefficient."
            if reader.found_frozen:
                what = "no kernel that trains: frozen weights (trainable=False) are left alone."
            raise UserError(f"model {model.name!r} has {what}")
        groups = [_group(model, owner, members) for owner, members in reader.groups()]
        return cls(tuple(groups), tuple(_describe(weight) for weight in model.weights), frozen)

    @property
    def blended(self) -> tuple[int, ...]:
        """Indices in `model.weights` of all weights of all groups, ascending."""
        return tuple(sorted(index for group in self.groups for index in group.members))

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
        if self.frozen != other.frozen:
            first = min(self.frozen ^ other.frozen)
            here, there = own_name, other_name
            if first in other.frozen:
                here, there = there, here
            raise UserError(
                f"{own_name} and {other_name} differ: {self.weights[first][0]} is frozen "
                f"(trainable=False) in {here} and trains in {there}."
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


def _group(model: keras.Model, owner: Owner, members: tuple[int, ...]) -> Group:
    kernel = model.weights[owner.kernel]
    return Group(kernel.path, owner.kernel, members, tuple(kernel.shape), owner.filter_axes)


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
