"""What the usual PyTorch implementations call the layers, and how their weights lie.

A layout says which PyTorch module is which Keras layer; a weight then differs by a transposition
and nothing else, so that weights go both ways bit for bit.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kgraft.errors import UserError
from kgraft.models.neck import heads_of

State = dict[str, np.ndarray]
Rules = tuple[tuple[str, str], ...]

_BLOCK = r"stage(?P<stage>\d+)_block(?P<block>\d+)_"
_FIRST = r"stage(?P<stage>1)_block(?P<block>1)_"
_STEM: Rules = (("stem", "conv1"), ("stem_bn", "bn1"))
_RESIDUAL: Rules = ((_BLOCK + r"(?P<part>(conv|bn)\d)", "layer{stage}.{block}.{part}"),)
_RULES: dict[str, Rules] = {
    # github.com/xternalz/WideResNet-pytorch
    "wide": (
        ("stem", "conv1"),
        (_BLOCK + r"(?P<part>(conv|bn)\d)", "block{stage}.layer.{block}.{part}"),
        (_BLOCK + "shortcut", "block{stage}.layer.{block}.convShortcut"),
        ("last_bn", "bn1"),
        ("logits", "fc"),
    ),
    # github.com/hysts/pytorch_image_classification, and FG's authors' copy of its WRN
    "hysts": (
        ("stem", "conv"),
        (_BLOCK + r"(?P<part>(conv|bn)\d)", "stage{stage}.block{ordinal}.{part}"),
        (_BLOCK + "shortcut", "stage{stage}.block{ordinal}.shortcut.conv"),
        ("last_bn", "bn"),
        ("logits", "fc"),
    ),
    # github.com/kuangliu/pytorch-cifar: MobileNetV2 and VGG
    "mobilenet": (
        *_STEM,
        (_BLOCK + "expand", "layers.{number}.conv1"),
        (_BLOCK + "expand_bn", "layers.{number}.bn1"),
        (_BLOCK + "depthwise", "layers.{number}.conv2"),
        (_BLOCK + "depthwise_bn", "layers.{number}.bn2"),
        (_BLOCK + "project", "layers.{number}.conv3"),
        (_BLOCK + "project_bn", "layers.{number}.bn3"),
        (_BLOCK + "shortcut", "layers.{number}.shortcut.0"),
        (_BLOCK + "shortcut_bn", "layers.{number}.shortcut.1"),
        ("last", "conv2"),
        ("last_bn", "bn2"),
        ("logits", "linear"),
    ),
    # torchvision's MobileNetV2; the first block expands nothing
    "torchvision-mobilenet": (
        ("stem", "features.0.0"),
        ("stem_bn", "features.0.1"),
        (_FIRST + "depthwise", "features.{feature}.conv.0.0"),
        (_FIRST + "depthwise_bn", "features.{feature}.conv.0.1"),
        (_FIRST + "project", "features.{feature}.conv.1"),
        (_FIRST + "project_bn", "features.{feature}.conv.2"),
        (_BLOCK + "expand", "features.{feature}.conv.0.0"),
        (_BLOCK + "expand_bn", "features.{feature}.conv.0.1"),
        (_BLOCK + "depthwise", "features.{feature}.conv.1.0"),
        (_BLOCK + "depthwise_bn", "features.{feature}.conv.1.1"),
        (_BLOCK + "project", "features.{feature}.conv.2"),
        (_BLOCK + "project_bn", "features.{feature}.conv.3"),
        ("last", "features.18.0"),
        ("last_bn", "features.18.1"),
        ("logits", "classifier.1"),
    ),
    "vgg": (
        (r"stage(?P<stage>\d+)_conv(?P<block>\d+)", "features.{convolution}"),
        (r"stage(?P<stage>\d+)_bn(?P<block>\d+)", "features.{normalisation}"),
        ("logits", "classifier"),
    ),
    # github.com/akamaster/pytorch_resnet_cifar10, and kuangliu's with convolutions as shortcuts
    "cifar": (
        *_STEM,
        *_RESIDUAL,
        (_BLOCK + "shortcut", "layer{stage}.{block}.shortcut.0"),
        (_BLOCK + "shortcut_bn", "layer{stage}.{block}.shortcut.1"),
        ("logits", "linear"),
    ),
    "torchvision": (
        *_STEM,
        *_RESIDUAL,
        (_BLOCK + "shortcut", "layer{stage}.{block}.downsample.0"),
        (_BLOCK + "shortcut_bn", "layer{stage}.{block}.downsample.1"),
        ("logits", "fc"),
    ),
}
_NEEDED = {"mobilenet": "stage1_block1_expand"}  # by which it is told from torchvision's
_NORMALISATION = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class Layout:
    """How one PyTorch implementation names a model's layers.

    Attributes:
        name: Its name.
        modules: Keras layer -> PyTorch module, in the model's order.
    """

    name: str
    modules: Mapping[str, str]


def layouts(model: keras.Model) -> list[Layout]:
    """The layouts in which a model's weights are found.

    Args:
        model: A model of the registry.

    Returns:
        At least one, the most usual one first.

    Raises:
        UserError: The model's layers are not those of the registry.
    """
    layers = [layer for layer in model.layers if layer.weights]
    found: list[Layout] = []
    for name, rules in _RULES.items():
        modules = _modules(layers, rules) if all(map(_has_parts, layers)) else None
        if modules is not None and _NEEDED.get(name, "logits") in modules:
            found.append(Layout(name, modules))
    if not found:
        if len(heads_of(model)) > 1:
            raise UserError(
                f"model {model.name!r} has a neck before its classifier (retrieval.neck), and no "
                "PyTorch layout has one: its .keras file is what there is."
            )
        raise UserError(
            f"model {model.name!r}: no PyTorch layout is known for its layers; expected one of "
            "kgraft's architectures."
        )
    if any("_shortcut" in layer.name for layer in layers):
        found.sort(key=lambda layout: layout.name == "cifar")  # torchvision's ResNets have them
    return found


def to_state(model: keras.Model, layout: Layout) -> State:
    """A model's weights as a PyTorch state dict.

    Args:
        model: Whose weights.
        layout: One of `layouts(model)`.

    Returns:
        Key -> array in PyTorch's shape; `num_batches_tracked`, which Keras does not count, is 0.
    """
    state: State = {}
    for name, module in layout.modules.items():
        layer = model.get_layer(name)
        for (part, axes), value in zip(_parts(layer), layer.get_weights(), strict=True):
            state[f"{module}.{part}"] = np.ascontiguousarray(value.transpose(axes))
        if isinstance(layer, keras.layers.BatchNormalization):
            state[f"{module}.num_batches_tracked"] = np.array(0)
    return state


def best_layout(model: keras.Model, state: State) -> Layout:
    """The layout that shares most keys with a state dict, the first of equals."""
    return max(
        layouts(model), key=lambda layout: len(expected(model, layout).keys() & state.keys())
    )


def load_state(model: keras.Model, state: State, layout: Layout, source: str) -> None:
    """Give a model the weights of a state dict; it stays as it was where they do not fit.

    Args:
        model: Whose weights are replaced.
        state: Key -> array, in PyTorch's shapes.
        layout: One of `layouts(model)`.
        source: Where the state comes from, for errors.

    Raises:
        UserError: Names the first key that is missing, has another shape or has no place.
    """
    wanted = expected(model, layout)
    if not wanted.keys() & state.keys():
        raise UserError(
            f"{source} holds none of {model.name}'s keys: it begins with {next(iter(state))}; "
            f"{_known(model)}."
        )
    foreign = [k for k in state if k not in wanted and not k.endswith(".num_batches_tracked")]
    for key, shape in wanted.items():
        if key not in state:
            missing = f"{source}: no {key} of shape {shape}, which {model.name} needs."
            if foreign:
                missing += f" It holds {foreign[0]}; {_known(model)}."
            raise UserError(missing)
        if state[key].shape != shape:
            raise UserError(f"{source}: {key} is {state[key].shape}; {model.name} expects {shape}.")
        if state[key].dtype != np.float32:
            raise UserError(f"{source}: {key} is {state[key].dtype}; expected float32.")
    if foreign:
        shape = state[foreign[0]].shape
        raise UserError(f"{source}: {foreign[0]} {shape} has no place in {model.name}.")
    for name, module in layout.modules.items():
        layer = model.get_layer(name)
        layer.set_weights(
            [state[f"{module}.{part}"].transpose(np.argsort(axes)) for part, axes in _parts(layer)]
        )


def expected(model: keras.Model, layout: Layout) -> dict[str, tuple[int, ...]]:
    """The keys of a model's state dict and their shapes, in the model's order.

    Args:
        model: A model of the registry.
        layout: One of `layouts(model)`.
    """
    shapes = {}
    for name, module in layout.modules.items():
        layer = model.get_layer(name)
        for (part, axes), weight in zip(_parts(layer), layer.weights, strict=True):
            shapes[f"{module}.{part}"] = tuple(int(weight.shape[axis]) for axis in axes)
    return shapes


def _known(model: keras.Model) -> str:
    """The layouts of a model, each with its first key, for errors."""
    first = [
        f"{known.name} ({next(iter(expected(model, known)))}, ...)" for known in layouts(model)
    ]
    return f"layouts known for it: {', '.join(first)}"


def _parts(layer: Any) -> list[tuple[str, tuple[int, ...]]]:
    """PyTorch's name of each of a layer's weights, and the Keras axes in PyTorch's order."""
    match layer:
        case keras.layers.DepthwiseConv2D():
            return [("weight", (2, 3, 0, 1))]
        case keras.layers.Conv2D():
            return [("weight", (3, 2, 0, 1)), ("bias", (0,))][: len(layer.weights)]
        case keras.layers.Dense():
            return [("weight", (1, 0)), ("bias", (0,))]
        case _:
            return [(part, (0,)) for part in _NORMALISATION]


def _has_parts(layer: Any) -> bool:
    """Whether a layer's weights are those that a layer of its name would have in PyTorch."""
    parts = _parts(layer)
    return len(parts) == len(layer.weights) and all(
        len(axes) == len(weight.shape)
        for (_, axes), weight in zip(parts, layer.weights, strict=True)
    )


def _modules(layers: list[Any], rules: Rules) -> dict[str, str] | None:
    """Keras layer -> PyTorch module; None where a layer follows no rule."""
    modules: dict[str, str] = {}
    blocks: list[tuple[str, str]] = []
    for layer in layers:
        for pattern, template in rules:
            found = re.fullmatch(pattern, layer.name)
            if found:
                groups = found.groupdict()
                place = _place(groups, blocks) if "block" in groups else {}
                modules[layer.name] = template.format(**{**groups, **place})
                break
        else:
            return None
    return modules if len(set(modules.values())) == len(modules) else None


def _place(groups: dict[str, str], blocks: list[tuple[str, str]]) -> dict[str, int]:
    """Where a block stands: in its stage, counted from 0 and from 1, and over all stages."""
    block = (groups["stage"], groups["block"])
    if block not in blocks:
        blocks.append(block)
    number = blocks.index(block)
    # in VGG's list of layers three stand for every convolution, and one pooling after every stage
    convolution = 3 * number + int(groups["stage"]) - 1
    return {
        "block": int(groups["block"]) - 1,
        "ordinal": int(groups["block"]),
        "number": number,
        "feature": number + 1,
        "convolution": convolution,
        "normalisation": convolution + 1,
    }
