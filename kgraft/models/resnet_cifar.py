"""ResNets for small images: three stages of 16, 32 and 64 filters, 6n + 2 layers.

Source: He et al., CVPR 2016, section 4.2, with option-A shortcuts; initialised as the PyTorch
networks of the filter grafting papers are (kaiming-normal kernels, PyTorch's own bias).
"""

from functools import partial
from typing import Any

import keras

from kgraft.models import blocks

LEAKY_SLOPE = 0.01
"""PyTorch's slope of a leaky ReLU; Keras' own default would be 0.3."""


def resnet_cifar(
    depth: int,
    *,
    classes: int,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    negative_slope: float = 0.0,
    name: str | None = None,
) -> keras.Model:
    """CIFAR ResNet of `depth` layers.

    Args:
        depth: 6n + 2, with n residual blocks in each of the three stages.
        classes: Number of classes, at least 2.
        input_shape: (height, width, channels), pixels, at least 8x8.
        negative_slope: Slope of the rectifiers below zero; `LEAKY_SLOPE` is the leaky variant.
        name: Of the model, `"resnet{depth}"` unless given.

    Returns:
        Functional model, images `(n, height, width, channels)` -> logits `(n, classes)`.

    Raises:
        UserError: An argument is out of range.
    """
    per_stage = blocks.per_stage("ResNet", depth, rest=2)
    images = blocks.image_input(input_shape, classes)
    relu = partial(blocks.relu, negative_slope=negative_slope)
    x = blocks.convolution(images, 16, 3, name="stem", initialise=blocks.kaiming_normal)
    x = blocks.batch_norm(x, name="stem_bn")
    x = relu(x, name="stem_relu")
    for stage, filters in enumerate((16, 32, 64), start=1):
        for block in range(1, per_stage + 1):
            strides = 2 if stage > 1 and block == 1 else 1
            x = _basic_block(
                x, filters, strides=strides, relu=relu, name=f"stage{stage}_block{block}"
            )
    logits = blocks.classifier(
        x, classes, initialise=blocks.kaiming_normal, bias=blocks.torch_uniform
    )
    return keras.Model(images, logits, name=name or f"resnet{depth}")


resnet8 = partial(resnet_cifar, 8)
resnet20 = partial(resnet_cifar, 20)
resnet32 = partial(resnet_cifar, 32)
resnet44 = partial(resnet_cifar, 44)
resnet56 = partial(resnet_cifar, 56)
resnet110 = partial(resnet_cifar, 110)


def _basic_block(x: Any, filters: int, *, strides: int, relu: Any, name: str) -> Any:
    shortcut = x
    if strides != 1 or filters != x.shape[-1]:
        shortcut = blocks.subsampled_shortcut(x, filters, strides=strides)
    x = blocks.convolution(
        x, filters, 3, strides=strides, name=f"{name}_conv1", initialise=blocks.kaiming_normal
    )
    x = blocks.batch_norm(x, name=f"{name}_bn1")
    x = relu(x, name=f"{name}_relu1")
    x = blocks.convolution(x, filters, 3, name=f"{name}_conv2", initialise=blocks.kaiming_normal)
    x = blocks.batch_norm(x, name=f"{name}_bn2")
    x = blocks.add(x, shortcut, name=f"{name}_add")
    return relu(x, name=f"{name}_relu2")
