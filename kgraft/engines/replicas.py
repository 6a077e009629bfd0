"""Replicas: the processes that train one peer together, each on its part of every batch.

What `torch.nn.parallel.DistributedDataParallel` does for one model, for whatever a process trains:
gradients are averaged in every step, batch statistics are those of the first replica at an epoch's
end. Nothing is registered with `torch.distributed`, so that Keras sees no process group.

What is random in a replica: `part_seeds` gives its layers masks of their own. Data are drawn for
whole batches, which every replica reads (`kgraft.training.shards`), so that the generators of the
process (Python's, NumPy's, Keras' and torch's global ones) have to stay equal: a layer that draws
from one of those draws the same in every replica.
"""

import contextlib
import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from kgraft.engines.backends import BACKEND
from kgraft.errors import DriftError, UserError
from kgraft.keras_private import flat_layers

_DIGEST = 8  # bytes
_MEANS = ("sum_over_batch_size", "mean")


@dataclass(frozen=True, eq=False)
class Replicas:
    """Which of the processes this is that train the same models, and how they add up.

    All replicas have to take the same steps in the same order, with the same number of threads: an
    optimizer's own sums (`clipnorm`) are rounded as the threads divide them.

    Attributes:
        number: of this one, counted from 0.
        count: how many there are, R.
        add: replaces a flat tensor on the device (float32, float64 or uint8) by its sum over all
            replicas, in place, to the same bits in each of them. It waits until that is there, and
            raises where it cannot be.

    Raises:
        UserError: the backend cannot average gradients within a step; `number` is none of `count`.
    """

    number: int
    count: int
    add: Callable[[Any], None]

    def __post_init__(self) -> None:
        if BACKEND.averaging is None:
            raise UserError(
                "data-parallel peers need the torch backend (KERAS_BACKEND=torch): on "
                f"{keras.config.backend()} a step is one program, with nothing between backward "
                "and update."
            )
        if not 0 <= self.number < self.count:
            raise UserError(
                f"replica {self.number} of {self.count}: they are counted from 0 to "
                f"{self.count - 1}."
            )

    def mean(self, gradients: Sequence[Any], variables: Sequence[Any], examples: int) -> list[Any]:
        """Gradients averaged over all replicas, each weighing as many examples as it has seen.

        With n_j of a batch's B examples in replica j that is sum_j (n_j / B) g_j: the gradient on
        the whole batch, where the loss is a mean over examples. So it is for regularizers, which
        all replicas have in full, as the shares add up to 1.

        All gradients travel in one flat tensor, float32 (float64 where one of the variables is).

        Args:
            gradients: this replica's; None where there is none.
            variables: what they are the gradients of, Keras variables.
            examples: n_j, how many examples this replica has seen.

        Returns:
            The same in every replica, bit for bit; None where no replica has one.
        """
        shapes = [tuple(own.shape) for own in variables]
        sizes = [math.prod(shape) for shape in shapes]
        known = [gradient is not None for gradient in gradients]
        wide = "float64" if any(own.dtype == "float64" for own in variables) else "float32"
        parts = [
            ops.zeros((size,), wide)
            if gradient is None
            else ops.reshape(ops.cast(gradient, wide), (-1,)) * examples
            for gradient, size in zip(gradients, sizes, strict=True)
        ]
        flat = ops.concatenate([*parts, ops.convert_to_tensor([*known, examples], wide)])
        self.add(flat)
        if not all(known):  # another replica's examples may have made one
            known = [bool(count) for count in ops.convert_to_numpy(flat[sum(sizes) : -1])]
        means, ends = flat[: sum(sizes)] / flat[-1], itertools.accumulate(sizes, initial=0)
        found = [
            ops.reshape(means[start:end], shape)
            for shape, (start, end) in zip(shapes, itertools.pairwise(ends), strict=True)
        ]
        return [
            ops.cast(mean, (own if gradient is None else gradient).dtype) if is_known else None
            for mean, gradient, own, is_known in zip(
                found, gradients, variables, known, strict=True
            )
        ]

    @contextlib.contextmanager
    def averaged(self, model: Any, data: Any) -> Iterator[None]:
        """While it is open, the model's optimizer is given the mean gradients of all replicas.

        Before it unscales, clips, accumulates or averages anything itself, and however often a
        `train_step` calls its `apply`. An optimizer that is not `model.optimizer` is left alone:
        what it moves drifts, which `settle` finds.

        Args:
            model: a compiled model.
            data: its batch, `(x, y)` or `(x, y, sample_weight)`.
        """
        optimizer, examples = model.optimizer, examples_of(data)
        before = vars(optimizer).get("apply")
        apply = optimizer.apply

        def apply_mean(grads: Any, trainable_variables: Any = None) -> Any:
            own = optimizer._trainable_variables
            variables = list(own if trainable_variables is None else trainable_variables)
            return apply(self.mean(list(grads), variables, examples), variables)

        vars(optimizer)["apply"] = apply_mean
        try:
            yield
        finally:
            if before is None:
                del vars(optimizer)["apply"]
            else:
                vars(optimizer)["apply"] = before

    @contextlib.contextmanager
    def together(self, models: Sequence[Any]) -> Iterator[None]:
        """While it is open, the metrics of some models are those of all replicas' batches.

        Their variables hold the sums over the replicas, which is what Keras' metrics are made for.

        Args:
            models: compiled models, the same in every replica.
        """
        own = {id(v): v for model in models for v in model.metrics_variables}
        variables = [v for v in own.values() if v.aggregation == "sum"]
        if not variables:
            yield
            return
        before = [np.array(ops.convert_to_numpy(variable)) for variable in variables]
        flat = BACKEND.upload(np.concatenate([one.astype("float64").ravel() for one in before]))
        self.add(flat)
        sums = np.split(ops.convert_to_numpy(flat), np.cumsum([one.size for one in before])[:-1])
        try:
            for variable, summed in zip(variables, sums, strict=True):
                variable.assign(summed.reshape(variable.shape))
            yield
        finally:
            for variable, value in zip(variables, before, strict=True):
                variable.assign(value)


def check_mean(model: Any) -> None:
    """Refuse a model whose step is more than the mean of what its examples come to.

    Args:
        model: a compiled model.

    Raises:
        UserError: it has no optimizer, or a loss that is no mean over the examples.
    """
    if model.optimizer is None:
        raise UserError(f"{model.name!r} has no optimizer: its replicas' gradients go by it.")
    for loss in keras.tree.flatten(model.loss):
        if isinstance(loss, keras.losses.Loss) and loss.reduction not in _MEANS:
            raise UserError(
                f"{model.name!r} is compiled with {loss.name}(reduction={loss.reduction!r}): "
                "data-parallel peers average over examples, give reduction='sum_over_batch_size'."
            )


def examples_of(data: Any) -> int:
    """How many examples a batch has, as Keras counts them.

    Args:
        data: `(x, y)` or `(x, y, sample_weight)`; x may be a nest.
    """
    first = next(part for part in keras.tree.flatten(data) if part is not None)
    return int(first.shape[0])


def settle(models: Sequence[Any], replicas: Replicas) -> None:
    """At an epoch's end: the first replica's batch statistics for all, and proof of the rest.

    One flat sum of bytes: the weights that are not trained (moving means and variances), of the
    first replica, and from each replica a digest of every trained weight and of the optimizer's
    variables (velocities, learning rate), all of which have to be equal bit for bit.

    Args:
        models: compiled models, the same in every replica.
        replicas: who has to agree.

    Raises:
        DriftError: they do not, in every replica; the first weight that differs is named.
    """
    kept = [variable for model in models for variable in model.non_trainable_weights]
    watched = [
        (f"{variable.path!r} of model {k} ({model.name!r})", variable)
        for k, model in enumerate(models, start=1)
        for variable in [*model.trainable_weights, *model.optimizer.variables]
    ]
    arrays = [_array(variable) for variable in kept]
    size = sum(array.nbytes for array in arrays)
    digests = np.zeros((replicas.count, len(watched), _DIGEST), np.uint8)
    digests[replicas.number] = [_digest(_array(variable)) for _, variable in watched]
    if replicas.number:
        own = np.zeros(size, np.uint8)
    else:
        own = np.frombuffer(b"".join(array.tobytes() for array in arrays), np.uint8)
    flat = BACKEND.upload(np.concatenate([own, digests.ravel()]))
    replicas.add(flat)
    summed = ops.convert_to_numpy(flat)
    found = summed[size:].reshape(digests.shape)
    for place, (name, _) in enumerate(watched):
        others = [j for j, own in enumerate(found[:, place]) if (own != found[0, place]).any()]
        if others:
            numbers = ", ".join(map(str, others))
            raise DriftError(
                f"the replicas of a peer have drifted apart: {name} is another one in replica "
                f"{numbers} than in replica 0 (counted from 0). Only model.optimizer's gradients "
                "are averaged; callbacks must do the same in all replicas, whose numbers of "
                "threads must be equal."
            )
    if replicas.number:
        start = 0
        for variable, array in zip(kept, arrays, strict=True):
            value = np.frombuffer(summed[start : start + array.nbytes].tobytes(), array.dtype)
            variable.assign(value.reshape(array.shape))
            start += array.nbytes


def part_seeds(models: Sequence[Any], number: int) -> None:
    """Let the layers of replicas draw masks of their own: others for each, the same in every run.

    The first replica keeps its seeds, so that a checkpoint of it is one of all: each of the others
    restores it and parts again. That needs states that are the first replica's: to part twice is
    another seed.

    Args:
        models: built models, equal in all replicas.
        number: of this replica, counted from 0.
    """
    if not number:
        return
    layers = [layer for model in models for layer in flat_layers(model)]
    states = {id(own.state): own.state for layer in layers for own in layer._seed_generators}
    for state in states.values():
        seed, drawn = _array(state).astype("int64")
        mixed = np.random.SeedSequence((int(seed) & 0xFFFFFFFF, number)).generate_state(1)[0]
        state.assign(np.array([int(mixed) >> 1, drawn]))  # also where seeds have a sign


def _array(variable: Any) -> NDArray[Any]:
    return np.ascontiguousarray(ops.convert_to_numpy(variable))


def _digest(array: NDArray[Any]) -> list[int]:
    return list(hashlib.blake2b(array.tobytes(), digest_size=_DIGEST).digest())
