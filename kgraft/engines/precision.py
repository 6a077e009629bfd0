"""In which precision networks compute: float32, TF32 products, bfloat16 over float32 weights."""

import contextlib
from collections.abc import Iterator

import keras

from kgraft.engines.backends import BACKEND
from kgraft.errors import UserError, suggest

NAMES = ("float32", "tf32", "bfloat16")


def check(precision: str, where: str) -> None:
    """Refuse what is no precision's name.

    Args:
        precision: a name.
        where: what it was given as, before the name.

    Raises:
        UserError: it is not one of `NAMES`.
    """
    if precision not in NAMES:
        raise UserError(f"{where}{precision!r} is unknown." + suggest(precision, NAMES))


@contextlib.contextmanager
def building_in(precision: str) -> Iterator[None]:
    """Networks built inside compute in this precision; weights stay float32.

    bfloat16 belongs to the networks for all their life. Whether float32 products are exact or TF32
    is one switch of the backend for the whole process, and stays as the last call has set it.

    Args:
        precision: `"float32"`; `"tf32"`, the same with products of ten-bit mantissas on GPUs that
            have them; or `"bfloat16"`, Keras' policy `mixed_bfloat16`.

    Raises:
        UserError: `precision` is unknown.
    """
    check(precision, "precision=")
    BACKEND.allow_tf32(precision == "tf32")
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16" if precision == "bfloat16" else before)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
