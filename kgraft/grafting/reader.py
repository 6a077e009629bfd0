"""Walks a model once and assigns each weight to the kernel that it rides with."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras

from kgraft.convolutions import CONVOLUTIONS
from kgraft.grafting.graph import Shortcuts, is_chain, residual_branches
from kgraft.grafting.layer_kinds import (
    ATTENTION,
    Kind,
    filter_axes,
    is_block,
    kind_of,
)
from kgraft.keras_private import flat_layers, graph_of, nodes_of


@dataclass(frozen=True)
class Owner:
    """A kernel that others ride with, or would if it were not frozen.

    Attributes:
        kernel: its index in `model.weights`.
        filter_axes: its axes that count the filters.
        kind: a convolution's or a dense kernel.
        rides_with: which owner takes the riders: itself, or the latest before it that is not
            frozen; None if there is none.
    """

    kernel: int
    filter_axes: tuple[int, ...]
    kind: Kind
    rides_with: int | None


class Reader:
    """Follows the calls of a model's graph; of layers without one, the order of what is in them.

    Owners are counted in the order in which they are met, so that the later of two is the larger.

    Args:
        model: a built model.
        frozen: indices of weights that belong to no group.
        authors: group as the authors' code does.
        every_kernel: every trainable weight of rank 2 and more owns a coefficient, for models
            whose layers are all unknown.
    """

    def __init__(
        self,
        model: keras.Model,
        frozen: frozenset[int],
        *,
        authors: bool = False,
        every_kernel: bool = False,
    ) -> None:
        self._index = {id(weight): i for i, weight in enumerate(model.weights)}
        self._frozen = frozen
        self._every_kernel = every_kernel
        self._shortcuts = Shortcuts(model) if authors else None
        self._convolutions_and_norms_only = authors and _is_plain_cnn(model)
        self._owners: list[Owner] = []
        self._rider_of: dict[int, int] = {}  # weight -> its owner
        self._assigned: set[int] = set()  # layers that have been met
        self._last_of: dict[int, int] = {}  # layer -> its last owner
        self._waiting: list[int] = []  # weights that come before any owner
        self._stands_for: dict[int, Any] = {}  # a shortcut -> the layer that it rides with
        self._visit(model, None, frozenset())

    @property
    def found(self) -> bool:
        """Whether any kernel owns a coefficient."""
        return any(owner.rides_with == n for n, owner in enumerate(self._owners))

    @property
    def found_frozen(self) -> bool:
        """Whether any kernel would own one if it were not frozen."""
        return bool(self._owners)

    def groups(self) -> list[tuple[Owner, tuple[int, ...]]]:
        """Each owner with the indices of all weights that share its coefficient."""
        members: dict[int, list[int]] = {
            n: []
            for n, owner in enumerate(self._owners)
            if owner.rides_with == n and self._resolved(n) == n
        }
        members[min(members)].extend(self._waiting)
        for weight, owner in self._rider_of.items():
            members[self._resolved(owner)].append(weight)
        return [(self._owners[n], tuple(sorted(riders))) for n, riders in members.items()]

    def _resolved(self, owner: int) -> int:
        """The owner itself, or the convolution which a shortcut rides with."""
        if owner not in self._stands_for:
            return owner
        main = self._last_of[id(self._stands_for[owner])]
        return main if self._owners[main].rides_with == main else owner

    def _visit(self, layer: Any, incoming: int | None, outside: frozenset[int]) -> int | None:
        """Assign a layer's weights at one of its calls.

        Args:
            layer: a layer, or an operation, which has none.
            incoming: the latest owner before it.
            outside: owners before it that are in no block with it.

        Returns:
            The latest owner for what follows: its own last one, or else the one that came in.
        """
        if not isinstance(layer, keras.Layer):
            return incoming
        graph = graph_of(layer)
        if graph is not None:
            return self._walk(graph, incoming, outside)
        return self._visit_layer(layer, incoming, outside)

    def _walk(self, graph: Any, incoming: int | None, outside: frozenset[int]) -> int | None:
        branches = residual_branches(graph)
        met_at: dict[int, int] = {}  # owner -> the place of the call that it was met at
        latest_of: dict[int, int | None] = {}
        for place, node in enumerate(nodes_of(graph)):
            layer = node.operation
            before = _latest([latest_of.get(id(t), incoming) for t in node.input_tensors])
            before = _latest([before, incoming])
            branch = next((branch for branch in branches if place in branch), None)
            around = outside
            if branch is not None:
                around = self._all_but({n for n, at in met_at.items() if at in branch})
            elif _is_opaque(layer) and not isinstance(layer, ATTENTION) and is_block(layer):
                around = self._all_but(set())
            first = len(self._owners)
            latest = self._visit(layer, before, around)
            met_at.update(dict.fromkeys(range(first, len(self._owners)), place))
            if self._shortcuts is not None and id(node) in self._shortcuts.leading:
                latest = self._last_of.get(id(self._shortcuts.leading[id(node)]), latest)
            for tensor in node.output_tensors:
                latest_of[id(tensor)] = latest
        return _latest([latest_of.get(id(tensor)) for tensor in graph.outputs] + [incoming])

    def _visit_layer(
        self, layer: keras.Layer, incoming: int | None, outside: frozenset[int]
    ) -> int | None:
        nested = list(layer._flatten_layers(include_self=False, recursive=False))
        if id(layer) not in self._assigned:
            self._assigned.add(id(layer))
            self._assign(layer, nested, incoming, outside)
        latest = self._last_of.get(id(layer), incoming)
        for inner in nested:
            # a model is a sequence of blocks; attention in any other layer is part of a block
            apart = isinstance(layer, keras.Model) or not isinstance(inner, ATTENTION)
            around = self._all_but(set()) if apart and is_block(inner) else outside
            latest = self._visit(inner, latest, around)
        return latest

    def _assign(
        self,
        layer: keras.Layer,
        nested: Sequence[keras.Layer],
        incoming: int | None,
        outside: frozenset[int],
    ) -> None:
        theirs = {id(weight) for inner in nested for weight in inner.weights}
        to_train = {id(weight) for weight in layer._trainable_variables}
        latest = incoming
        for weight in layer.weights:
            if id(weight) in theirs or id(weight) not in self._index:
                continue
            index = self._index[id(weight)]
            if index in self._rider_of or not keras.backend.is_float_dtype(weight.dtype):
                continue
            kind = self._kind(layer, weight, id(weight) in to_train)
            if kind is not None and not self._rides(kind, latest, outside):
                frozen = index in self._frozen
                own = self._carrier(latest) if frozen else len(self._owners)
                self._owners.append(Owner(index, filter_axes(layer, weight), kind, own))
                latest = self._last_of[id(layer)] = len(self._owners) - 1
                if self._shortcuts is not None and layer in self._shortcuts.riding:
                    self._stands_for[latest] = self._shortcuts.riding[layer]
            if index in self._frozen or self._left_alone(layer, kind):
                continue
            carrier = self._carrier(latest)
            if carrier is None:
                self._waiting.append(index)
            else:
                self._rider_of[index] = carrier

    def _kind(self, layer: keras.Layer, weight: Any, to_train: bool) -> Kind | None:
        if self._every_kernel:
            return "dense" if to_train and len(weight.shape) >= 2 else None
        kind = kind_of(layer, weight, to_train)
        return None if self._convolutions_and_norms_only and kind == "dense" else kind

    def _rides(self, kind: Kind, latest: int | None, outside: frozenset[int]) -> bool:
        """Whether a kernel rides: a dense one, with a convolution before it in its block."""
        if kind == "convolution" or latest is None or latest in outside:
            return False
        owner = self._owners[latest]
        return owner.kind == "convolution" and owner.rides_with == latest

    def _carrier(self, latest: int | None) -> int | None:
        """Who takes the riders that come after an owner, or after none."""
        own = None if latest is None else self._owners[latest].rides_with
        if own is not None:
            return own
        return max((n for n, o in enumerate(self._owners) if o.rides_with == n), default=None)

    def _left_alone(self, layer: keras.Layer, kind: Kind | None) -> bool:
        if not self._convolutions_and_norms_only:
            return False
        return kind is None and not isinstance(layer, keras.layers.BatchNormalization)

    def _all_but(self, inside: set[int]) -> frozenset[int]:
        return frozenset(n for n in range(len(self._owners)) if n not in inside)


def _is_opaque(layer: Any) -> bool:
    return isinstance(layer, keras.Layer) and graph_of(layer) is None


def _is_plain_cnn(model: keras.Model) -> bool:
    return is_chain(model) and any(isinstance(layer, CONVOLUTIONS) for layer in flat_layers(model))


def _latest(owners: Sequence[int | None]) -> int | None:
    return max((owner for owner in owners if owner is not None), default=None)
