"""MobileNetV2 in the form that is trained on CIFAR.

Source: Sandler et al., CVPR 2018, as changed for 32x32 images by the PyTorch network of the filter
grafting papers: plain ReLU, stem and second stage at stride 1, projection shortcuts where stride is
1 and channels change.
"""

from typing import Any

import keras

from kgraft.models import blocks
from kgraft.models.blocks import torch_uniform

_STAGES = (  # expansion, channels, blocks, stride of the first block
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def mobilenet_v2(
    *,
    classes: int,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    name: str = "mobilenet_v2",
) -> keras.Model:
    """MobileNetV2 for small images: 17,088 filters, and 456 in its four projection shortcuts.

    Args:
        classes: Number of classes, at least 2.
        input_shape: (height, width, channels), pixels, at least 8x8.
        name: Of the model.

    Returns:
        Functional model, images `(n, height, width, channels)` -> logits `(n, classes)`.

    Raises:
        UserError: `classes` or `input_shape` is out of range.
    """
    images = blocks.image_input(input_shape, classes)
    x = blocks.convolution(images, 32, 3, name="stem", initialise=torch_uniform)
    x = blocks.batch_norm(x, name="stem_bn")
    x = blocks.relu(x, name="stem_relu")
    for stage, (expansion, channels, count, first_stride) in enumerate(_STAGES, start=1):
        for block in range(1, count + 1):
            x = _inverted_residual(
                x,
                channels,
                expansion=expansion,
                strides=first_stride if block == 1 else 1,
                name=f"stage{stage}_block{block}",
            )
    x = blocks.convolution(x, 1280, 1, name="last", initialise=torch_uniform)
    x = blocks.batch_norm(x, name="last_bn")
    x = blocks.relu(x, name="last_relu")
    logits = blocks.classifier(x, classes, initialise=torch_uniform, bias=torch_uniform)
    return keras.Model(images, logits, name=name)


def _inverted_residual(x: Any, channels: int, *, expansion: int, strides: int, name: str) -> Any:
    shortcut = x
    expanded = expansion * x.shape[-1]
    x = blocks.convolution(x, expanded, 1, name=f"{name}_expand", initialise=torch_uniform)
    x = blocks.batch_norm(x, name=f"{name}_expand_bn")
    x = blocks.relu(x, name=f"{name}_expand_relu")
    x = blocks.depthwise_convolution(
        x, 3, strides=strides, name=f"{name}_depthwise", initialise=torch_uniform
    )
    x = blocks.batch_norm(x, name=f"{name}_depthwise_bn")
    x = blocks.relu(x, name=f"{name}_depthwise_relu")
    x = blocks.convolution(x, channels, 1, name=f"{name}_project", initialise=torch_uniform)
    x = blocks.batch_norm(x, name=f"{name}_project_bn")
    if strides != 1:
        return x
    if shortcut.shape[-1] != channels:
        shortcut = blocks.convolution(
            shortcut, channels, 1, name=f"{name}_shortcut", initialise=torch_uniform
        )
        shortcut = blocks.batch_norm(shortcut, name=f"{name}_shortcut_bn")
    return blocks.add(x, shortcut, name=f"{name}_add")
