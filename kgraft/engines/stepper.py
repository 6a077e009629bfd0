"""Steppers: one Keras model trained batch by batch, by any engine's steps."""

from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np

from kgraft.engines.backends import BACKEND
from kgraft.engines.inputs import Inputs
from kgraft.engines.steps import Logs, Steps, as_handed


class Stepper:
    """One compiled model that is trained batch by batch.

    A step is what `model.fit` does with a batch; metrics accumulate over the epoch, and nothing is
    copied to the host. After every call, and after an interrupt at any instant, the
    model's variables hold valid values.

    Args:
        model: a compiled Keras model (or subclass with its own `train_step`).
        steps: how it takes its steps, once it is built; the eager engine's by default.

    Raises:
        ValueError: the model is not compiled.
    """

    def __init__(
        self, model: keras.Model, steps: Callable[[keras.Model], Steps] | None = None
    ) -> None:
        if not model.compiled:
            raise ValueError(f"model {model.name!r} is not compiled: call compile() first.")
        self.model = model
        self._compilation = compilation(model)
        self._make_steps = steps or BACKEND.eager_steps
        self._steps: Steps | None = None
        self._built = False
        self._in_training = False
        self._last: Logs | None = None
        self._inputs = Inputs(model)

    def build(self, data: tuple[Any, ...]) -> None:
        """Build the model, its optimizer and its metrics from one batch; done once a `compile()`.

        Args:
            data: `(x, y)` or `(x, y, sample_weight)`.

        Raises:
            UserError: the model cannot take such inputs; so does every kind of step.
        """
        self._notice()
        if not self._built:
            data = _triple(data)
            with self._inputs.checked(data[0]):
                self.model._symbolic_build(data_batch=data)
            self._built = True
            self._steps = None  # those chosen so far knew neither metrics nor loss
        self.steps()

    def begin_epoch(self) -> None:
        """Reset the metrics and turn to training mode."""
        self.model.reset_metrics()
        self._last = None
        self._train_mode(True)

    def end_epoch(self) -> None:
        """Turn back to inference mode."""
        self._train_mode(False)

    def step(self, data: tuple[Any, ...]) -> Logs:
        """One training step on one batch.

        Args:
            data: `(x, y)` or `(x, y, sample_weight)`, backend tensors or NumPy.

        Returns:
            The metrics so far, as tensors on the device.
        """
        self.build(data)
        with self._inputs.checked(_triple(data)[0]):
            self._last = self.steps().train(as_handed(data))
        return self._last

    def ready(self) -> Steps | None:
        """How the model takes its steps; None where it has still to be built from a batch."""
        self._notice()
        return self._steps if self._built else None

    def took(self, logs: Logs) -> None:
        """Somebody else has taken a training step of the model.

        Args:
            logs: the metrics so far.
        """
        self._last = logs

    def logs(self) -> dict[str, Any]:
        """What `fit` would log: the metrics over the batches since `begin_epoch`.

        A model whose steps return other names than its metrics' gets what the last step returned.

        Returns:
            Name -> a float, or an array for a metric with several values.
        """
        with BACKEND.alone(self.model):
            metrics = self.model.get_metrics_result()
        last = self._last
        return _plain(metrics if last is None or last.keys() == metrics.keys() else last)

    def evaluate(
        self,
        batches: Iterable[tuple[Any, ...]],
        *,
        before_batch: Callable[[int], None] | None = None,
        after_batch: Callable[[int, Logs], None] | None = None,
    ) -> dict[str, Any]:
        """Metrics over some batches, in inference mode.

        Args:
            batches: iterable of `(x, y)` or `(x, y, sample_weight)`.
            before_batch: called with the number of each batch, from 0, before it is looked at.
            after_batch: called with the number of each batch and the metrics so far, as tensors on
                the device.

        Returns:
            Metric name -> value, see `logs`.
        """
        self.model.reset_metrics()
        self._train_mode(False)
        self._last = None
        for step, data in enumerate(batches):
            if before_batch is not None:
                before_batch(step)
            self.build(data)
            with self._inputs.checked(_triple(data)[0]):
                self._last = self.steps().test(as_handed(data))
            if after_batch is not None:
                after_batch(step, self._last)
        return self.logs()

    def predict(self, batches: Iterable[tuple[Any, ...]]) -> Any:
        """Outputs over some batches, in inference mode.

        Args:
            batches: iterable of tuples that begin with x.

        Returns:
            Outputs of shape `(n, ...)`, nested as the model's are.
        """
        self._train_mode(False)
        steps = self.steps() if self.model.built else BACKEND.eager_steps(self.model)
        outputs = []
        for x, *_ in batches:
            with self._inputs.checked(x):
                outputs.append(
                    keras.tree.map_structure(keras.ops.convert_to_numpy, steps.predict(x))
                )
        return keras.tree.map_structure(lambda *parts: np.concatenate(parts), *outputs)

    def _train_mode(self, on: bool) -> None:
        self._in_training = on
        if self._steps is not None:
            self._steps.training(on)

    def steps(self) -> Steps:
        """How the model, built by now, takes its steps; others since it was compiled anew."""
        self._notice()
        if self._steps is None:
            self._steps = self._make_steps(self.model)
            self._steps.training(self._in_training)
        return self._steps

    def _notice(self) -> None:
        """Forget steps that were made before the model's last `compile()`."""
        now = compilation(self.model)
        if any(old is not new for old, new in zip(self._compilation, now, strict=True)):
            self._compilation = now
            self._steps, self._built = None, False


def compilation(model: Any) -> tuple[Any, ...]:
    """What the steps of a model have from its `compile()`, the objects themselves.

    Args:
        model: a compiled model.

    Returns:
        Objects of which at least one is another after another `compile()`, or after its optimizer
        was given another schedule.
    """
    return (
        model._compile_config,
        model.optimizer,
        _rate(model.optimizer),  # a jitted step has schedules in it
        model._compile_loss,
        model._compile_metrics,
        model.run_eagerly,
    )


def _rate(optimizer: Any) -> Any:
    """Where an optimizer has its learning rate: a variable, a schedule or a function."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return _rate(optimizer.inner_optimizer)
    return None if optimizer is None else optimizer._learning_rate


def _plain(logs: Logs) -> Logs:
    """Logs as Keras hands them to callbacks: numbers, and arrays where there are several."""
    found: Logs = {}
    for name, value in logs.items():
        if isinstance(value, dict):
            found.update(_plain(value))
            continue
        numbers = np.asarray(keras.ops.convert_to_numpy(value))
        found[name] = float(numbers.item()) if numbers.size == 1 else numbers
    return found


def _triple(data: tuple[Any, ...]) -> tuple[Any, ...]:
    return keras.utils.unpack_x_y_sample_weight(data)
