"""A batch that is not gathered yet, so that a device can gather it inside the step itself."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from kgraft.engines.backends.base import Batch


@dataclass(frozen=True, eq=False)
class LazyBatch:
    """Which examples of an epoch, and what has been drawn for them.

    Attributes:
        numbers: of the whole epoch, on the device, integers `(..., n)`.
        start: where those of this batch begin.
        size: how many examples it has.
        gather: makes a batch of its part of the numbers, `(..., size)`. It is one and the same for
            all batches of a feed, and does nothing but operations on tensors.
    """

    numbers: Any
    start: int
    size: int
    gather: Callable[[Any], Batch]

    @cached_property
    def batch(self) -> Batch:
        """The batch."""
        return self.gather(self.numbers[..., self.start : self.start + self.size])


def gathered(batch: "Batch | LazyBatch") -> Batch:
    """A batch, whether it is one already or not."""
    return batch.batch if isinstance(batch, LazyBatch) else batch


def lazy_batches(numbers: Any, size: int, gather: Callable[[Any], Batch]) -> Iterator[LazyBatch]:
    """The batches of an epoch, each to be gathered when somebody asks.

    Args:
        numbers: of the whole epoch, on the device, `(..., n)`.
        size: examples a batch; the last may have fewer.
        gather: see `LazyBatch`.
    """
    count = int(numbers.shape[-1])
    for start in range(0, count, size):
        yield LazyBatch(numbers, start, min(size, count - start), gather)
