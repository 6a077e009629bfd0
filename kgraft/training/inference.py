"""What K peers say of data: loss and metrics, and outputs."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import keras
import numpy as np

from kgraft.errors import UserError
from kgraft.settings import argument
from kgraft.training.feeds import validation_feed
from kgraft.training.fit_arguments import check_targets, check_verbose
from kgraft.training.learning import Learning
from kgraft.training.watchers import Callbacks, evaluate, watchers_of

Verbose = Literal["auto", 0, 1, 2]


class Inference:
    """K peers that are asked, each of them all there is.

    Attributes:
        peers: the models of this process.
    """

    peers: Sequence[keras.Model]
    _learning: Learning

    def evaluate(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        verbose: Verbose = "auto",
        sample_weight: Any = None,
        steps: int | None = None,
        callbacks: Callbacks | Callable[[int], Callbacks | None] | None = None,
        return_dict: bool = True,
    ) -> list[Any]:
        """Loss and metrics of every peer; arguments as in `keras.Model.evaluate`.

        Args:
            x: arrays or a data set.
            y: targets, with arrays.
            batch_size: examples a step, with arrays.
            verbose: 0 is silent; the progress bar shows the first peer's metrics.
            sample_weight: weights of the examples, with arrays.
            steps: at most so many batches, the first ones.
            callbacks: see `fit`.
            return_dict: False for what `Model.evaluate` returns by default.

        Returns:
            For each peer metric name -> value; or a list of values, the loss first, which alone is
            a number.

        Raises:
            UserError: see `fit`.
        """
        check_verbose(verbose)
        argument("return_dict", return_dict, bool)
        check_targets(self.peers, x, y, sample_weight, name="x")
        given = (x,) if y is None and sample_weight is None else (x, y, sample_weight)
        feed = validation_feed(given, batch_size, steps)
        watchers = watchers_of(
            self.peers, callbacks, verbose=verbose, add_history=False, epochs=1, steps=feed.steps
        )
        pairs = zip(self._learning.students.steppers, watchers, strict=True)
        found = [evaluate(student, feed, watcher) for student, watcher in pairs]
        if return_dict:
            return found
        return [values[0] if len(values := list(own.values())) == 1 else values for own in found]

    def predict(
        self,
        x: Any,
        batch_size: int | None = None,
        verbose: Verbose = "auto",
        steps: int | None = None,
        callbacks: None = None,
    ) -> Any:
        """Outputs of every peer; arguments as in `keras.Model.predict`.

        Args:
            x: arrays or a data set.
            batch_size: examples a step, with arrays.
            verbose: taken as `Model.predict` takes it; nothing is printed.
            steps: at most so many batches, the first ones.
            callbacks: none, see below.

        Returns:
            Shape `(K, n, ...)`; for a model of several outputs as many of these.

        Raises:
            UserError: callbacks, which only `peer.predict` calls; see `fit`.
        """
        check_verbose(verbose)
        if callbacks is not None:
            raise UserError("predict takes no callbacks: call predict of each of run.peers.")
        feed = validation_feed((x,), batch_size, steps)
        outputs = [student.predict(feed.epoch(0)) for student in self._learning.students.steppers]
        return keras.tree.map_structure(lambda *parts: np.stack(parts), *outputs)
