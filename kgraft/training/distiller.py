"""Distiller: a student that learns from labels and from the mean of M teachers (grafting+).

Eq. 8-12 of Cheng, Meng et al., arXiv 2004.12311v2: loss = CE(y, p_s) + KD. `DistillationLoss` is
KD's mean over the batch as a Keras loss, `Distiller` the sum of both as a model.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
from keras import ops

from kgraft.equations import distillation_loss, mean_probabilities
from kgraft.errors import UserError
from kgraft.training.features import FeatureLosses

_PROBABILITIES = ("softmax", "sigmoid")


class Taught(NamedTuple):
    """Targets of a batch whose teachers have been asked already.

    Attributes:
        targets: what the student would be trained on without teachers.
        probabilities: the teachers' mean probabilities at the Distiller's temperature,
            `(batch, classes)`.
    """

    targets: Any
    probabilities: Any


@keras.saving.register_keras_serializable("kgraft")
class DistillationLoss(keras.losses.Loss):
    """`distillation_loss` as a Keras loss: `y_true` is pbar, `y_pred` the student's logits.

    Sample weights weigh an image's KD as they weigh its cross entropy.

    Args:
        temperature: tau, positive.
        name: name of the loss.
        reduction: how Keras reduces the images' losses; the mean over the batch by default.
        dtype: dtype of the computation; Keras' float type by default.

    Raises:
        UserError: `temperature` is not a positive number.
    """

    def __init__(
        self,
        temperature: float = 2.0,
        name: str = "distillation_loss",
        reduction: str = "sum_over_batch_size",
        dtype: Any = None,
    ) -> None:
        if not 0 < temperature < math.inf:
            raise UserError(f"temperature={temperature}: must be a positive number.")
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.temperature = temperature

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Each image's KD, shape `(batch,)`."""
        return distillation_loss(y_pred, y_true, self.temperature)

    def get_config(self) -> dict[str, Any]:
        """Arguments of the constructor."""
        return {**super().get_config(), "temperature": self.temperature}


@keras.saving.register_keras_serializable("kgraft")
class Distiller(keras.Model):
    """A student in training under M teachers: loss = CE + w KD (eq. 8-12, where w = 1).

    CE is what the Distiller is compiled with, regularisers of the student included; KD is
    `DistillationLoss`. The two are summed as in the paper (`keras.distillation` mixes them).
    The model's outputs are the student's, and training moves only the student's weights:
    `distiller.student` is the trained model.

    Every training batch passes once through every teacher, in inference mode and without
    gradients; where its targets are `Taught`, through none. `evaluate`, `predict` and validation
    do not run the teachers: there the loss is the student's own, and the metrics are those that
    `student.evaluate` would give. Training also logs `student_loss` (CE) and `distillation_loss`
    (KD); `loss` is CE + w KD, and
    what `feature_losses` add.

    Teachers are frozen: `teacher.trainable` becomes False on the models that are passed in, and
    stays so; to train one again, when the distillation is over, set it back and compile it. Their
    weights, batch statistics and seeds never move. Several Distillers may share teachers. On jax,
    whose `fit` takes a model's arrays for the time of a fit, they cannot be read by others until
    it returns.

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
        **options: `name`, `dtype`, `trainable` of `keras.Model`.

    Raises:
        UserError: no teacher; a teacher without weights, with other inputs or another number of
            classes than the student, or that shares weights with it; a model that ends in a
            softmax or sigmoid; `temperature` is not positive, `weight` is negative.

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
        **options: Any,
    ) -> None:
        _check(student, teachers)
        if not 0 <= weight < math.inf:
            raise UserError(f"weight={weight} of the distillation loss: must be 0 or more.")
        distillation = DistillationLoss(temperature)
        super().__init__(**options)
        self.temperature = temperature
        self.weight = weight
        self.student = student
        self.teachers = list(teachers)
        for teacher in self.teachers:
            teacher.trainable = False
        self.built = student.built
        self._distillation = distillation
        self._student_loss = keras.metrics.Mean(name="student_loss")
        self._distillation_loss = keras.metrics.Mean(name="distillation_loss")
        self.feature_losses = tuple(feature_losses)
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
        """CE + KD in training, the student's own loss otherwise.

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
        student_loss = super().compute_loss(
            x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=training
        )
        if not training:
            return student_loss
        features = 0.0
        if self._features is not None:
            features, logits = self._features.of(x)
            taught = mean_probabilities(logits, self.temperature)
        elif taught is None:
            taught = mean_probabilities(
                [teacher(x, training=False) for teacher in self.teachers], self.temperature
            )
        distilled = self._distillation(ops.stop_gradient(taught), y_pred, sample_weight)
        images = ops.shape(y_pred)[0]
        self._student_loss.update_state(student_loss, sample_weight=images)
        self._distillation_loss.update_state(distilled, sample_weight=images)
        return student_loss + self.weight * distilled + features

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """The student's metrics, on the targets alone."""
        y = y.targets if isinstance(y, Taught) else y
        return super().compute_metrics(x, y, y_pred, sample_weight=sample_weight)

    def test_step(self, *args: Any) -> Any:
        """Evaluate one batch: Keras' step without the two metrics that only training has."""
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
        self.compile(**{**settings, "optimizer": self.student.optimizer})

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

    Returns:
        A compiled Distiller around the student.

    Raises:
        UserError: the student is not compiled, its metrics cannot be made anew, or what
            `Distiller` raises.
    """
    if not student.compiled:
        raise UserError(f"student {student.name!r} is not compiled: call compile() first.")
    distiller = Distiller(student, teachers, temperature, weight, feature_losses)
    settings = student.get_compile_config()
    settings.pop("optimizer")
    settings.pop("loss")
    try:
        settings = keras.saving.deserialize_keras_object(settings)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"a metric of student {student.name!r} cannot be made anew: register it with "
            "keras.saving.register_keras_serializable, or compile a Distiller yourself."
        ) from error
    distiller.compile(optimizer=student.optimizer, loss=student.loss, **settings)
    return distiller


def student_of(model: keras.Model) -> keras.Model:
    """The model that is trained and grafted: a Distiller's student, any other model itself."""
    return model.student if isinstance(model, Distiller) else model


def _check(student: keras.Model, teachers: Sequence[keras.Model]) -> None:
    if isinstance(teachers, keras.Model):
        raise UserError(f"teachers is a model: pass a list, teachers=[{teachers.name}].")
    if not teachers:
        raise UserError("no teachers: a Distiller needs at least one.")
    _check_logits(student, f"student {student.name!r}")
    own = {id(variable) for variable in student.variables}
    for m, teacher in enumerate(teachers, start=1):
        name = f"teacher {m} ({teacher.name!r})"
        if not teacher.weights:
            raise UserError(f"{name} has no weights yet: train or load it first.")
        if own & {id(variable) for variable in teacher.variables}:
            raise UserError(f"{name} shares weights with student {student.name!r}.")
        _check_logits(teacher, name)
        for what, learnt, taught in zip(
            ("inputs", "classes"), _signature(student), _signature(teacher), strict=True
        ):
            if not _fit(learnt, taught):
                raise UserError(
                    f"{name} has {what} {taught}, student {student.name!r} has {what} {learnt}."
                )


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


def _check_logits(model: keras.Model, name: str) -> None:
    """Refuse a functional model whose outputs are probabilities."""
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


def _uncompiled(model: keras.Model) -> dict[str, Any]:
    """A model's config without its compile settings."""
    return {**keras.saving.serialize_keras_object(model), "compile_config": None}
