"""ResNets for large images: a 7x7 stem, a pooling, four stages of 64 to 512 filters.

Source: He et al., CVPR 2016, table 1, with option-B shortcuts and, as in torchvision, the stride of
a bottleneck block in its 3x3 convolution; kaiming-normal fan-out kernels.
"""

from functools import partial
from typing import Any

import keras

from kgraft.models import blocks
from kgraft.models.blocks import kaiming_normal_out, torch_uniform


def resnet_imagenet(
    depths: tuple[int, int, int, int],
    *,
    bottleneck: bool,
    name: str,
    classes: int,
    input_shape: tuple[int, int, int] = (224, 224, 3),
    last_stride: int = 2,
) -> keras.Model:
    """ImageNet ResNet.

    Args:
        depths: Blocks in each of the four stages.
        bottleneck: Whether a block is 1x1, 3x3, 1x1 convolutions, four times as wide at its end,
            rather than two 3x3 ones.
        name: Of the model.
        classes: Number of classes, at least 2.
        input_shape: (height, width, channels), pixels, at least 8x8.
        last_stride: Stride of the last stage, 1 or 2; with 1 the features are twice as fine, as in
            person re-identification.

    Returns:
        Functional model, images `(n, height, width, channels)` -> logits `(n, classes)`.

    Raises:
        UserError: `classes` or `input_shape` is out of range, or `last_stride` another number.
    """
    blocks.check_last_stride(last_stride)
    images = blocks.image_input(input_shape, classes)
    x = _conv_bn(images, 64, 7, strides=2, conv="stem", bn="stem_bn")
    x = blocks.relu(x, name="stem_relu")
    x = blocks.max_pool(x, 3, name="stem_pool")
    residual = _bottleneck if bottleneck else _basic
    for stage, (depth, filters) in enumerate(zip(depths, (64, 128, 256, 512), strict=True), 1):
        for block in range(1, depth + 1):
            strides = 2 if stage > 1 and block == 1 else 1
            if stage == 4 and block == 1:
                strides = last_stride
            layer = f"stage{stage}_block{block}"
            shortcut, x = x, residual(x, filters, strides=strides, name=layer)
            if shortcut.shape != x.shape:
                shortcut = _conv_bn(
                    shortcut,
                    x.shape[-1],
                    1,
                    strides=strides,
                    conv=f"{layer}_shortcut",
                    bn=f"{layer}_shortcut_bn",
                )
            x = blocks.relu(blocks.add(x, shortcut, name=f"{layer}_add"), name=f"{layer}_relu")
    logits = blocks.classifier(x, classes, initialise=torch_uniform, bias=torch_uniform)
    return keras.Model(images, logits, name=name)


resnet18 = partial(resnet_imagenet, (2, 2, 2, 2), bottleneck=False, name="resnet18")
resnet34 = partial(resnet_imagenet, (3, 4, 6, 3), bottleneck=False, name="resnet34")
resnet50 = partial(resnet_imagenet, (3, 4, 6, 3), bottleneck=True, name="resnet50")


def _basic(x: Any, filters: int, *, strides: int, name: str) -> Any:
    x = _conv_bn(x, filters, 3, strides=strides, conv=f"{name}_conv1", bn=f"{name}_bn1")
    x = blocks.relu(x, name=f"{name}_relu1")
    return _conv_bn(x, filters, 3, conv=f"{name}_conv2", bn=f"{name}_bn2")


def _bottleneck(x: Any, filters: int, *, strides: int, name: str) -> Any:
    x = _conv_bn(x, filters, 1, conv=f"{name}_conv1", bn=f"{name}_bn1")
    x = blocks.relu(x, name=f"{name}_relu1")
    x = _conv_bn(x, filters, 3, strides=strides, conv=f"{name}_conv2", bn=f"{name}_bn2")
    x = blocks.relu(x, name=f"{name}_relu2")
    return _conv_bn(x, 4 * filters, 1, conv=f"{name}_conv3", bn=f"{name}_bn3")


def _conv_bn(x: Any, filters: int, size: int, *, strides: int = 1, conv: str, bn: str) -> Any:
    x = blocks.convolution(
        x, filters, size, strides=strides, name=conv, initialise=kaiming_normal_out
    )
    return blocks.batch_norm(x, name=bn)
