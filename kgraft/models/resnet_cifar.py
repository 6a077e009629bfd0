"""ResNets for small images: three stages of 16, 32 and 64 filters, 6n + 2 layers.

Source: He et al., CVPR 2016, section 4.2, with option-A shortcuts; initialised as the PyTorch
networks of the filter grafting papers are (kaiming-normal kernels, PyTorch's own bias).
"""

from typing import Any

import keras

from kgraft.models import blocks

Shape = tuple[int, int, int]


def resnet8(
    *, classes: int, input_shape: Shape = (32, 32, 3), name: str = "resnet8"
) -> keras.Model:
    """One block per stage; see `resnet_cifar`."""
    return resnet_cifar(1, classes=classes, input_shape=input_shape, name=name)


def resnet20(
    *, classes: int, input_shape: Shape = (32, 32, 3), name: str = "resnet20"
) -> keras.Model:
    """Three blocks per stage, 0.27M parameters; see `resnet_cifar`."""
    return resnet_cifar(3, classes=classes, input_shape=input_shape, name=name)


def resnet32(
    *, classes: int, input_shape: Shape = (32, 32, 3), name: str = "resnet32"
) -> keras.Model:
    """Five blocks per stage, 0.46M parameters; see `resnet_cifar`."""
    return resnet_cifar(5, classes=classes, input_shape=input_shape, name=name)


def resnet44(
    *, classes: int, input_shape: Shape = (32, 32, 3), name: str = "resnet44"
) -> keras.Model:
    """Seven blocks per stage, 0.66M parameters; see `resnet_cifar`."""
    return resnet_cifar(7, classes=classes, input_shape=input_shape, name=name)


def resnet56(
    *, classes: int, input_shape: Shape = (32, 32, 3), name: str = "resnet56"
) -> keras.Model:
    """Nine blocks per stage, 0.85M parameters; see `resnet_cifar`."""
    return resnet_cifar(9, classes=classes, input_shape=input_shape, name=name)


def resnet110(
    *, classes: int, input_shape: Shape = (32, 32, 3), name: str = "resnet110"
) -> keras.Model:
    """Eighteen blocks per stage, 1.7M parameters; see `resnet_cifar`."""
    return resnet_cifar(18, classes=classes, input_shape=input_shape, name=name)


def resnet_cifar(
    blocks_per_stage: int, *, classes: int, input_shape: Shape, name: str
) -> keras.Model:
    """CIFAR ResNet of `6 * blocks_per_stage + 2` layers.

    Args:
        blocks_per_stage: n, residual blocks in each of the three stages.
        classes: Number of classes, at least 2.
        input_shape: (height, width, channels), pixels, at least 8x8.
        name: Of the model.

    Returns:
        Functional model, images `(n, height, width, channels)` -> logits `(n, classes)`.

    Raises:
        UserError: `classes` or `input_shape` is out of range.
    """
    images = blocks.image_input(input_shape, classes)
    x = blocks.convolution(images, 16, 3, name="stem", initialise=blocks.kaiming_normal)
    x = blocks.batch_norm(x, name="stem_bn")
    x = blocks.relu(x, name="stem_relu")
    for stage, filters in enumerate((16, 32, 64), start=1):
        for block in range(1, blocks_per_stage + 1):
            strides = 2 if stage > 1 and block == 1 else 1
            x = _basic_block(x, filters, strides=strides, name=f"stage{stage}_block{block}")
    logits = blocks.classifier(
        x, classes, initialise=blocks.kaiming_normal, bias=blocks.torch_uniform(x.shape[-1])
    )
    return keras.Model(images, logits, name=name)


def _basic_block(x: Any, filters: int, *, strides: int, name: str) -> Any:
    shortcut = x
    if strides != 1 or filters != x.shape[-1]:
        shortcut = blocks.subsampled_shortcut(x, filters, strides=strides)
    x = blocks.convolution(
        x, filters, 3, strides=strides, name=f"{name}_conv1", initialise=blocks.kaiming_normal
    )
    x = blocks.batch_norm(x, name=f"{name}_bn1")
    x = blocks.relu(x, name=f"{name}_relu1")
    x = blocks.convolution(x, filters, 3, name=f"{name}_conv2", initialise=blocks.kaiming_normal)
    x = blocks.batch_norm(x, name=f"{name}_bn2")
    x = blocks.add(x, shortcut, name=f"{name}_add")
    return blocks.relu(x, name=f"{name}_relu2")
