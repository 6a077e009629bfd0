"""One training step as the list of what it does to tensors, without the Python around it.

Stands between a step of `native_steps`, which it writes down, and its playing by `traced_steps`.

`make_fx` writes down every operation of a real step, backward pass and optimizer included, and with
it the variables that it reads and changes in place. Playing the list back is the next step.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from keras import tree
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from kgraft.engines.eager import Logs

_ASKED = "what the step does depends on the value of a tensor"
_ROUNDING = {True: 1e-5, False: 1e-3}  # on a CPU; a GPU adds gradients in any order
_FACTORIES = ("aten.scalar_tensor", "aten.full", "aten.zeros", "aten.ones", "aten.arange")


class Trace:
    """A step for batches of one form, as it was when it was traced.

    Tracing takes the step, but not as it should: `make_fx` runs an in-place list operation without
    a result, such as decoupled weight decay, a second time to see whether it is a constant. Whoever
    traces puts the state back.

    Args:
        step: takes a batch, answers with metrics.
        batch: nested tensors and Nones.

    Raises:
        RuntimeError: the step asks for a tensor's value; it may have been taken in part.
    """

    def __init__(self, step: Callable[[Any], Logs], batch: Any) -> None:
        answers: list[Logs] = []
        questions = _NoQuestions()

        def flat_step(*tensors: torch.Tensor) -> list[torch.Tensor]:
            given = iter(tensors)
            parts = tree.map_structure(lambda part: None if part is None else next(given), batch)
            with questions:
                answers.append(step(parts))
            return list(answers[0].values())

        try:
            program = make_fx(flat_step)(*tensors_of(batch))
        except Exception as error:
            if questions.asked:  # Keras wraps what it is told in its own words
                raise RuntimeError(_ASKED) from error
            raise
        self._program = without_constants(program)
        self._names = list(answers[0])

    def __call__(self, tensors: Sequence[torch.Tensor]) -> Logs:
        """Take the next step.

        Args:
            tensors: what `tensors_of` finds in the batch.
        """
        with torch.no_grad():
            return dict(zip(self._names, self._program(*tensors), strict=True))


class _NoQuestions(TorchDispatchMode):
    """Refuses to tell Python the value of a tensor: a trace would repeat the answer for ever."""

    asked = False

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if operation in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default):
            self.asked = True
            raise RuntimeError(_ASKED)
        return operation(*args, **(kwargs or {}))


def copies(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """What some tensors hold now."""
    return [tensor.detach().clone() for tensor in tensors]


def agree(
    found: Sequence[torch.Tensor],
    expected: Sequence[torch.Tensor],
    before: Sequence[torch.Tensor] | None,
) -> bool:
    """Whether two ways to take a step came to the same numbers, but for rounding.

    Args:
        found: one tensor a variable, after the one.
        expected: after the other.
        before: before either, for what is floating point; None for the size of `expected`.

    Returns:
        False also where a number is not finite.
    """
    for own, other, old in zip(found, expected, before or expected, strict=True):
        if own.shape != other.shape:
            return False
        if not other.is_floating_point():
            if not torch.equal(own, other):
                return False
            continue
        change = other.double() - (0 if old is other else old.double())
        rounding = 2 * torch.finfo(other.dtype).eps * other.double().norm()
        limit = _ROUNDING[other.device.type == "cpu"] * change.norm() + rounding
        if not bool((own.double() - other.double()).norm() <= limit):  # NaN is never
            return False
    return True


def tensors_of(batch: Any) -> list[torch.Tensor]:
    """The tensors of a batch, in order."""
    return [part for part in tree.flatten(batch) if part is not None]


def without_constants(program: fx.GraphModule) -> fx.GraphModule:
    """A traced program that no longer computes what is the same every time.

    Keras makes tensors of Python numbers, and carries them to the device, at every step.

    Args:
        program: what `make_fx` gave; is changed.
    """
    graph = program.graph
    roots = _roots(graph)
    changed = {
        roots[argument]
        for node in graph.nodes
        for argument, alias in _aliases(node)
        if alias is not None and alias.is_write
    }
    known: dict[fx.Node, torch.Tensor] = {}
    for node in list(graph.nodes):
        if node.op == "get_attr" and str(node.target).startswith("_tensor_constant"):
            if roots[node] not in changed:
                known[node] = getattr(program, str(node.target))
        elif node.op == "call_function" and roots[node] not in changed and _is_fixed(node, known):
            arguments, options = fx.map_arg((node.args, node.kwargs), known.__getitem__)
            with torch.no_grad():
                known[node] = node.target(*arguments, **options)
    names = (f"_known{number}" for number in itertools.count())
    for node, value in known.items():
        if node.op == "call_function" and any(reader not in known for reader in node.users):
            name = next(names)
            program.register_buffer(name, value)
            with graph.inserting_before(node):
                node.replace_all_uses_with(graph.get_attr(name))
    graph.eliminate_dead_code()
    program.recompile()
    return program


def _is_fixed(node: fx.Node, known: dict[fx.Node, torch.Tensor]) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    inputs = node.all_input_nodes
    schema = node.target._schema
    return (
        not schema.is_mutable
        and torch.Tag.nondeterministic_seeded not in node.target.tags
        and len(schema.returns) == 1
        and all(source in known for source in inputs)
        and (bool(inputs) or str(node.target).startswith(_FACTORIES))
    )


def _roots(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """For each node the one whose memory it is a view of, or itself."""
    first: dict[Any, fx.Node] = {}
    roots: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            roots[node] = first.setdefault(node.target, node)
            continue
        shared = [argument for argument, alias in _aliases(node) if alias is not None]
        roots[node] = roots[shared[0]] if shared else node
    return roots


def _aliases(node: fx.Node) -> list[tuple[fx.Node, Any]]:
    """Every node among the arguments, and how the operation shares its memory, None for not."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return [(source, None) for source in node.all_input_nodes]
    found = []
    for place, argument in enumerate(node.target._schema.arguments):
        given = node.args[place] if place < len(node.args) else node.kwargs.get(argument.name)
        fx.map_arg(given, lambda source, a=argument: found.append((source, a.alias_info)))
    return found
