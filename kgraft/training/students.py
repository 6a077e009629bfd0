"""Models that learn from predictions beside labels: what they must be, and their own loss.

A student under teachers and a peer of mutual learning are trained inside another model's step. Here
is what holds for both: their outputs are logits, the parts of a step that they have themselves are
called or refused, and their loss is the one that they would have alone.
"""

import inspect
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from kgraft.errors import UserError, told
from kgraft.keras_private import graph_of, nodes_of

_PROBABILITIES = ("softmax", "sigmoid")

# What hands probabilities on as probabilities: other shapes, other types, means of several.
_PASSING = (
    keras.layers.ActivityRegularization,
    keras.layers.Average,
    keras.layers.Dropout,
    keras.layers.Flatten,
    keras.layers.GlobalAveragePooling1D,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.GlobalAveragePooling3D,
    keras.layers.Identity,
    keras.layers.Permute,
    keras.layers.Reshape,
)
_PASSING_OPERATIONS = ("Cast", "ExpandDims", "GetItem", "Identity", "Ravel", "Reshape", "Squeeze")


def own_loss(
    student: Any,
    compiled_loss: Any,
    added: Iterable[Any],
    *,
    x: Any,
    y: Any,
    y_pred: Any,
    sample_weight: Any,
    training: bool,
) -> Any:
    """A student's `compute_loss`, which may be its own, inside another model's step.

    Args:
        student: a model.
        compiled_loss: what its `compute_loss` finds as the compiled loss.
        added: what the call that gave `y_pred` has added to the loss: `add_loss`, regularisers. On
            jax the student itself no longer knows, once the call is over.
        x: a batch of inputs.
        y: its targets.
        y_pred: the student's outputs for it.
        sample_weight: weights of the examples.
        training: whether it is a training step.

    Returns:
        Scalar loss.
    """
    attributes = vars(student)  # not through Keras' setattr, which would track what it is given
    before = attributes["_compile_loss"], attributes["_losses_override"]
    attributes["_compile_loss"], attributes["_losses_override"] = compiled_loss, list(added)
    try:
        return student._compute_loss(
            x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=training
        )
    finally:
        attributes["_compile_loss"], attributes["_losses_override"] = before


def check_steps(student: Any, name: str) -> None:
    """Refuse a student whose own training step or metrics would be passed over.

    Args:
        student: a model.
        name: what to call it in the error.

    Raises:
        UserError: it has a `train_step` or `compute_metrics` of its own.
    """
    for method in ("train_step", "compute_metrics"):
        if overrides(student, method):
            raise UserError(
                f"{name} has its own {method}(), which would not be called: teachers= and mutual= "
                "call a model's own compute_loss() only. Move what it does there, or train without "
                "them."
            )


def overrides(model: Any, method: str) -> bool:
    """Whether a model has a method of `keras.Model` itself, in its class or set on it."""
    return method in vars(model) or getattr(type(model), method) is not getattr(keras.Model, method)


def check_teachers(teachers: Any) -> None:
    """Refuse what is no list of trained models.

    Args:
        teachers: what was given as teachers.

    Raises:
        UserError: it is a model, is empty, or holds something else than built models.
    """
    if isinstance(teachers, keras.Model):
        raise UserError(f"teachers is a model: pass a list, teachers=[{teachers.name}].")
    if isinstance(teachers, str | type) or not isinstance(teachers, Iterable):
        raise UserError(f"teachers is {told(teachers)}: expected a list of trained models.")
    if not list(teachers):
        raise UserError("no teachers: a Distiller needs at least one.")
    for m, teacher in enumerate(teachers, start=1):
        if not isinstance(teacher, keras.Model):
            raise UserError(
                f"teacher {m} is {told(teacher)}: expected a trained model, e.g. what "
                "keras.models.load_model gives."
            )
        if not teacher.weights:
            raise UserError(
                f"teacher {m} ({teacher.name!r}) has no weights yet: train or load it first."
            )


def check_pair(student: keras.Model, teacher: keras.Model, name: str) -> None:
    """Refuse a teacher that a student cannot learn from.

    Args:
        student: a model.
        teacher: a built model.
        name: what to call the teacher in the error.

    Raises:
        UserError: it shares weights with the student, has other inputs or another number of
            classes, or gives probabilities.
    """
    own = {id(variable) for variable in student.variables}
    if own & {id(variable) for variable in teacher.variables}:
        raise UserError(f"{name} shares weights with student {student.name!r}.")
    check_logits(teacher, name)
    for what, learnt, taught in zip(
        ("inputs", "classes"), _signature(student), _signature(teacher), strict=True
    ):
        if not _fit(learnt, taught):
            raise UserError(
                f"{name} has {what} {taught}, student {student.name!r} has {what} {learnt}."
            )


def check_logits(model: keras.Model, name: str) -> None:
    """Refuse a model whose outputs are probabilities, or several.

    A functional model's graph says so, and a sequential one's layers, built or not; what a
    subclassed model's `call` and a `Lambda` layer do nobody can read.

    Args:
        model: a model.
        name: what to call it in the error.

    Raises:
        UserError: names the layer.
    """
    graph = graph_of(model)
    if graph is not None and len(graph.outputs) != 1:
        raise UserError(f"{name} has {len(graph.outputs)} outputs: one tensor of logits is needed.")
    if graph is not None and graph.outputs[0].shape[-1] == 1:
        raise UserError(f"{name} has one output: expected a logit a class, of two classes or more.")
    operation = _ending(model)
    if operation is None:
        return
    activation = getattr(operation, "activation", None)  # torch keeps layers elsewhere than vars
    found = (type(operation).__name__, type(activation).__name__, _name_of(activation))
    known = [part.lower() for part in found]
    for kind in _PROBABILITIES:
        if kind in known or (kind == "softmax" and _is_softmax(activation)):
            raise UserError(
                f"{name} ends in a {kind} ({operation.name!r}): remove it, kgraft distils logits "
                "(and compile with from_logits=True)."
            )


def _ending(model: Any, output: int = 0) -> Any:
    """The operation that an output of a model comes from, but for those that only pass it on.

    Args:
        model: a model, built or not.
        output: which one.

    Returns:
        None where nobody can tell.
    """
    graph = graph_of(model)
    if graph is None:
        layers = model.layers if isinstance(model, keras.Sequential) else ()
        found = (_within(layer) for layer in reversed(layers))
        return next((operation for operation in found if operation is not None), None)
    made_by = {id(tensor): node for node in nodes_of(graph) for tensor in node.output_tensors}
    tensor = graph.outputs[output]
    while (node := made_by[id(tensor)]).input_tensors:
        place = [*map(id, node.output_tensors)].index(id(tensor))
        operation = _within(node.operation, place)
        if operation is not None:
            return operation
        tensor = node.input_tensors[0]
    return None


def _within(operation: Any, output: int = 0) -> Any:
    """The last operation of an operation, which may be a model; None if it only passes on."""
    if isinstance(operation, keras.Sequential | keras.Function):
        return _ending(operation, output)
    if isinstance(operation, keras.layers.Activation):
        return None if operation.activation is keras.activations.linear else operation
    if isinstance(operation, keras.Layer):
        return None if isinstance(operation, _PASSING) else operation
    return None if type(operation).__name__ in _PASSING_OPERATIONS else operation


def _is_softmax(activation: Any) -> bool:
    """Whether a function of the user's own gives shares of one, by what it makes of 8 logits."""
    if not inspect.isfunction(activation) or activation.__module__.startswith("keras."):
        return False
    logits = np.random.default_rng(0).normal(0.0, 4.0, (8, 5)).astype("float32")
    try:
        shares = keras.ops.convert_to_numpy(activation(keras.ops.convert_to_tensor(logits)))
    except Exception:  # what it does not take says nothing about what it gives
        return False
    shape = np.shape(shares)
    return shape == logits.shape and bool(
        np.all(shares >= 0) and np.allclose(np.sum(shares, axis=-1), 1.0, atol=1e-4)
    )


def _name_of(activation: Any) -> str:
    return activation.__name__ if inspect.isroutine(activation) else ""


def check_loss(loss: Any, name: str) -> None:
    """Refuse a compiled loss that takes a student's logits for probabilities.

    Args:
        loss: what a model was compiled with.
        name: what to call the model in the error.

    Raises:
        UserError: a loss in it has `from_logits` and it is False.
    """
    for part in keras.tree.flatten(loss):
        if _takes_probabilities(part):
            said = part if isinstance(part, str) else getattr(part, "name", None) or part.__name__
            raise UserError(
                f"{name} is compiled with {said!r}, whose from_logits is False, and kgraft distils "
                "logits: compile it with from_logits=True, e.g. "
                "keras.losses.SparseCategoricalCrossentropy(from_logits=True)."
            )


def _takes_probabilities(loss: Any) -> bool:
    if isinstance(loss, str):
        try:
            loss = keras.losses.get(loss)
        except ValueError:  # compile() has a better word for it
            return False
    if isinstance(loss, keras.losses.Loss):
        return vars(loss).get("from_logits") is False
    if not inspect.isroutine(loss):
        return False
    parameter = inspect.signature(loss).parameters.get("from_logits")
    return parameter is not None and parameter.default is False


def _signature(model: keras.Model) -> tuple[Any, Any]:
    """Shapes of the inputs without the batch, and the number of classes; None where unknown."""
    try:
        inputs, outputs = model.inputs, model.outputs
    except AttributeError:  # a subclassed model has no symbolic tensors
        return None, None
    return [tensor.shape[1:] for tensor in inputs], outputs[0].shape[-1]


def _fit(own: Any, other: Any) -> bool:
    """Whether two shapes may be equal, None standing for anything."""
    if own is None or other is None:
        return True
    if isinstance(own, list | tuple):
        return len(own) == len(other) and all(map(_fit, own, other))
    return own == other


def compile_as(model: Any, student: Any, settings: dict[str, Any] | None = None) -> None:
    """Compile a model around a student with the optimizer and the loss of that, the objects.

    Args:
        model: trains the student in its own step.
        student: a compiled model.
        settings: what else it is compiled with; the student's by default, its metrics made anew.

    Raises:
        UserError: its metrics cannot be made anew.
    """
    if settings is None:
        told = student.get_compile_config()
        told.pop("optimizer")
        told.pop("loss")
        try:
            settings = keras.saving.deserialize_keras_object(told)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"a metric of student {student.name!r} cannot be made anew: register it with "
                f"keras.saving.register_keras_serializable, or compile a {type(model).__name__} "
                "yourself."
            ) from error
        settings |= {"loss": student.loss, "run_eagerly": student.run_eagerly}
    model.compile(
        **{
            **settings,
            "optimizer": student.optimizer,
            "metrics": single(settings.get("metrics")),
            "weighted_metrics": single(settings.get("weighted_metrics")),
            "auto_scale_loss": False,  # its student's compile() has settled that
        }
    )
    model._compile_loss = student._compile_loss


def single(settings: Any) -> Any:
    """Compile settings of the one output, where they are given by its name."""
    if isinstance(settings, dict) and len(settings) == 1:
        return next(iter(settings.values()))
    return settings
