"""What a backend does for kgraft."""

import contextlib
import itertools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import keras
from numpy.typing import NDArray

from kgraft.engines.steps import Around, Logs, Steps

Batch = tuple[Any, ...]
Call = Callable[..., Any]
Fed = tuple[list[Batch], Any]


class Transfer(Protocol):
    """The floating-point weights of K peers, on the host, to the rows of a matrix and back."""

    def __init__(self, peers: Sequence[Sequence[Any]]) -> None: ...

    def read(self, out: NDArray[Any]) -> None:
        """Copy the weights into the rows."""

    def write(self, rows: NDArray[Any]) -> None:
        """Copy the rows into the weights."""


class DeviceTransfer(Protocol):
    """The floating-point weights of K peers, on an accelerator, as the rows of a tensor there."""

    def __init__(self, peers: Sequence[Sequence[Any]]) -> None: ...

    def read(self) -> Any:
        """A new tensor with the weights, a row a peer."""

    def write(self, rows: Any) -> None:
        """Copy the rows into the weights."""

    def put(self, rows: Any, k: int, columns: slice, values: Any) -> Any:
        """Rows with other values in some columns of row k; the given ones may be written over."""


class Backend(Protocol):
    """One of Keras' backends.

    Attributes:
        how: what the compiled engine does, in a few words.
        averaging: the same where the gradients of `Replicas` are averaged within a step, None where
            that cannot be.
        compiles: whether steps are programs of the backend's compiler. Else they are single
            operations, each of which keeps all cores busy.
        empties: whether `fit` takes the values out of a model's variables while it trains.
        eager_steps: the eager engine's steps of a model.
        transfer: a way to and from the floating-point weights of K peers, each peer's Keras
            variables, all on the host, of one dtype and of equal shapes.
        device_transfer: the same for variables that lie elsewhere, all in one place.
    """

    how: str
    averaging: str | None = None
    compiles: bool = True
    empties: bool = False
    eager_steps: type[Steps]
    transfer: type[Transfer]
    device_transfer: type[DeviceTransfer]

    def compiled_steps(self, model: Any, shared: dict[str, Any]) -> Steps | str:
        """The compiled engine's steps of a model, or why there are none.

        Args:
            model: a built model.
            shared: whatever the models of one engine have in common, empty at first.
        """

    def eager_steps_in(self, around: Around, model: Any) -> Steps:
        """The eager engine's steps of a model, for a backend with `averaging`.

        Args:
            around: what every training step is taken in, down to the call of the model's
                `train_step`: the same Python, step by step.
            model: a compiled model.
        """
        del around, model
        raise NotImplementedError

    def compiled_steps_in(self, around: Around, model: Any) -> Steps | str:
        """The compiled engine's, or why there are none, likewise.

        Args:
            around: see `eager_steps_in`.
            model: a built model.
        """
        del around, model
        raise NotImplementedError

    def launches(self) -> bool:
        """Whether a step of all models may be one launch, see `as_one`."""
        return False

    def as_one(
        self, steps: Sequence[Steps], batches: Sequence[Any], shared: dict[str, Any]
    ) -> list[Logs] | None:
        """The next training step of all of an engine's models as one launch.

        Args:
            steps: one a model.
            batches: `(x, y)`, `(x, y, sample_weight)` or `LazyBatch`, one a model.
            shared: see `compiled_steps`.

        Returns:
            Each model's metrics so far; None where nothing was done, so that the models have to
            take their steps one by one.
        """
        del steps, batches, shared
        return None

    def fed(self, model: Any, function: Call, *arguments: Any, remembered: dict[str, Any]) -> Fed:
        """Run one call that a running `fit` makes; the batches it was fed, and what it returned.

        Args:
            model: the model that `fit` trains.
            function: its train or test function.
            arguments: what `fit` gives to the function.
            remembered: whatever the calls of one `fit` have in common, empty at first.
        """

    def devices(self) -> list[str]:
        """The accelerators, or the CPU where there is none, e.g. `["cuda:0 NVIDIA H200"]`.

        `keras.distribution.list_devices` has no answer on torch.
        """

    def draws_elsewhere(self, layer: Any) -> bool:
        """Whether a layer draws from the process' generator, and not from a seed of its own.

        Args:
            layer: a Keras layer.
        """
        return False

    def use_device(self, number: int) -> None:
        """Compute on one of the accelerators, in the order of `devices`; before anything else is.

        Args:
            number: which, counted from 0; beyond the last one it begins again with the first.
        """
        return None

    def fits(self, count: int) -> bool:
        """Whether so many bytes leave the device room to train: at most half of what is free.

        Args:
            count: bytes.

        Returns:
            True also where the device is the host, or does not say.
        """
        del count
        return True

    def allow_tf32(self, allowed: bool) -> None:
        """TF32 products on or off for the whole process; without effect on a CPU."""

    def without_gradients(self) -> AbstractContextManager[object]:
        """Where nothing that is computed inside is kept for a backward pass.

        jax and tensorflow decide by what the gradients are asked for: there it does nothing.
        """
        return contextlib.nullcontext()

    def cores(self) -> int:
        """How many cores an operation of this thread uses; 1 also where nobody can say."""
        return 1

    def use_cores(self, count: int) -> None:
        """Let operations of this thread use so many cores, where they can be told.

        Args:
            count: 1 or more.
        """
        del count

    def has_room(self, times: int) -> bool:
        """Whether the host may hold so many times what this process has held at most.

        Args:
            times: 1 or more.
        """
        del times
        return True

    def keep_memory(self) -> None:
        """Keep what is freed for what comes next, where that saves waiting for the system."""
        return

    def give_memory_back(self) -> None:
        """Give what is freed and kept for the next step back to the system."""
        return

    def upload(self, array: NDArray[Any]) -> Any:
        """An array on the device; nobody waits until it is there.

        Args:
            array: any shape.
        """
        return keras.ops.convert_to_tensor(array)

    def pieces(self, array: NDArray[Any], size: int) -> Iterator[Any]:
        """An array on the device, so many of its columns at a time.

        To an accelerator it goes in one copy that nobody waits for.

        Args:
            array: shape `(..., n)`.
            size: columns of a piece; the last may have fewer.
        """
        for start in range(0, array.shape[-1], size):
            yield keras.ops.convert_to_tensor(array[..., start : start + size])

    def alone(self, model: Any) -> AbstractContextManager[object]:
        """Where a model's metrics are this process' own, whoever else trains with it.

        Args:
            model: a Keras model.
        """
        del model
        return contextlib.nullcontext()

    def averages_in_fit(self) -> str:
        """Why Keras' own `fit` trains the models of several processes as one, and the way out.

        Returns:
            Empty where it does not.
        """
        return ""

    def random_state(self) -> dict[str, NDArray[Any]]:
        """What the backend's own generators of random numbers know, by name.

        jax and tensorflow draw from what Keras' generators give them.
        """
        return {}

    def set_random_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what `random_state` gave.

        Args:
            state: what it gave; of devices that are not there nothing is taken.
        """
        del state

    def keep_compiled(self) -> Path | None:
        """Keep what is compiled on disk, so that the same run starts faster the next time.

        Returns:
            The directory in use; None where nothing is kept.
        """
        return None

    def fused_sgd(self, variables: Sequence[Any]) -> Call | None:
        """The kernel that moves some variables by a step of `kgraft.SGD`, None if there is none.

        Args:
            variables: Keras variables, one or more, on one device.
        """
        del variables
        return None

    def is_on_host(self, value: Any) -> bool:
        """Whether a tensor's (or TensorFlow variable's) memory is the host's."""

    def view(self, value: Any) -> NDArray[Any]:
        """The memory of a tensor on the host, not to be written to; bfloat16 may be widened."""

    def place(self, value: Any) -> Hashable | None:
        """Where a tensor (or TensorFlow variable) lies, None if on several devices."""

    def program(self, function: Call) -> Call:
        """A function of tensors as one program, where the backend compiles.

        Args:
            function: without effects, written in `keras.ops`. Its keyword arguments are no tensors:
                a program is made for each of their values.
        """

    def bin_counts(self, values: Any, edges: Any) -> Any:
        """How many values of a row lie in each bin `edges[i] <= x < edges[i + 1]`, as in `program`.

        Args:
            values: shape `(rows, values)`.
            edges: non-decreasing along each row, shape `(rows, bins + 1)`, same dtype.

        Returns:
            Shape `(rows, bins)`, integers.
        """


def pull(iterator: Iterator[Batch], count: int) -> list[Batch]:
    """Up to `count` batches; as `next` does, it raises StopIteration when there is none."""
    batches = list(itertools.islice(iterator, count))
    if not batches:
        raise StopIteration
    return batches
