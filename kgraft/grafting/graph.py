"""What a model's graph says of its blocks: residual branches, shortcuts, plain chains."""

from collections.abc import Sequence
from typing import Any

import keras

from kgraft.convolutions import CONVOLUTIONS
from kgraft.errors import UserError
from kgraft.keras_private import flat_layers, graph_of, nodes_of

_PADDINGS = (
    keras.layers.ZeroPadding1D,
    keras.layers.ZeroPadding2D,
    keras.layers.ZeroPadding3D,
)


def residual_branches(graph: Any) -> list[frozenset[int]]:
    """The branches that are added to what they branch off, the smallest first.

    A branch is given as the places of its calls in `nodes_of`.

    An addition joins a branch where one of its inputs feeds the other. In `(x + f(x)) + g(x)`, the
    parallel form, both branches off x are found.

    Args:
        graph: a functional graph.
    """
    nodes = nodes_of(graph)
    place = {id(tensor): n for n, node in enumerate(nodes) for tensor in node.output_tensors}
    branches = set()
    for node in nodes:
        if not _adds(node):
            continue
        parts = list(node.input_tensors)
        for tensor in node.input_tensors:
            made_by = nodes[place[id(tensor)]] if id(tensor) in place else None
            if made_by is not None and _adds(made_by):
                parts.extend(made_by.input_tensors)
        for trunk in parts:
            for end in node.input_tensors:
                if id(trunk) in place and id(end) in place and trunk is not end:
                    first, last = place[id(trunk)] + 1, place[id(end)] + 1
                    branches.add(_between(nodes, range(first, last), id(trunk), id(end)))
    return sorted(branches - {frozenset()}, key=lambda branch: (len(branch), sorted(branch)))


def is_chain(model: keras.Model) -> bool:
    """Whether a model is one chain of layers, nowhere split and nowhere joined.

    Args:
        model: any model; one without a graph is none.
    """
    graph = graph_of(model)
    if graph is None or len(graph.outputs) != 1:
        return False
    for node in nodes_of(graph):
        operation = node.operation
        if len(node.input_tensors) > 1:
            return False
        nested = isinstance(operation, keras.Layer) and len(flat_layers(operation)) > 1
        if nested and not is_chain(operation):
            return False
    return True


class Shortcuts:
    """Convolutions on the shortcuts of residual blocks, as the authors' code names and orders them.

    Where an addition joins a branch that holds exactly one convolution of its own with one that
    holds more, the lone convolution is a projection shortcut. In their ResNets and MobileNetV2 no
    shortcut's key contains "conv", and it comes last in its block: it rides with the block's last
    convolution. In their pre-activation networks (WRN) the shortcut is a bare convolution that
    reads what the block's first one reads, and its key does contain "conv": it owns a coefficient,
    and what comes after the block rides with it.

    Attributes:
        riding: shortcut convolution -> the convolution that it rides with.
        leading: id of the node of an addition -> the bare shortcut convolution that ends the block.
    """

    def __init__(self, model: keras.Model) -> None:
        graph = graph_of(model)
        if graph is None:
            raise UserError(
                f"grouping='authors' finds shortcuts in a model's graph; {model.name!r} is "
                "subclassed and has none."
            )
        self.riding: dict[Any, Any] = {}
        self.leading: dict[int, Any] = {}
        upstream: dict[int, tuple[Any, ...]] = {}  # tensor -> the convolutions before it, in order
        reads: dict[Any, int] = {}  # convolution -> the tensor that it reads
        unpadded: dict[int, int] = {}  # padded tensor -> the tensor before
        made_by: dict[int, Any] = {}
        for node in nodes_of(graph):
            branches = [upstream.get(id(tensor), ()) for tensor in node.input_tensors]
            if isinstance(node.operation, keras.layers.Add) and len(branches) == 2:
                lone, main = sorted(_own_parts(*branches), key=len)
                if len(lone) == 1 < len(main):
                    (shortcut,) = lone
                    bare = shortcut in [made_by.get(id(t)) for t in node.input_tensors]
                    if bare and reads[shortcut] == reads[main[0]]:
                        self.leading[id(node)] = shortcut
                    else:
                        self.riding[shortcut] = main[-1]
            joined = tuple(dict.fromkeys(layer for branch in branches for layer in branch))
            if isinstance(node.operation, CONVOLUTIONS):
                joined = (*joined, node.operation)
                read = id(node.input_tensors[0])
                reads[node.operation] = unpadded.get(read, read)
            elif isinstance(node.operation, _PADDINGS):
                unpadded[id(node.output_tensors[0])] = id(node.input_tensors[0])
            for tensor in node.output_tensors:
                upstream[id(tensor)] = joined
                made_by[id(tensor)] = node.operation


def _own_parts(first: Sequence[Any], second: Sequence[Any]) -> list[list[Any]]:
    shared = set(first) & set(second)
    return [[c for c in first if c not in shared], [c for c in second if c not in shared]]


def _adds(node: Any) -> bool:
    """Whether a call adds tensors: the layer's, or that of the operator, which has no public name.

    A constant summand is no tensor of the graph.
    """
    operation = node.operation
    adds = isinstance(operation, keras.layers.Add) or type(operation).__name__ == "Add"
    return adds and len(node.input_tensors) > 1


def _between(nodes: Sequence[Any], within: range, start: int, end: int) -> frozenset[int]:
    """Places of the calls on all ways from one tensor to another, empty if there is none."""
    reached, ahead = {start}, []
    for place in within:
        if any(id(tensor) in reached for tensor in nodes[place].input_tensors):
            reached.update(id(tensor) for tensor in nodes[place].output_tensors)
            ahead.append(place)
    needed, between = {end}, set()
    for place in reversed(ahead):
        if any(id(tensor) in needed for tensor in nodes[place].output_tensors):
            needed.update(id(tensor) for tensor in nodes[place].input_tensors)
            between.add(place)
    return frozenset(between) if start in needed else frozenset()
