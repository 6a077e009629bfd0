"""Architectures of `keras.applications`, by their own names, as classifiers that give logits."""

from collections.abc import Callable
from functools import partial
from typing import Any

import keras

from kgraft.parts import Part

_FIXED = {"weights": None, "include_top": True, "classifier_activation": None}
_SWITCH = "include_preprocessing"  # of some of them: layers that normalise images
_HIDDEN = {
    **dict.fromkeys(_FIXED, "kgraft sets it: fresh weights, a classifier, logits"),
    _SWITCH: "kgraft normalises images itself, see data.mean and data.std",
    "input_tensor": "kgraft gives images of the data's shape",
    "pooling": "a classifier has its own",
    "name": "the architecture's own stays",
}


def names() -> tuple[str, ...]:
    """Names of the architectures, e.g. `"MobileNetV3Small"`."""
    return tuple(name for name, own in vars(keras.applications).items() if _builds(name, own))


def application(name: str) -> Part:
    """What builds an architecture, with fresh weights, without preprocessing, ending in logits.

    kgraft normalises images itself, so that layers which do it are left out where Keras lets them
    be (`include_preprocessing`). EfficientNetB0 to B7 have theirs in them for good: `data.mean =
    [0]` and `data.std = [0.00392]` hand them the pixels 0..255 that they expect.

    Args:
        name: one of `names()`.
    """
    build: Callable[..., Any] = vars(keras.applications)[name]
    part = Part(f"model {name!r}", build)
    fixed = {**_FIXED, **({_SWITCH: False} if part.has(_SWITCH) else {})}
    return Part(part.what, partial(build, **fixed), ("input_shape", "classes"), _HIDDEN)


def _builds(name: str, own: Any) -> bool:
    return name[:1].isupper() and callable(own)
