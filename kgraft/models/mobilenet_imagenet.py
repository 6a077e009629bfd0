"""MobileNetV2 as it was made, for images of 224x224 pixels.

Source: Sandler et al., CVPR 2018, table 2, as in torchvision: rectifiers that end at 6, no shortcut
where the number of channels changes, kaiming-normal fan-out kernels, a dropout before the
classifier.
"""

from typing import Any

import keras

from kgraft.models import blocks
from kgraft.models.blocks import kaiming_normal_out

_STAGES = (  # expansion, channels, blocks, stride of the first block
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_LAST = 6  # the stage with the last stride
_DROPOUT = 0.2


def mobilenet_v2_imagenet(
    *,
    classes: int,
    input_shape: tuple[int, int, int] = (224, 224, 3),
    last_stride: int = 2,
    name: str = "mobilenet_v2-224",
) -> keras.Model:
    """MobileNetV2 for large images.

    Args:
        classes: Number of classes, at least 2.
        input_shape: (height, width, channels), pixels, at least 8x8.
        last_stride: Stride of the last stage that has one, 1 or 2; with 1 the features are twice as
            fine.
        name: Of the model.

    Returns:
        Functional model, images `(n, height, width, channels)` -> logits `(n, classes)`.

    Raises:
        UserError: `classes` or `input_shape` is out of range, or `last_stride` another number.
    """
    blocks.check_last_stride(last_stride)
    images = blocks.image_input(input_shape, classes)
    x = _conv_bn(images, 32, 3, strides=2, conv="stem")
    for stage, (expansion, channels, count, first_stride) in enumerate(_STAGES, start=1):
        for block in range(1, count + 1):
            strides = first_stride if block == 1 else 1
            if stage == _LAST and block == 1:
                strides = last_stride
            layer = f"stage{stage}_block{block}"
            x = _inverted_residual(x, channels, expansion=expansion, strides=strides, name=layer)
    x = _conv_bn(x, 1280, 1, conv="last")
    x = keras.layers.GlobalAveragePooling2D(data_format="channels_last", name="pool")(x)
    x = keras.layers.Dropout(_DROPOUT, name="dropout")(x)
    start = keras.initializers.RandomNormal(stddev=0.01)
    logits = keras.layers.Dense(int(classes), kernel_initializer=start, name="logits")(x)
    return keras.Model(images, logits, name=name)


def _conv_bn(x: Any, filters: int, size: int, *, strides: int = 1, conv: str) -> Any:
    x = blocks.convolution(
        x, filters, size, strides=strides, name=conv, initialise=kaiming_normal_out
    )
    return _relu6(blocks.batch_norm(x, name=f"{conv}_bn"), name=f"{conv}_relu")


def _relu6(x: Any, *, name: str) -> Any:
    return keras.layers.ReLU(max_value=6.0, name=name)(x)


def _inverted_residual(x: Any, channels: int, *, expansion: int, strides: int, name: str) -> Any:
    shortcut = x
    if expansion > 1:
        x = _conv_bn(x, expansion * x.shape[-1], 1, conv=f"{name}_expand")
    x = blocks.depthwise_convolution(
        x, 3, strides=strides, name=f"{name}_depthwise", initialise=kaiming_normal_out
    )
    x = blocks.batch_norm(x, name=f"{name}_depthwise_bn")
    x = _relu6(x, name=f"{name}_depthwise_relu")
    x = blocks.convolution(x, channels, 1, name=f"{name}_project", initialise=kaiming_normal_out)
    x = blocks.batch_norm(x, name=f"{name}_project_bn")
    if strides != 1 or shortcut.shape[-1] != channels:
        return x
    return blocks.add(x, shortcut, name=f"{name}_add")
