"""VGG16 with batch normalisation, in the form that is trained on CIFAR.

Source: Simonyan and Zisserman, ICLR 2015, configuration D; one dense layer instead of three, as in
the PyTorch network of the filter-level grafting in FG's authors' code (its readme has the table).
"""

import keras

from kgraft.models import blocks
from kgraft.models.blocks import torch_uniform

_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def vgg16(
    *,
    classes: int,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    name: str = "vgg16",
) -> keras.Model:
    """VGG16-BN for small images: 13 convolutions, which have a bias as in PyTorch's VGG.

    Args:
        classes: Number of classes, at least 2.
        input_shape: (height, width, channels), pixels, at least 8x8.
        name: Of the model.

    Returns:
        Functional model, images `(n, height, width, channels)` -> logits `(n, classes)`.

    Raises:
        UserError: `classes` or `input_shape` is out of range.
    """
    x = images = blocks.image_input(input_shape, classes)
    for stage, widths in enumerate(_STAGES, start=1):
        for number, filters in enumerate(widths, start=1):
            layer = f"stage{stage}_conv{number}"
            x = blocks.convolution(
                x, filters, 3, name=layer, initialise=torch_uniform, bias=torch_uniform
            )
            x = blocks.batch_norm(x, name=f"stage{stage}_bn{number}")
            x = blocks.relu(x, name=f"stage{stage}_relu{number}")
        x = blocks.max_pool(x, 2, name=f"stage{stage}_pool")
    logits = blocks.classifier(x, classes, initialise=torch_uniform, bias=torch_uniform)
    return keras.Model(images, logits, name=name)
