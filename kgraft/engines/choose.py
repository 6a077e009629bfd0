"""Which engine trains: `auto`, `eager` or `compiled`, and why.

Every engine computes what the eager one computes, to rounding; a model that an engine cannot take
is trained by the eager one, and the log says why.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras

from kgraft.engines.eager import Logs, Stepper, Steps, eager_steps
from kgraft.errors import UserError, suggest

NAMES = ("auto", "eager", "compiled")


class Engine:
    """K models that take one step each, all at once as far as anybody outside can tell.

    A step gets the batches of all K models in one call, so that whoever needs to see all peers on
    one batch, or to act every n steps, has one place to stand.

    Args:
        models: compiled Keras models.
        wanted: `"auto"` or `"compiled"` for the fastest that there is, `"eager"` for Keras' steps.

    Attributes:
        steppers: one a model.

    Raises:
        UserError: `wanted` is no engine.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> Engine([model], "eager").describe()
        'eager on torch (it was asked for), 1 model'
    """

    def __init__(self, models: Sequence[keras.Model], wanted: str = "auto") -> None:
        check(wanted)
        self.wanted = wanted
        self._reasons: dict[str, None] = {}
        self.steppers = [Stepper(model, self._steps_of) for model in models]
        self._compiled = 0

    @property
    def name(self) -> str:
        """`"compiled"` where every model built so far is, `"eager"` otherwise."""
        return "compiled" if self._compiled and not self._reasons else "eager"

    @property
    def reason(self) -> str:
        """Why it is that engine."""
        if self._reasons:
            return "; ".join(self._reasons)
        if self.wanted == "eager":
            return "it was asked for"
        return _HOW[keras.config.backend()] if self._compiled else "nothing is built yet"

    def describe(self) -> str:
        """Engine, backend, reason and number of models, for one log line."""
        count = len(self.steppers)
        models = f"{count} model{'s' if count > 1 else ''}"
        return f"{self.name} on {keras.config.backend()} ({self.reason}), {models}"

    def build(self, batches: Sequence[tuple[Any, ...]]) -> None:
        """Build every model, its optimizer and its metrics from a batch of its own.

        Args:
            batches: K times `(x, y)` or `(x, y, sample_weight)`.
        """
        for stepper, batch in zip(self.steppers, batches, strict=True):
            stepper.build(batch)

    def choose(self) -> None:
        """Settle how the models take their steps, which are all built by now."""
        for stepper in self.steppers:
            stepper.choose()

    def begin_epoch(self) -> None:
        """Reset all metrics and turn to training mode."""
        for stepper in self.steppers:
            stepper.begin_epoch()

    def step(self, batches: Sequence[tuple[Any, ...]]) -> list[Logs]:
        """One training step of every model on its batch.

        Args:
            batches: K times `(x, y)` or `(x, y, sample_weight)`.

        Returns:
            Each model's metrics so far, as tensors on the device.
        """
        return [stepper.step(batch) for stepper, batch in zip(self.steppers, batches, strict=True)]

    def end_epoch(self) -> None:
        """Turn all models back to inference mode."""
        for stepper in self.steppers:
            stepper.end_epoch()

    def wait(self) -> None:
        """Until the device has done everything that was asked of it."""
        for stepper in self.steppers:
            keras.ops.convert_to_numpy(stepper.model.weights[-1].value)

    def _steps_of(self, model: keras.Model) -> Steps:
        if self.wanted == "eager":
            return eager_steps(model)
        made, reason = _COMPILERS[keras.config.backend()](model)
        if made is None:
            self._reasons[str(reason)] = None
            return eager_steps(model)
        self._compiled += 1
        return made


def check(wanted: str) -> None:
    """Refuse what is no engine's name.

    Args:
        wanted: a name.

    Raises:
        UserError: it is not one of `NAMES`.
    """
    if wanted not in NAMES:
        raise UserError(f"engine={wanted!r} is unknown." + suggest(str(wanted), NAMES))


def stepper_for(model: keras.Model, wanted: str = "auto") -> Stepper:
    """One model's stepper with the best engine there is for it.

    Args:
        model: a compiled model.
        wanted: see `Engine`.
    """
    return Engine([model], wanted).steppers[0]


_Made = tuple[Steps | None, str | None]


def _torch(model: Any) -> _Made:
    from kgraft.engines import torch_compiled

    reason = torch_compiled.why_not(model)
    return (None, reason) if reason else (torch_compiled.NativeSteps(model), None)


def _no_compiler(model: Any) -> _Made:
    return None, f"kgraft compiles nothing on {keras.config.backend()} yet"


_COMPILERS: dict[str, Callable[[Any], _Made]] = {
    "torch": _torch,
    "jax": _no_compiler,
    "tensorflow": _no_compiler,
}

_HOW = {
    "torch": "fused operations on channels-last memory, SGD for all variables at once",
    "jax": "",
    "tensorflow": "",
}
