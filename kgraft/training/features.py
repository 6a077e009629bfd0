"""Features of inner layers beside a model's logits, for `keras.distillation` losses."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from kgraft.engines.backends import BACKEND
from kgraft.errors import UserError, told
from kgraft.keras_private import graph_of, nodes_of


def checked_losses(losses: Any) -> tuple[keras.distillation.FeatureDistillation, ...]:
    """Losses between features.

    Args:
        losses: what was given.

    Raises:
        UserError: it is no list, or one with something else.
    """
    if not isinstance(losses, list | tuple):
        raise UserError(
            f"feature_losses is {told(losses)}: expected a list of "
            "keras.distillation.FeatureDistillation."
        )
    for loss in losses:
        if not isinstance(loss, keras.distillation.FeatureDistillation):
            raise UserError(
                f"feature_losses holds {told(loss)}: expected "
                "keras.distillation.FeatureDistillation."
            )
    return tuple(losses)


class Taps:
    """A functional model that also gives what some of its layers say; no layer itself.

    Args:
        model: a functional model.
        layers: names of its layers; None for its output.
        name: what to call the model in an error.

    Raises:
        UserError: the model has no graph or no such layer.
    """

    def __init__(self, model: Any, layers: Sequence[str | None], name: str) -> None:
        graph = graph_of(model)
        if graph is None:
            raise UserError(
                f"{name} is subclassed: features can be taken from functional models only."
            )
        # not `layer.output`: a layer that was called elsewhere too says another graph's there
        known = {node.operation.name: node.outputs[0] for node in reversed(nodes_of(graph))}
        for layer in layers:
            if layer is not None and layer not in known:
                raise UserError(f"{name} has no layer {layer!r}; it has {', '.join(known)}.")
        output = graph.outputs[0]
        features = [output if layer is None else known[layer] for layer in layers]
        inputs = graph.inputs
        self._model = keras.Model(inputs[0] if len(inputs) == 1 else inputs, [output, *features])

    def __call__(self, inputs: Any, *, training: bool) -> tuple[Any, list[Any]]:
        """Logits and features of a batch."""
        logits, *features = self._model(inputs, training=training)
        return logits, features


class FeatureLosses:
    """Losses between features of a student and of M teachers, summed, the teachers' mean.

    Args:
        student: a functional model.
        teachers: M functional models.
        losses: of `keras.distillation`, with the layers' names.

    Raises:
        UserError: a model without a graph, or a layer that there is not; see `checked_losses`.
    """

    def __init__(
        self,
        student: keras.Model,
        teachers: Sequence[keras.Model],
        losses: Sequence[keras.distillation.DistillationLoss],
    ) -> None:
        self._losses = checked_losses(losses)
        own = [loss.student_layer_name for loss in losses]
        theirs = [loss.teacher_layer_name for loss in losses]
        self._student = Taps(student, own, f"student {student.name!r}")
        self._teachers = [
            Taps(teacher, theirs, f"teacher {m} ({teacher.name!r})")
            for m, teacher in enumerate(teachers, start=1)
        ]
        self._seen: list[Any] | None = None

    def student(self, inputs: Any) -> Any:
        """The student's logits in training; its features are kept for `of`."""
        logits, self._seen = self._student(inputs, training=True)
        return logits

    def of(self, inputs: Any) -> tuple[Any, list[Any]]:
        """The loss between the features that were kept and the teachers'.

        Args:
            inputs: the batch that `student` was called with.

        Returns:
            Scalar loss, and every teacher's logits.
        """
        features, self._seen = self._seen, None
        if features is None:
            raise RuntimeError("the student was not called before its features were compared")
        total: Any = 0.0
        logits = []
        for teacher in self._teachers:
            with BACKEND.without_gradients():
                told, theirs = teacher(inputs, training=False)
            logits.append(told)
            for loss, own, other in zip(self._losses, features, theirs, strict=True):
                total = total + loss.compute_loss(ops.stop_gradient(other), own)
        return total / len(self._teachers), logits
