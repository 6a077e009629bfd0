"""Distiller: a student that learns from labels and from the mean of M teachers (grafting+).

Eq. 8-12 of Cheng, Meng et al., arXiv 2004.12311v2: loss = CE(y, p_s) + KD. `DistillationLoss` is
KD's mean over the batch as a Keras loss, `Distiller` the sum of both as a model.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
from keras import ops

from kgraft.engines.backends import BACKEND
from kgraft.equations import mean_probabilities
from kgraft.errors import UserError
from kgraft.settings import argument
from kgraft.training.distillation_loss import DistillationLoss
from kgraft.training.features import FeatureLosses, checked_losses
from kgraft.training.students import (
    check_logits,
    check_loss,
    check_pair,
    check_steps,
    check_teachers,
    compile_as,
    overrides,
    own_loss,
)


class Taught(NamedTuple):
    """Targets of a batch whose teachers have been asked already.

    Attributes:
        targets: what the student would be trained on without teachers.
        probabilities: the teachers' mean probabilities at the Distiller's temperature,
            `(batch, classes)`.
    """

    targets: Any
    probabilities: Any


def untaught(batch: tuple[Any, ...]) -> tuple[Any, ...]:
    """A batch with plain targets, whether its teachers have been asked or not.

    Args:
        batch: `(x, y)` or `(x, y, sample_weight)`.
    """
    x, y, *weights = batch
    return (x, y.targets if isinstance(y, Taught) else y, *weights)


@keras.saving.register_keras_serializable("kgraft")
class Distiller(keras.Model):
    """A student in training under M teachers: loss = c CE + w KD (eq. 8-12, where c = w = 1).

    CE is what the Distiller is compiled with, regularisers of the student included; KD is
    `DistillationLoss`. The two are summed as in the paper (`keras.distillation` mixes them).
    The model's outputs are the student's, and training moves only the student's weights:
    `distiller.student` is the trained model.

    Every training batch passes once through every teacher, in inference mode and without
    gradients; where its targets are `Taught`, through none. `evaluate`, `predict` and validation
    do not run the teachers: there the loss is the student's own, and the metrics are those that
    `student.evaluate` would give. Training also logs `student_loss` (CE) and `distillation_loss`
    (KD); `loss` is c CE + w KD, and
    what `feature_losses` add.

    Teachers are left as they are: none of their weights is among the Distiller's trainable ones,
    and weights, batch statistics and seeds never move. Their own `trainable` is not touched, so
    that a teacher may be trained before, afterwards, or as the student of somebody else. Several
    Distillers may share teachers. On jax, whose `fit` takes a model's arrays for the time of a fit,
    they cannot be read by others until it returns.

    CE is what the student's own `compute_loss` says, where its class has one; metrics that it
    keeps are logged too. A `train_step` or `compute_metrics` of its own would never be called, and
    is refused; its own `test_step` is called by whoever evaluates the student, `GraftingFit` does.

    A saved Distiller keeps student and teachers. Loaded, it is compiled as it was, with its
    optimizer state; so is the student if it shares the optimizer (`distil`). Teachers are not.

    Args:
        student: model whose outputs are logits, shape `(batch, classes)`.
        teachers: M >= 1 trained models of any architecture with the same inputs and classes,
            whose outputs are logits too.
        temperature: tau, positive; the paper's 2.
        weight: w, 0 or more; the paper's 1.
        feature_losses: `keras.distillation.FeatureDistillation` losses between layers of student
            and teachers, functional models all; their sum, the mean over the teachers, is added.
        label_weight: c, 0 or more; the paper's 1.
        **options: `name`, `dtype`, `trainable` of `keras.Model`.

    Raises:
        UserError: no teacher; a teacher without weights, with other inputs or another number of
            classes than the student, or that shares weights with it; a model that ends in a
            softmax or sigmoid, as far as a graph or a list of layers shows it; a student with its
            own `train_step` or `compute_metrics`; `temperature` is not positive, `weight` or
            `label_weight` is negative. In the first step: a loss that is compiled with
            `from_logits=False`.

    Example:
        ```python
        distiller = Distiller(student, [teacher])
        distiller.compile(
            optimizer=SGD(0.1, l2=5e-4),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
        distiller.fit(x, y, epochs=200, validation_data=(xv, yv))
        distiller.student.save("student.keras")
        ```

    Source: arXiv 2004.12311, eq. 8-12.
    """

    def __init__(
        self,
        student: keras.Model,
        teachers: Sequence[keras.Model],
        temperature: float = 2.0,
        weight: float = 1.0,
        feature_losses: Sequence[keras.distillation.DistillationLoss] = (),
        label_weight: float = 1.0,
        **options: Any,
    ) -> None:
        _check(student, teachers)
        weight = argument("weight", weight, float, low=0)
        label_weight = argument("label_weight", label_weight, float, low=0)
        feature_losses = checked_losses(feature_losses)
        distillation = DistillationLoss(temperature)
        super().__init__(**options)
        self.temperature = distillation.temperature
        self.weight, self.label_weight = weight, label_weight
        self.student = student
        self.teachers = list(teachers)
        self.built = student.built
        self._distillation = distillation
        self._student_loss = keras.metrics.Mean(name="student_loss")
        self._distillation_loss = keras.metrics.Mean(name="distillation_loss")
        self.feature_losses = feature_losses
        self._features = (
            FeatureLosses(student, self.teachers, feature_losses) if feature_losses else None
        )

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """The student's logits, shape `(batch, classes)`."""
        if training and self._features is not None:
            return self._features.student(inputs)
        return self.student(inputs, training=training)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """C CE + w KD in training, the student's own loss otherwise.

        Args:
            x: a batch of inputs.
            y: its targets, or `Taught`.
            y_pred: the student's logits for it.
            sample_weight: weights of the images, in CE and KD alike.
            training: whether the teachers take part.

        Returns:
            Scalar loss.
        """
        taught = None
        if isinstance(y, Taught):
            y, taught = y
        if self._compile_loss is not None and not self._compile_loss.built:
            check_loss(self.loss, f"{self.name!r}, which distils {self.student.name!r},")
        student_loss = own_loss(
            self.student,
            self._compile_loss,
            self.losses,
            x=x,
            y=y,
            y_pred=y_pred,
            sample_weight=sample_weight,
            training=training,
        )
        if not training:
            return student_loss
        features = 0.0
        if self._features is not None:
            features, logits = self._features.of(x)
            taught = mean_probabilities(logits, self.temperature)
        elif taught is None:
            with BACKEND.without_gradients():
                taught = mean_probabilities(
                    [teacher(x, training=False) for teacher in self.teachers], self.temperature
                )
        distilled = self._distillation(ops.stop_gradient(taught), y_pred, sample_weight)
        images = ops.shape(y_pred)[0]
        self._student_loss.update_state(student_loss, sample_weight=images)
        self._distillation_loss.update_state(distilled, sample_weight=images)
        return self.label_weight * student_loss + self.weight * distilled + features

    @property
    def trainable_variables(self) -> list[Any]:
        """The student's, whatever the teachers' are."""
        return self.student.trainable_variables if self.trainable else []

    @property
    def non_trainable_variables(self) -> list[Any]:
        """All other variables, those of the teachers among them."""
        return _without(self.variables, self.trainable_variables)

    @property
    def trainable_weights(self) -> list[Any]:
        """The student's, whatever the teachers' are."""
        return self.student.trainable_weights if self.trainable else []

    @property
    def non_trainable_weights(self) -> list[Any]:
        """All other weights, those of the teachers among them."""
        return _without(self.weights, self.trainable_weights)

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """What the student's own `compute_loss` may keep, and the Distiller's."""
        return [*self.student._metrics, *super().metrics]

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """The student's metrics, on the targets alone."""
        return super().compute_metrics(*untaught((x, y)), y_pred, sample_weight=sample_weight)

    def test_step(self, *args: Any) -> Any:
        """Evaluate one batch: Keras' step without the two metrics that only training has.

        Raises:
            UserError: the student has a `test_step` of its own.
        """
        if overrides(self.student, "test_step"):
            raise UserError(
                f"student {self.student.name!r} has its own test_step(), which a Distiller does "
                "not call: evaluate the student itself."
            )
        result = super().test_step(*args)
        if isinstance(result, tuple):  # jax: (logs, state)
            return self._without_training_metrics(result[0]), *result[1:]
        return self._without_training_metrics(result)

    def get_config(self) -> dict[str, Any]:
        """Arguments of the constructor; of the models inside, compile settings are left out.

        Only a student that shares the Distiller's optimizer keeps them, and so its place in the
        file: Keras stores an optimizer once, with the first model that holds it.
        """
        shared = self.student.compiled and self.student.optimizer is self.optimizer
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "student": serialize(self.student) if shared else _uncompiled(self.student),
            "teachers": [_uncompiled(teacher) for teacher in self.teachers],
            "temperature": self.temperature,
            "weight": self.weight,
            "label_weight": self.label_weight,
            "feature_losses": [serialize(loss) for loss in self.feature_losses],
        }

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compile a loaded Distiller, with its student's optimizer where they shared one.

        Args:
            config: what `get_compile_config` gave.
        """
        if not self.student.compiled:
            super().compile_from_config(config)
            return
        settings = keras.saving.deserialize_keras_object({**config, "optimizer": None})
        compile_as(self, self.student, settings)

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "Distiller":
        """Distiller of the models that `get_config` described.

        Args:
            config: what `get_config` gave.
            custom_objects: classes by name that the models inside need.

        Returns:
            A Distiller with freshly initialised models.
        """

        def revive(model: dict[str, Any]) -> keras.Model:
            return keras.saving.deserialize_keras_object(model, custom_objects=custom_objects)

        models = {
            "student": revive(config["student"]),
            "teachers": [revive(teacher) for teacher in config["teachers"]],
            "feature_losses": [revive(loss) for loss in config.get("feature_losses", ())],
        }
        return cls(**{**config, **models})

    def _without_training_metrics(self, logs: dict[str, Any]) -> dict[str, Any]:
        absent = (self._student_loss.name, self._distillation_loss.name)
        return {name: value for name, value in logs.items() if name not in absent}


def distil(
    student: keras.Model,
    teachers: Sequence[keras.Model],
    temperature: float = 2.0,
    weight: float = 1.0,
    feature_losses: Sequence[keras.distillation.DistillationLoss] = (),
    label_weight: float = 1.0,
) -> Distiller:
    """A Distiller that trains a compiled student with what it was compiled with.

    The optimizer is the student's own object, so that both advance the same iterations, velocities
    and schedule: train the Distiller, then evaluate, save or go on training the student itself.
    The loss is shared too; metrics are the student's anew, since they hold state.

    Args:
        student: a compiled model, see `Distiller`.
        teachers: see `Distiller`.
        temperature: tau, positive.
        weight: w, 0 or more.
        feature_losses: see `Distiller`.
        label_weight: c, 0 or more.

    Returns:
        A compiled Distiller around the student.

    Raises:
        UserError: the student is not compiled, its metrics cannot be made anew, or what
            `Distiller` raises.
    """
    if not student.compiled:
        raise UserError(f"student {student.name!r} is not compiled: call compile() first.")
    lesson = (temperature, weight, feature_losses, label_weight)
    distiller = Distiller(student, teachers, *lesson, dtype=student.dtype_policy)
    check_loss(student.loss, f"student {student.name!r}")
    compile_as(distiller, student)
    return distiller


def student_of(model: keras.Model) -> keras.Model:
    """The model that is trained and grafted: a Distiller's student, any other model itself."""
    return model.student if isinstance(model, Distiller) else model


def _uncompiled(model: keras.Model) -> dict[str, Any]:
    """A model's config without its compile settings."""
    return {**keras.saving.serialize_keras_object(model), "compile_config": None}


def _without(variables: Sequence[Any], others: Sequence[Any]) -> list[Any]:
    known = {id(variable) for variable in others}
    return [variable for variable in variables if id(variable) not in known]


def _check(student: keras.Model, teachers: Sequence[keras.Model]) -> None:
    argument("student", student, keras.Model)
    check_teachers(teachers)
    check_logits(student, f"student {student.name!r}")
    check_steps(student, f"student {student.name!r}")
    for m, teacher in enumerate(teachers, start=1):
        check_pair(student, teacher, f"teacher {m} ({teacher.name!r})")
