"""Inputs that a model does not take, told in one line: by every engine, in every kind of step."""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import keras

from kgraft.errors import UserError
from kgraft.keras_private import compute_output_spec, graph_of

Shape = tuple[Any, ...]


class Inputs:
    """What one model is given, step by step.

    Inputs that do not have the shapes of a functional model's own are put to Keras before the step,
    without numbers; where there is no graph, after a step that has failed. Keras decides: it takes
    more than was declared, e.g. images of another size. Shapes that have gone well are not looked
    at again.

    Args:
        model: a Keras model, built or not.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._known: set[Any] = set()

    @contextlib.contextmanager
    def checked(self, x: Any) -> Iterator[None]:
        """Refuse inputs that the model does not take before, or after, the block has met them.

        Args:
            x: a batch of inputs.

        Raises:
            UserError: says what was given, and what Keras says.
        """
        form = _form(x)
        if form not in self._known and self._differ(x):
            self._ask(x)
        try:
            yield
        except UserError:
            raise
        except Exception:
            self._ask(x)
            raise
        self._known.add(form)

    def _differ(self, x: Any) -> bool:
        graph = graph_of(self._model)
        if graph is None:
            return False
        given = keras.tree.flatten(x)
        return len(given) != len(graph.inputs) or not all(
            fits(getattr(part, "shape", ()), own.shape)
            for part, own in zip(given, graph.inputs, strict=True)
        )

    def _ask(self, x: Any) -> None:
        """Put shapes and types to Keras, as a fit does that builds a model."""
        symbols = keras.tree.map_structure(_symbol, x)
        try:
            compute_output_spec(self._model, symbols, training=False)
        except (ValueError, RuntimeError) as error:  # torch's own word for images too small
            graph = graph_of(self._model)
            expected = "" if graph is None else f" Expected {graph.input_shape}."
            given = keras.tree.map_structure(lambda part: (None, *_shape(part)[1:]), x)
            if graph is not None and given == graph.input_shape:
                return  # it is something else, which says more itself
            raise UserError(
                f"model {self._model.name!r} cannot take inputs of shape {given}: "
                f"{reason_of(error)}.{expected}"
            ) from error


def fits(shape: Shape, declared: Shape) -> bool:
    """Whether a batch has the shape of a graph's input, whatever its size.

    Args:
        shape: the batch's.
        declared: the input's, None for any length.
    """
    return len(shape) == len(declared) and all(
        wanted is None or wanted == side
        for side, wanted in zip(shape[1:], declared[1:], strict=True)
    )


def reason_of(error: Exception) -> str:
    """What Keras says in an error, in one line and without what it was called with."""
    said = re.findall(r"\x1b\[1m(.*?)\x1b\[0m", str(error), re.S) or [str(error)]
    line = " ".join(said[-1].split()).rstrip(".")
    return re.sub(r"(?<=for input) .* with name '.*' and path '.*?'", "", line)  # all its numbers


def _form(x: Any) -> Any:
    if hasattr(x, "shape"):
        return tuple(x.shape[1:])
    return tuple((path, tuple(_shape(part)[1:])) for path, part in keras.tree.flatten_with_path(x))


def _symbol(part: Any) -> Any:
    if part is None:
        return None
    return keras.KerasTensor(_shape(part), keras.backend.standardize_dtype(part.dtype))


def _shape(part: Any) -> Shape:
    return () if part is None else tuple(part.shape)
