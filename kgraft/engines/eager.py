"""Steppers: one Keras model trained batch by batch, and the eager engine's steps.

The eager steps are one Keras train step of one model at a time, on any backend: the oracle that
every faster engine is held against. They never go through `Model.fit`, and on torch not through
`train_function` either: from Keras 3.16 on that wraps the model in DistributedDataParallel whenever
`torch.distributed` is initialised, which would silently average the gradients of K peers.
"""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import keras
import numpy as np

Logs = dict[str, Any]


class Steps(Protocol):
    """How one model trains, is tested and predicts on one batch."""

    def training(self, on: bool) -> None:
        """Turn to training or to inference mode."""

    def train(self, data: tuple[Any, ...]) -> Logs:
        """One training step on `(x, y, sample_weight)`; the metrics so far."""

    def test(self, data: tuple[Any, ...]) -> Logs:
        """Take `(x, y, sample_weight)` into the metrics; the metrics so far."""

    def predict(self, x: Any) -> Any:
        """Outputs for a batch."""


class Stepper:
    """One compiled model that is trained batch by batch.

    A step is what `model.train_on_batch` does, except that metrics accumulate over the epoch and
    nothing is copied to the host. After every call, and after an interrupt at any instant, the
    model's variables hold valid values.

    Args:
        model: a compiled Keras model (or subclass with its own `train_step`).
        steps: how it takes its steps, once it is built; the eager engine's way by default.

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
        self._make_steps = steps or eager_steps
        self._steps: Steps | None = None
        self._built = False
        self._in_training = False
        self._last: Logs | None = None

    def build(self, data: tuple[Any, ...]) -> None:
        """Build the model, its optimizer and its metrics from one batch; done once a `compile()`.

        Args:
            data: `(x, y)` or `(x, y, sample_weight)`.
        """
        self._notice()
        if not self._built:
            self.model._symbolic_build(data_batch=_triple(data))
            self._built = True
            self._steps = None  # those chosen so far knew neither metrics nor loss
        self.choose()

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
        self._last = self.choose().train(_triple(data))
        return self._last

    def logs(self) -> dict[str, Any]:
        """What `fit` would log: the metrics over the batches since `begin_epoch`.

        A model whose steps return other names than its metrics' gets what the last step returned.

        Returns:
            Name -> a float, or an array for a metric with several values.
        """
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
            self._last = self.choose().test(_triple(data))
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
        steps = self.choose() if self.model.built else eager_steps(self.model)
        outputs = [
            keras.tree.map_structure(keras.ops.convert_to_numpy, steps.predict(data[0]))
            for data in batches
        ]
        return keras.tree.map_structure(lambda *parts: np.concatenate(parts), *outputs)

    def _train_mode(self, on: bool) -> None:
        self._in_training = on
        if self._steps is not None:
            self._steps.training(on)

    def choose(self) -> Steps:
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


def eager_steps(model: keras.Model) -> Steps:
    """The eager engine's steps of a model, on the backend in use."""
    return _BACKENDS[keras.config.backend()](model)


class TorchSteps:
    """Steps of one model on torch."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def training(self, on: bool) -> None:
        """See `Steps`."""
        self._model.train(on)

    def train(self, data: tuple[Any, ...]) -> Logs:
        """See `Steps`."""
        return self._alone(self._model.train_step, on_device(data))

    def test(self, data: tuple[Any, ...]) -> Logs:
        """See `Steps`."""
        import torch

        with torch.no_grad():
            return self._alone(self._model.test_step, on_device(data))

    def predict(self, x: Any) -> Any:
        """See `Steps`."""
        import torch

        with torch.no_grad():
            return self._alone(self._model.predict_step, on_device((x,)))

    def _alone(self, step: Callable[[Any], Any], data: tuple[Any, ...]) -> Any:
        """Run a step with the model's own module, though `evaluate` may have made it a DDP one."""
        wrapped = vars(self._model).get("ddp_model")
        if wrapped is None:
            return step(data)
        self._model.__dict__["ddp_model"] = None
        try:
            return step(data)
        finally:
            self._model.__dict__["ddp_model"] = wrapped


class JaxSteps:
    """Steps of one model on jax: one jitted call each, no buffer donated."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._train = _jitted(model, model.train_step)
        self._test = _jitted(model, model.test_step)
        self._predict = _jitted(model, model.predict_step)

    def training(self, on: bool) -> None:
        """Nothing to switch: the steps say themselves whether they train."""

    def train(self, data: tuple[Any, ...]) -> Logs:
        """See `Steps`."""
        model = self._model
        parts = [
            model.trainable_variables,
            model.non_trainable_variables,
            model.optimizer.variables,
            model.metrics_variables,
        ]
        state = tuple([v.value for v in part] for part in parts)
        logs, new_state = self._train(state, data)
        _write(parts, new_state)
        return logs

    def test(self, data: tuple[Any, ...]) -> Logs:
        """See `Steps`."""
        model = self._model
        parts = [
            model.trainable_variables,
            model.non_trainable_variables,
            model.metrics_variables,
        ]
        state = tuple([v.value for v in part] for part in parts)
        logs, new_state = self._test(state, data)
        _write(parts, new_state)
        return logs

    def predict(self, x: Any) -> Any:
        """See `Steps`."""
        model = self._model
        state = tuple(
            [v.value for v in part]
            for part in (model.trainable_variables, model.non_trainable_variables)
        )
        return self._predict(state, (x,))[0]


class TensorFlowSteps:
    """Steps of one model on tensorflow: Keras' own train function."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def training(self, on: bool) -> None:
        """Nothing to switch: the steps say themselves whether they train."""

    def train(self, data: tuple[Any, ...]) -> Logs:
        """See `Steps`."""
        self._model.make_train_function()
        return self._model.train_function(iter([data]))

    def test(self, data: tuple[Any, ...]) -> Logs:
        """See `Steps`."""
        self._model.make_test_function()
        return self._model.test_function(iter([data]))

    def predict(self, x: Any) -> Any:
        """See `Steps`."""
        self._model.make_predict_function()
        return self._model.predict_function([(x,)])


_BACKENDS: dict[str, Callable[[Any], Any]] = {
    "torch": TorchSteps,
    "jax": JaxSteps,
    "tensorflow": TensorFlowSteps,
}


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


def on_device(data: tuple[Any, ...]) -> tuple[Any, ...]:
    """A batch with tensors of the backend in place of arrays."""
    return keras.tree.map_structure(
        lambda part: None if part is None else keras.ops.convert_to_tensor(part), data
    )


def _jitted(model: Any, step: Callable[..., Any]) -> Callable[..., Any]:
    """A step as the model was compiled: jitted, unless it is to run eagerly or without a jit.

    jax remembers traces of equal functions, and a model's step before and after a `compile()` are
    equal methods: a new function each time is not.
    """
    import jax

    def run(*arguments: Any) -> Any:
        return step(*arguments)

    return run if why_not_jitted(model) else jax.jit(run)


def why_not_jitted(model: Any) -> str | None:
    """Why a model's steps on jax are not to be jitted, None if they are."""
    if model.run_eagerly:
        return f"{model.name!r} is compiled with run_eagerly=True"
    if model.compiled and not model.jit_compile:
        return f"{model.name!r} is compiled with jit_compile=False"
    return None


def _write(parts: list[list[Any]], state: tuple[list[Any], ...]) -> None:
    for variables, values in zip(parts, state, strict=True):
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
