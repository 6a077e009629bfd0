"""Lock-step: other models see every batch that `fit` feeds to one model.

Keras calls `model.train_function` once a step. Just before a step it is replaced by a function that
puts the original back, runs it and keeps the batches it was fed; nobody learns in there. So an
interrupted `fit` can leave at most a function behind that moves no other model and removes itself
when it is called.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras

from kgraft.engines.backends import BACKEND
from kgraft.engines.backends.base import Batch


class Lockstep:
    """Keeps the batches that `fit` feeds to a model, until they are taken.

    The model's own training stays the same, bit for bit (on tensorflow with steps_per_execution=1;
    of several steps TensorFlow makes one program, and rounds otherwise, by 1e-7).
    On jax Ctrl-C becomes safe: there `fit` empties the model's variables and donates their values
    to each step, and an interrupt at the wrong moment would leave the model without weights.

    Args:
        model: a model that is about to be trained by `fit`.
    """

    def __init__(self, model: keras.Model) -> None:
        self.model = model
        self._fed: list[Batch] = []
        self._remembered: dict[str, Any] = {}
        self._in_place: dict[str, tuple[Any, Any]] = {}  # name -> the wrapper and what it wraps

    def arm(self) -> None:
        """Watch the next training step; called before each one."""
        self._wrap("train_function", self._fed.extend)

    def guard(self) -> None:
        """On jax, make the next validation step safe to interrupt; called before each one."""
        if BACKEND.empties:
            self._wrap("test_function", lambda batches: None)

    def disarm(self) -> None:
        """Take away what an interrupted `fit` has left, and the batches nobody took."""
        for name, (wrapper, original) in self._in_place.items():
            if getattr(self.model, name) is wrapper:
                setattr(self.model, name, original)
        self._in_place.clear()
        self._fed.clear()

    def take(self) -> list[Batch]:
        """The batches fed since the last call, in order, each as `fit` drew it."""
        batches = self._fed.copy()
        self._fed.clear()
        return batches

    @contextlib.contextmanager
    def readable(self) -> Iterator[None]:
        """On jax, while it is open the variables hold the values of the running `fit`, to be read.

        `fit` goes on from its own values, as if nobody had looked: after a `jax_state_sync` it
        would take up what a callback has set on an emptied variable, which it passes over alone.
        """
        model = self.model
        if not BACKEND.empties or model._jax_state is None or model._jax_state_synced:
            yield
            return
        emptied = [(variable, variable._value) for variable in _state(model)]
        try:
            model.jax_state_sync()
            yield
        finally:
            model._jax_state_synced = False  # first: wherever it is interrupted, fit has the values
            for variable, value in emptied:
                variable._value = value

    def _wrap(self, name: str, keep: Callable[[list[Batch]], None]) -> None:
        model = self.model
        original = getattr(model, name)
        if name in self._in_place and original is self._in_place[name][0]:
            return

        def watched(*arguments: Any) -> Any:
            if getattr(model, name) is watched:
                setattr(model, name, original)
            batches, result = BACKEND.fed(model, original, *arguments, remembered=self._remembered)
            keep(batches)
            return result

        self._in_place[name] = (watched, original)
        setattr(model, name, watched)


def _state(model: Any) -> list[Any]:
    """The variables whose values `fit` has on jax."""
    optimizer = model.optimizer.variables if model.optimizer is not None else []
    return [*model.variables, *optimizer, *model.metrics_variables]
