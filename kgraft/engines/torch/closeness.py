"""Whether a step that was taken in another way came to the same weights.

`traced_steps` holds a trace against the native step, `cuda_graph` a graph against the trace. On a
CPU both do the same operations in the same order; some of a GPU's add up in any order, so that the
same step taken twice is the measure there.
"""

import math
from collections.abc import Sequence

import torch

_NOISE = 10.0  # times the difference of two plays of one trace
_TOLERANCES = {"float32": 1e-3, "tf32": 1e-2, "bfloat16": 5e-2}  # of how far a step moves

Tensors = Sequence[torch.Tensor]


def distance(values: Tensors, expected: Tensors, before: Tensors) -> float:
    """How far a step's end is from another's, as a share of how far that one has gone.

    In the 2-norm, variable by variable: one that does not move has to stay where it is, but for the
    rounding of its own type.

    Args:
        values: where the step ended, one tensor a variable.
        expected: where the other one did.
        before: where both began.

    Returns:
        The largest share; infinity where a number is none, or infinite.
    """
    shares = [_share(*each) for each in zip(values, expected, before, strict=True)]
    return max(shares, default=0.0)


def tolerance(noise: float, precision: str) -> float:
    """How far a step that computes the same in another way may be off, see `distance`.

    Args:
        noise: the distance of two plays of one trace.
        precision: `"float32"`, `"tf32"` or `"bfloat16"`, in which products are computed.

    Returns:
        A share; below 0, so that nothing passes, where a play has come to no numbers.
    """
    if not math.isfinite(noise):
        return -1.0
    return max(_NOISE * noise, _TOLERANCES[precision])


def _share(value: torch.Tensor, expected: torch.Tensor, before: torch.Tensor) -> float:
    if not value.numel():
        return 0.0
    rounding = torch.finfo(value.dtype).eps if value.is_floating_point() else 0.0
    value, expected, before = value.double(), expected.double(), before.double()
    moved = float(torch.linalg.vector_norm(expected - before))
    off = float(torch.linalg.vector_norm(value - expected))
    size = float(torch.linalg.vector_norm(expected))
    if not all(map(math.isfinite, (moved, off, size))):
        return math.inf
    least = 2 * rounding * size
    if off <= least and not moved:
        return 0.0
    return off / max(moved, least) if off else 0.0
