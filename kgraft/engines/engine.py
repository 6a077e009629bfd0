"""Which engine trains: `auto`, `eager` or `compiled`, and why.

Every engine computes what the eager one computes, to rounding; a model that an engine cannot take
is trained by the eager one, and the log says why.
"""

import contextlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import keras

from kgraft.engines.backends import BACKEND
from kgraft.engines.backends.cores import usable_cores
from kgraft.engines.backends.lazy import LazyBatch, gathered
from kgraft.engines.inputs import Inputs
from kgraft.engines.interrupts import InterruptHeld
from kgraft.engines.pace import Pace
from kgraft.engines.replicas import Replicas, check_mean
from kgraft.engines.stepper import Stepper
from kgraft.engines.steps import Logs, Steps
from kgraft.errors import UserError, suggest, told

NAMES = ("auto", "eager", "compiled")


class Engine:
    """K models that take one step each, all at once as far as anybody outside can tell.

    A step gets the batches of all K models in one call, so that whoever needs to see all peers on
    one batch, or to act every n steps, has one place to stand.

    Args:
        models: compiled Keras models.
        wanted: `"auto"` or `"compiled"` for the fastest that there is, `"eager"` for Keras' steps.
        replicas: the processes that train these models together, None for this one alone.

    Attributes:
        steppers: one a model.

    Raises:
        UserError: `wanted` is no engine; of replicas, with the first step, see `check_mean`.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> Engine([model], "eager").describe()
        'eager on torch (it was asked for), 1 model in float32'
    """

    def __init__(
        self,
        models: Sequence[keras.Model],
        wanted: str = "auto",
        replicas: Replicas | None = None,
    ) -> None:
        check(wanted)
        self.wanted, self.replicas = wanted, replicas
        self._reasons: dict[int, str | None] = {}  # why eager, None for compiled, by the model's id
        self.steppers = [Stepper(model, self._steps_of) for model in models]
        self._shared: dict[str, Any] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._pace: Pace | None = None
        self._may: bool | None = None  # be beside each other, as they are compiled
        self._launches: bool | None = None  # whether all may be one launch, likewise
        self._seen: set[Any] = set()

    @property
    def name(self) -> str:
        """`"compiled"` where every model built so far is, `"eager"` otherwise."""
        found = self._reasons.values()
        return "compiled" if found and all(reason is None for reason in found) else "eager"

    @property
    def reason(self) -> str:
        """Why it is that engine."""
        reasons = list(dict.fromkeys(filter(None, self._reasons.values())))
        if self.wanted == "eager":
            reasons = ["it was asked for"]
        elif not self._reasons:
            reasons = ["nothing is built yet"]
        elif not reasons:
            reasons = [BACKEND.how if self.replicas is None else str(BACKEND.averaging)]
        return "; ".join([*reasons, *self._unused()])

    def describe(self) -> str:
        """Engine, backend, reason, number of models and what they compute in, for one log line."""
        count = len(self.steppers)
        policies = dict.fromkeys(own.model.dtype_policy.name for own in self.steppers)
        models = f"{count} model{'s' if count > 1 else ''} in {', '.join(policies)}"
        return f"{self.name} on {keras.config.backend()} ({self.reason}), {models}"

    def of(self, models: Sequence[keras.Model]) -> "Engine":
        """One for other models, e.g. such as are around these, that takes its steps as this does.

        Args:
            models: compiled Keras models.
        """
        return Engine(models, self.wanted, self.replicas)

    def choose(self) -> None:
        """Settle how the models take their steps, which are all built by now."""
        for stepper in self.steppers:
            stepper.steps()

    def begin_epoch(self) -> None:
        """Reset all metrics and turn to training mode."""
        for stepper in self.steppers:
            stepper.begin_epoch()

    @property
    def takes_lazy_batches(self) -> bool:
        """Whether batches that are not gathered yet are better than others."""
        if self._launches is None:
            alone = self.replicas is None  # a graph of all would not stop for the others
            self._launches = alone and self.wanted != "eager" and BACKEND.launches()
        return self._launches

    def step(self, batches: Sequence[tuple[Any, ...] | LazyBatch]) -> list[Logs]:
        """One training step of every model on its batch.

        Args:
            batches: K times `(x, y)` or `(x, y, sample_weight)`, or a batch still to be gathered.

        Returns:
            Each model's metrics so far, as tensors on the device.
        """
        launched = self._in_one_launch(batches) if self.takes_lazy_batches else None
        if launched is not None:
            return launched
        whole = [gathered(batch) for batch in batches]
        pairs = list(zip(self.steppers, whole, strict=True))
        shapes = tuple(_shapes(batch) for batch in whole)
        known = shapes in self._seen
        self._seen.add(shapes)  # the first time something may be traced, which is Keras' code

        def in_turns() -> list[Logs]:
            return [stepper.step(batch) for stepper, batch in pairs]

        def beside() -> list[Logs]:
            return self._in_threads(pairs)

        if not known:
            return in_turns()
        if self._may is None:
            self._may = self._may_be_beside()
        if not self._may:
            return in_turns()
        if BACKEND.compiles:
            return beside()
        self._pace = self._pace or Pace(len(pairs), self._share()[1])
        taken: list[Logs] = self._pace.take(in_turns, beside)
        if self._pace.chosen is False and self._pool is not None:
            self._pool.shutdown()
            self._pool = None
            BACKEND.give_memory_back()  # of the steps that were taken at once
        return taken

    @property
    def is_settled(self) -> bool:
        """Whether the next steps are taken as those after them will be."""
        tried = self._pace is not None and self._pace.chosen is None
        return self.takes_lazy_batches or (self._may is not None and not tried)

    def logs(self) -> list[dict[str, Any]]:
        """Each model's metrics over the epoch so far, of all replicas together.

        What a `train_step` returns that is no metric is this replica's own.
        """
        models = [stepper.model for stepper in self.steppers]
        with contextlib.nullcontext() if self.replicas is None else self.replicas.together(models):
            return [stepper.logs() for stepper in self.steppers]

    def end_epoch(self) -> None:
        """Turn all models back to inference mode."""
        for stepper in self.steppers:
            stepper.end_epoch()

    def wait(self) -> None:
        """Until the device has done everything that was asked of it."""
        for stepper in self.steppers:
            keras.ops.convert_to_numpy(stepper.model.weights[-1].value)

    def _in_one_launch(self, batches: Sequence[tuple[Any, ...] | LazyBatch]) -> list[Logs] | None:
        steps = [own for stepper in self.steppers if (own := stepper.ready()) is not None]
        if len(steps) < len(batches):
            return None
        taken = BACKEND.as_one(steps, batches, self._shared)
        for stepper, logs in zip(self.steppers, taken or (), strict=False):
            stepper.took(logs)
        return taken

    def _in_threads(self, pairs: list[tuple[Stepper, tuple[Any, ...]]]) -> list[Logs]:
        """A step of every peer in a thread of its own, each with its share of the cores."""
        began = self._pool is None
        workers, share = self._share()
        cores = BACKEND.cores()
        self._pool = self._pool or ThreadPoolExecutor(
            workers, "kgraft-peer", BACKEND.use_cores, (share,)
        )
        with InterruptHeld():
            running = [self._pool.submit(_whole_step, *pair) for pair in pairs]
            wait(running)
        if began:
            BACKEND.use_cores(cores)  # the threads have theirs; this one keeps all
        return [future.result() for future in running]

    def _share(self) -> tuple[int, int]:
        """How many threads, and how many cores each."""
        workers = min(len(self.steppers), usable_cores())
        return workers, max(1, BACKEND.cores() // workers)

    def _may_be_beside(self) -> bool:
        """Whether peers may step in threads of their own.

        Compiled programs leave cores idle: measured with 2 ResNet20 on 2 cores, threads are 1.3
        times as fast on jax, 1.1 on tensorflow. Torch's single operations share the cores out; what
        is faster there is measured (`Pace`), where there is more than one core to use, room for the
        activations of as many peers, and nothing draws random numbers, whose order would be the
        threads'. An accelerator queues the steps by
        itself. Models with a variable in common, e.g. Distillers of one teacher, take turns: on jax
        the one would donate what the other reads. So do those of replicas, which meet in one order.
        """
        return (
            len(self.steppers) > 1
            and self.replicas is None
            and self.name == "compiled"
            and (BACKEND.compiles or self._may_be_measured())
            and all("cpu" in device for device in BACKEND.devices())
            and self._nothing_in_common()
        )

    def _may_be_measured(self) -> bool:
        return (
            BACKEND.cores() > 1
            and BACKEND.has_room(self._share()[0])
            and all(own.steps().in_any_thread for own in self.steppers)
        )

    def _nothing_in_common(self) -> bool:
        owned = [id(v) for stepper in self.steppers for v in stepper.model.variables]
        return len(owned) == len(set(owned))

    def _steps_of(self, model: keras.Model) -> Steps:
        if self.replicas is not None:
            check_mean(model)
        if self.wanted == "eager":
            return self._eager_steps_of(model)
        if self.replicas is None:
            made = BACKEND.compiled_steps(model, self._shared)
        else:
            made = BACKEND.compiled_steps_in(self.replicas.averaged, model)
        self._reasons[id(model)] = made if isinstance(made, str) else None
        self._seen.clear()
        self._pace = self._may = self._launches = None
        return self._eager_steps_of(model) if isinstance(made, str) else made

    def _eager_steps_of(self, model: keras.Model) -> Steps:
        if self.replicas is None:
            return BACKEND.eager_steps(model)
        return BACKEND.eager_steps_in(self.replicas.averaged, model)

    def _unused(self) -> list[str]:
        """What the models are compiled with and no engine needs."""
        models = [stepper.model for stepper in self.steppers]
        several = [model.name for model in models if model.steps_per_execution > 1]
        jitted = [model.name for model in models if model.jit_compile and not BACKEND.compiles]
        return [
            f"{what} of {', '.join(map(repr, names))} has no part in it: {instead}"
            for what, names, instead in (
                ("steps_per_execution", several, "every step is a call of its own"),
                ("jit_compile=True", jitted, "torch.compile is not called"),
            )
            if names
        ]


def check(wanted: str) -> None:
    """Refuse what is no engine's name.

    Args:
        wanted: a name.

    Raises:
        UserError: it is not one of `NAMES`.
    """
    if not isinstance(wanted, str) or wanted not in NAMES:
        raise UserError(f"engine={told(wanted)} is unknown." + suggest(str(wanted), NAMES))


def stepper_for(model: keras.Model, wanted: str = "auto") -> Stepper:
    """One model's stepper with the best engine there is for it.

    Args:
        model: a compiled model.
        wanted: see `Engine`.
    """
    return Engine([model], wanted).steppers[0]


class Predictions:
    """A function of one batch of inputs: a built model's outputs, in inference mode.

    Args:
        model: a built model, compiled or not.
        wanted: see `Engine`.
    """

    def __init__(self, model: keras.Model, wanted: str = "auto") -> None:
        self._steps, self._inputs = Engine([], wanted)._steps_of(model), Inputs(model)

    def __call__(self, x: Any) -> Any:
        """Outputs for a batch."""
        with self._inputs.checked(x):
            return self._steps.predict(x)

    def renew(self) -> None:
        """Take into account what somebody may have changed on the model's layers."""
        self._steps.training(False)


def _whole_step(stepper: Stepper, batch: tuple[Any, ...]) -> Logs:
    """A step whose numbers are there when it returns."""
    logs = stepper.step(batch)
    for value in keras.tree.flatten(logs):
        keras.ops.convert_to_numpy(value)
    return logs


def _shapes(batch: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(getattr(part, "shape", None) for part in keras.tree.flatten(batch))
