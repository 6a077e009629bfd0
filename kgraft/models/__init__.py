"""Architectures: plain functional Keras models that give logits, and a registry of their names."""

from kgraft.models.batch_norm import BatchNormalization
from kgraft.models.cost import filters, flops, macs, parameters
from kgraft.models.mobilenet import mobilenet_v2
from kgraft.models.registry import Row, build, default_size, describe, names, packaged
from kgraft.models.resnet_cifar import (
    LEAKY_SLOPE,
    resnet8,
    resnet20,
    resnet32,
    resnet44,
    resnet56,
    resnet110,
    resnet_cifar,
)
from kgraft.models.resnet_imagenet import resnet18, resnet34, resnet50
from kgraft.models.vgg import vgg16
from kgraft.models.wrn import wide_resnet

__all__ = [
    "resnet8",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet110",
    "resnet_cifar",
    "LEAKY_SLOPE",
    "mobilenet_v2",
    "vgg16",
    "wide_resnet",
    "resnet18",
    "resnet34",
    "resnet50",
    "BatchNormalization",
    "build",
    "names",
    "packaged",
    "default_size",
    "describe",
    "Row",
    "parameters",
    "filters",
    "macs",
    "flops",
]
