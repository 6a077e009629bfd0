"""Models that learn from predictions beside labels: what they must be, and their own loss.

A student under teachers and a peer of mutual learning are trained inside another model's step. Here
is what holds for both: their outputs are logits, the parts of a step that they have themselves are
called or refused, and their loss is the one that they would have alone.
"""

import inspect
from collections.abc import Iterable
from typing import Any

import keras

from kgraft.errors import UserError, told

_PROBABILITIES = ("softmax", "sigmoid")


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
    """Refuse a functional model whose outputs are probabilities, or several.

    Args:
        model: a model.
        name: what to call it in the error.

    Raises:
        UserError: names the layer.
    """
    operation: Any = model
    while isinstance(operation, keras.Model):
        try:
            outputs = operation.outputs
        except AttributeError:
            return
        if len(outputs) != 1:
            raise UserError(f"{name} has {len(outputs)} outputs: one tensor of logits is needed.")
        operation = outputs[0]._keras_history.operation
    activation = vars(operation).get("activation")
    found = (type(operation).__name__.lower(), getattr(activation, "__name__", None))
    for kind in _PROBABILITIES:
        if kind in found:
            raise UserError(
                f"{name} ends in a {kind} ({operation.name!r}): remove it, kgraft distils logits "
                "(and compile with from_logits=True)."
            )


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


def single(settings: Any) -> Any:
    """Compile settings of the one output, where they are given by its name."""
    if isinstance(settings, dict) and len(settings) == 1:
        return next(iter(settings.values()))
    return settings
