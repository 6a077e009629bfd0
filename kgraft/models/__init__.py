"""Architectures: plain functional Keras models that give logits, and a registry of their names."""

from kgraft.models.cost import filters, flops, macs, parameters
from kgraft.models.mobilenet import mobilenet_v2
from kgraft.models.registry import Row, build, describe, names
from kgraft.models.resnet_cifar import resnet8, resnet20, resnet32, resnet44, resnet56, resnet110
from kgraft.models.wrn import wide_resnet

__all__ = [
    "resnet8",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet110",
    "mobilenet_v2",
    "wide_resnet",
    "build",
    "names",
    "describe",
    "Row",
    "parameters",
    "filters",
    "macs",
    "flops",
]
