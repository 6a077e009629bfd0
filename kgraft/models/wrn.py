"""Wide residual networks, WRN-d-k.

Source: Zagoruyko and Komodakis, BMVC 2016, initialised as in their PyTorch code: kaiming-normal
fan-in kernels, scales of the batch normalisation from U(0, 1), biases zero. The WRN in the code of
FG's authors does the same but for the classifier's kernel, which stays as PyTorch's `Linear` makes
it: `head_init="torch"`.
"""

from typing import Any, Literal

import keras

from kgraft.errors import UserError, suggest
from kgraft.models import blocks
from kgraft.models.blocks import Initialise, kaiming_normal, torch_uniform

HeadInit = Literal["kaiming", "torch"]
_HEADS: dict[HeadInit, Initialise] = {"kaiming": kaiming_normal, "torch": torch_uniform}


def wide_resnet(
    depth: int,
    width: int,
    *,
    classes: int,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    dropout: float = 0.0,
    head_init: HeadInit = "kaiming",
    name: str | None = None,
) -> keras.Model:
    """Pre-activation ResNet with `width` times the filters of a CIFAR ResNet.

    Args:
        depth: d = 6n + 4, n blocks in each of the three stages.
        width: k, factor on the stages' 16, 32 and 64 filters.
        classes: Number of classes, at least 2.
        input_shape: (height, width, channels), pixels, at least 8x8.
        dropout: Share of activations dropped between the two convolutions of a block, in [0, 1).
        head_init: What the classifier's kernel starts from, fan-in n: `"kaiming"`, N(0, 2 / n), or
            `"torch"`, U(-1 / sqrt(n), 1 / sqrt(n)), which is 2.4 times narrower. Its bias is zero.
        name: Of the model, `"wrn-d-k"` unless given.

    Returns:
        Functional model, images `(n, height, width, channels)` -> logits `(n, classes)`.

    Raises:
        UserError: `depth` is not 6n + 4, or another argument is out of range.
    """
    per_stage = blocks.per_stage("WRN", depth, rest=4)
    if width < 1:
        raise UserError(f"WRN width {width} is not valid: the nearest valid width is 1.")
    if not 0 <= dropout < 1:
        raise UserError(f"dropout={dropout} is not in [0, 1).")
    if head_init not in _HEADS:
        raise UserError(f"head_init={head_init!r} is unknown." + suggest(str(head_init), _HEADS))
    images = blocks.image_input(input_shape, classes)
    x = blocks.convolution(images, 16, 3, name="stem", initialise=kaiming_normal)
    for stage, filters in enumerate((16 * width, 32 * width, 64 * width), start=1):
        for block in range(1, per_stage + 1):
            x = _preactivation_block(
                x,
                filters,
                strides=2 if stage > 1 and block == 1 else 1,
                dropout=dropout,
                name=f"stage{stage}_block{block}",
            )
    x = _norm_relu(x, name="last_bn", relu="last_relu")
    logits = blocks.classifier(x, classes, initialise=_HEADS[head_init], bias=blocks.zeros)
    return keras.Model(images, logits, name=name or f"wrn-{depth}-{width}")


def _preactivation_block(x: Any, filters: int, *, strides: int, dropout: float, name: str) -> Any:
    shortcut = x
    x = _norm_relu(x, name=f"{name}_bn1", relu=f"{name}_relu1")
    if shortcut.shape[-1] != filters:
        shortcut = blocks.convolution(
            x,
            filters,
            1,
            strides=strides,
            name=f"{name}_shortcut",
            initialise=kaiming_normal,
        )
    x = blocks.convolution(
        x, filters, 3, strides=strides, name=f"{name}_conv1", initialise=kaiming_normal
    )
    x = _norm_relu(x, name=f"{name}_bn2", relu=f"{name}_relu2")
    if dropout:
        x = keras.layers.Dropout(dropout, name=f"{name}_dropout")(x)
    x = blocks.convolution(x, filters, 3, name=f"{name}_conv2", initialise=kaiming_normal)
    return blocks.add(x, shortcut, name=f"{name}_add")


def _norm_relu(x: Any, *, name: str, relu: str) -> Any:
    x = blocks.batch_norm(x, name=name, scale=keras.initializers.RandomUniform(0.0, 1.0))
    return blocks.relu(x, name=relu)
