"""A trace: one native step as the list of what it does to tensors, without Python.

Stands between `traced_steps`, which makes, checks and plays it, and `cuda_graph` and `one_launch`,
which make one launch of it. `make_fx` writes down every operation of a real step, backward pass and
optimizer included, and with it the variables that it reads and changes in place. Playing the list
back is the next step.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from keras import tree
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_ASKED = "what the step does depends on the value of a tensor"
_FACTORIES = ("aten.scalar_tensor", "aten.full", "aten.zeros", "aten.ones", "aten.arange")


class Trace:
    """A step for batches of one form, as it was when it was traced.

    Args:
        step: takes a batch, answers with nested tensors; is taken once.
        batch: nested tensors and Nones.

    Raises:
        RuntimeError: the step asks for a tensor's value; it may have been taken in part.
    """

    def __init__(self, step: Callable[[Any], Any], batch: Any) -> None:
        answers: list[Any] = []
        watch = _Watch()

        def flat_step(*tensors: torch.Tensor) -> list[torch.Tensor]:
            given = iter(tensors)
            parts = tree.map_structure(lambda part: None if part is None else next(given), batch)
            with watch, watch.questions:
                answers.append(step(parts))
            return _visited(answers[0])

        try:
            # the backward pass in this thread: a GPU's own would write nothing down
            with torch.autograd.set_multithreading_enabled(False):
                program = make_fx(flat_step)(*tensors_of(batch))
        except Exception as error:
            if watch.questions.asked:  # Keras wraps what it is told in its own words
                raise RuntimeError(_ASKED) from error
            raise
        self._program = without_constants(program)
        self._answers = tree.map_structure(lambda part: part is None, answers[0])

    def __call__(self, tensors: Sequence[torch.Tensor]) -> Any:
        """Take the next step.

        Args:
            tensors: what `tensors_of` finds in the batch.
        """
        with torch.no_grad():
            found = iter(self._program(*tensors))
        return tree.map_structure(lambda none: None if none else next(found), self._answers)

    def objection(self, tensors: Sequence[torch.Tensor]) -> str:
        """Why the step is not the same operations on the same addresses every time; takes a step.

        Args:
            tensors: see `__call__`.

        Returns:
            The first operation that has something on another device than the batch, asks what a
            tensor holds, or makes tensors whose shapes depend on it; empty where there is none.
        """
        look = _Look(self._program, tensors[0].device)
        with torch.no_grad():
            look.run(*tensors)
        return look.objection


class _Look(fx.Interpreter):
    """Plays a program, and notes the first operation that no graph of a device can take."""

    def __init__(self, program: fx.GraphModule, device: torch.device) -> None:
        super().__init__(program)
        self._device, self.objection = device, ""

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if not self.objection and n.op != "output":
            self.objection = self._of(n, value)
        return value

    def _of(self, node: fx.Node, value: Any) -> str:
        found = [part for part in tree.flatten(value) if isinstance(part, torch.Tensor)]
        elsewhere = [str(part.device) for part in found if part.device != self._device]
        if elsewhere:
            return f"{node.target} has a value on {elsewhere[0]}"
        tags = getattr(node.target, "tags", ())
        if torch.Tag.data_dependent_output in tags or torch.Tag.dynamic_output_shape in tags:
            return f"{node.target} depends on what a tensor holds"
        return ""


class _Watch(TorchDispatchMode):
    """Keeps two things from a trace that would make it another step.

    Python is not told the value of a tensor: the trace would repeat the answer for ever. And
    tensors made of Python numbers are handed out as copies, not as what `make_fx` takes for
    constants: what it meets with constants and variables only, e.g. decoupled weight decay, it
    takes for constant too, and computes a second time, in place.
    """

    def __init__(self) -> None:
        super().__init__()
        self.questions = _Questions()

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if operation in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default):
            self.questions.refuse()
        if operation is torch.ops.aten.lift_fresh.default:
            return torch.ops.aten.clone.default(args[0])
        return operation(*args, **(kwargs or {}))


class _Questions(TorchFunctionMode):
    """Refuses to hand out tensors as arrays and lists, which is no operation on tensors."""

    asked = False

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function in (torch.Tensor.numpy, torch.Tensor.__array__, torch.Tensor.tolist):
            self.refuse()
        return function(*args, **(kwargs or {}))

    def refuse(self) -> None:
        """Remember that somebody asked, and end the step."""
        self.asked = True
        raise RuntimeError(_ASKED)


def tensors_of(batch: Any) -> list[torch.Tensor]:
    """The tensors of a batch, or of what a step answers, in order."""
    return [part for part in tree.flatten(batch) if part is not None]


def _visited(nest: Any) -> list[torch.Tensor]:
    """The tensors of a nest in the order of `tree.map_structure`; `tree.flatten` sorts keys."""
    found: list[torch.Tensor] = []
    tree.map_structure(lambda part: None if part is None else found.append(part), nest)
    return found


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
