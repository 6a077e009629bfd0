"""Hand-written PyTorch networks, to hold the Keras ones against.

They share no code with kgraft. Their sub-modules have the names that the usual PyTorch
implementations give them (the CIFAR repositories', torchvision's), so that their state dicts are
files as users have them; `layer_name` says what each is called in Keras.
"""

import re

import torch
from torch import nn
from torch.nn import functional


def conv(channels, filters, size, stride=1, **options):
    options = {"bias": False, **options}
    return nn.Conv2d(channels, filters, size, stride=stride, padding=size // 2, **options)


class OptionABlock(nn.Module):
    def __init__(self, channels, filters, stride, slope):
        super().__init__()
        self.conv1 = conv(channels, filters, 3, stride)
        self.bn1 = nn.BatchNorm2d(filters)
        self.conv2 = conv(filters, filters, 3)
        self.bn2 = nn.BatchNorm2d(filters)
        self.stride, self.extra, self.slope = stride, filters - channels, slope

    def forward(self, x):
        y = functional.leaky_relu(self.bn1(self.conv1(x)), self.slope)
        y = self.bn2(self.conv2(y))
        if self.extra:
            x = x[:, :, :: self.stride, :: self.stride]
            x = functional.pad(x, (0, 0, 0, 0, self.extra // 2, self.extra // 2))
        return functional.leaky_relu(y + x, self.slope)


class CifarResNet(nn.Module):
    names = (
        (r"conv1", "stem"),
        (r"bn1", "stem_bn"),
        (r"layer(\d)\.(\d+)\.(conv|bn)(\d)", "stage{0}_block{1+1}_{2}{3}"),
        (r"linear", "logits"),
    )

    def __init__(self, per_stage, channels, classes, slope=0.0):
        super().__init__()
        self.conv1 = conv(channels, 16, 3)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = stage(OptionABlock, 16, 16, per_stage, 1, slope)
        self.layer2 = stage(OptionABlock, 16, 32, per_stage, 2, slope)
        self.layer3 = stage(OptionABlock, 32, 64, per_stage, 2, slope)
        self.linear = nn.Linear(64, classes)
        self.slope = slope

    def forward(self, x):
        x = functional.leaky_relu(self.bn1(self.conv1(x)), self.slope)
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean(dim=(2, 3)))


class InvertedResidual(nn.Module):
    def __init__(self, channels, filters, expansion, stride):
        super().__init__()
        wide = channels * expansion
        self.conv1 = conv(channels, wide, 1)
        self.bn1 = nn.BatchNorm2d(wide)
        self.conv2 = conv(wide, wide, 3, stride, groups=wide)
        self.bn2 = nn.BatchNorm2d(wide)
        self.conv3 = conv(wide, filters, 1)
        self.bn3 = nn.BatchNorm2d(filters)
        self.stride = stride
        self.shortcut = nn.Sequential()
        if stride == 1 and channels != filters:
            self.shortcut = nn.Sequential(conv(channels, filters, 1), nn.BatchNorm2d(filters))

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return y if self.stride == 2 else y + self.shortcut(x)


def inverted_residual_names(table):
    """The blocks lie one after the other in torch, by stage and block in Keras."""
    blocks = [(s, b) for s, row in enumerate(table, 1) for b in range(1, row[2] + 1)]
    for i, (s, b) in enumerate(blocks):
        for number, part in enumerate(("expand", "depthwise", "project"), 1):
            yield rf"layers\.{i}\.conv{number}", f"stage{s}_block{b}_{part}"
            yield rf"layers\.{i}\.bn{number}", f"stage{s}_block{b}_{part}_bn"
        yield rf"layers\.{i}\.shortcut\.0", f"stage{s}_block{b}_shortcut"
        yield rf"layers\.{i}\.shortcut\.1", f"stage{s}_block{b}_shortcut_bn"


class CifarMobileNetV2(nn.Module):
    table = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1))
    table += ((6, 160, 3, 2), (6, 320, 1, 1))
    names = (
        (r"conv1", "stem"),
        (r"bn1", "stem_bn"),
        *inverted_residual_names(table),
        (r"conv2", "last"),
        (r"bn2", "last_bn"),
        (r"linear", "logits"),
    )

    def __init__(self, channels, classes):
        super().__init__()
        self.conv1 = conv(channels, 32, 3)
        self.bn1 = nn.BatchNorm2d(32)
        width, made = 32, []
        for expansion, filters, count, stride in self.table:
            for block in range(count):
                made.append(
                    InvertedResidual(width, filters, expansion, stride if block == 0 else 1)
                )
                width = filters
        self.layers = nn.Sequential(*made)
        self.conv2 = conv(320, 1280, 1)
        self.bn2 = nn.BatchNorm2d(1280)
        self.linear = nn.Linear(1280, classes)

    def forward(self, x):
        x = self.layers(torch.relu(self.bn1(self.conv1(x))))
        x = torch.relu(self.bn2(self.conv2(x)))
        return self.linear(x.mean(dim=(2, 3)))


class Expanded(nn.Module):
    def __init__(self, channels, filters, expansion, stride):
        super().__init__()
        wide = channels * expansion
        made = [self.active(conv(channels, wide, 1), wide)] if expansion > 1 else []
        made.append(self.active(conv(wide, wide, 3, stride, groups=wide), wide))
        self.conv = nn.Sequential(*made, conv(wide, filters, 1), nn.BatchNorm2d(filters))
        self.adds = stride == 1 and channels == filters

    @staticmethod
    def active(convolution, filters):
        return nn.Sequential(convolution, nn.BatchNorm2d(filters), nn.ReLU6())

    def forward(self, x):
        return x + self.conv(x) if self.adds else self.conv(x)


class MobileNetV2(nn.Module):
    """As torchvision names and makes it."""

    table = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1))
    table += ((6, 160, 3, 2), (6, 320, 1, 1))
    names = (
        (r"features\.0\.0", "stem"),
        (r"features\.0\.1", "stem_bn"),
        (r"features\.18\.0", "last"),
        (r"features\.18\.1", "last_bn"),
        (r"features\.1\.conv\.0\.0", "stage1_block1_depthwise"),
        (r"features\.1\.conv\.0\.1", "stage1_block1_depthwise_bn"),
        (r"features\.1\.conv\.1", "stage1_block1_project"),
        (r"features\.1\.conv\.2", "stage1_block1_project_bn"),
        *(
            (rf"features\.{number}\.conv\.{place}", f"{block}_{part}")
            for number, block in enumerate(
                (
                    f"stage{stage}_block{own + 1}"
                    for stage, (_, _, count, _) in enumerate(table, 1)
                    for own in range(count)
                ),
                1,
            )
            if number > 1
            for place, part in (
                (r"0\.0", "expand"),
                (r"0\.1", "expand_bn"),
                (r"1\.0", "depthwise"),
                (r"1\.1", "depthwise_bn"),
                ("2", "project"),
                ("3", "project_bn"),
            )
        ),
        (r"classifier\.1", "logits"),
    )

    def __init__(self, channels, classes, last_stride=2):
        super().__init__()
        width, made = 32, [Expanded.active(conv(channels, 32, 3, 2), 32)]
        for stage, (expansion, filters, count, stride) in enumerate(self.table, 1):
            for block in range(count):
                own = last_stride if stage == 6 else stride
                made.append(Expanded(width, filters, expansion, own if block == 0 else 1))
                width = filters
        made.append(Expanded.active(conv(320, 1280, 1), 1280))
        self.features = nn.Sequential(*made)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, classes))

    def forward(self, x):
        return self.classifier(self.features(x).mean(dim=(2, 3)))


class WideBlock(nn.Module):
    def __init__(self, channels, filters, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = conv(channels, filters, 3, stride)
        self.bn2 = nn.BatchNorm2d(filters)
        self.conv2 = conv(filters, filters, 3)
        self.convShortcut = conv(channels, filters, 1, stride) if channels != filters else None

    def forward(self, x):
        active = torch.relu(self.bn1(x))
        y = self.conv2(torch.relu(self.bn2(self.conv1(active))))
        return y + (x if self.convShortcut is None else self.convShortcut(active))


class WideStage(nn.Module):
    def __init__(self, *args):
        super().__init__()
        self.layer = stage(WideBlock, *args)

    def forward(self, x):
        return self.layer(x)


class WideResNet(nn.Module):
    names = (
        (r"conv1", "stem"),
        (r"block(\d)\.layer\.(\d+)\.(conv|bn)(\d)", "stage{0}_block{1+1}_{2}{3}"),
        (r"block(\d)\.layer\.(\d+)\.convShortcut", "stage{0}_block{1+1}_shortcut"),
        (r"bn1", "last_bn"),
        (r"fc", "logits"),
    )

    def __init__(self, per_stage, width, channels, classes):
        super().__init__()
        self.conv1 = conv(channels, 16, 3)
        self.block1 = WideStage(16, 16 * width, per_stage, 1)
        self.block2 = WideStage(16 * width, 32 * width, per_stage, 2)
        self.block3 = WideStage(32 * width, 64 * width, per_stage, 2)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, classes)

    def forward(self, x):
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(torch.relu(self.bn1(x)).mean(dim=(2, 3)))


class NamedWideBlock(nn.Module):
    def __init__(self, channels, filters, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = conv(channels, filters, 3, stride)
        self.bn2 = nn.BatchNorm2d(filters)
        self.conv2 = conv(filters, filters, 3)
        self.shortcut = nn.Sequential()
        if channels != filters:
            self.shortcut.add_module("conv", conv(channels, filters, 1, stride))

    def forward(self, x):
        active = torch.relu(self.bn1(x))
        y = self.conv2(torch.relu(self.bn2(self.conv1(active))))
        return y + (self.shortcut(active) if len(self.shortcut) else x)


class NamedWideResNet(nn.Module):
    """The same network by the names that hysts and FG's authors give its parts."""

    names = (
        (r"conv", "stem"),
        (r"stage(\d)\.block(\d+)\.(conv|bn)(\d)", "stage{0}_block{1}_{2}{3}"),
        (r"stage(\d)\.block(\d+)\.shortcut\.conv", "stage{0}_block{1}_shortcut"),
        (r"bn", "last_bn"),
        (r"fc", "logits"),
    )

    def __init__(self, per_stage, width, channels, classes):
        super().__init__()
        self.conv = conv(channels, 16, 3)
        before = 16
        for number in (1, 2, 3):
            filters = 2 ** (number + 3) * width
            made = nn.Sequential()
            for block in range(1, per_stage + 1):
                stride = 2 if number > 1 and block == 1 else 1
                made.add_module(f"block{block}", NamedWideBlock(before, filters, stride))
                before = filters
            self.add_module(f"stage{number}", made)
        self.bn = nn.BatchNorm2d(before)
        self.fc = nn.Linear(before, classes)

    def forward(self, x):
        x = self.stage3(self.stage2(self.stage1(self.conv(x))))
        return self.fc(torch.relu(self.bn(x)).mean(dim=(2, 3)))


def vgg_names(widths, places):
    layers = [(s, n) for s, row in enumerate(widths, 1) for n in range(1, len(row) + 1)]
    for place, (s, n) in zip(places, layers, strict=True):
        yield rf"features\.{place}", f"stage{s}_conv{n}"
        yield rf"features\.{place + 1}", f"stage{s}_bn{n}"


class CifarVGG16(nn.Module):
    widths = ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3)
    places = (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40)
    names = (*vgg_names(widths, places), (r"classifier", "logits"))

    def __init__(self, channels, classes):
        super().__init__()
        made = []
        for row in self.widths:
            for filters in row:
                made += [conv(channels, filters, 3, bias=True), nn.BatchNorm2d(filters), nn.ReLU()]
                channels = filters
            made.append(nn.MaxPool2d(2, 2, ceil_mode=True))
        self.features = nn.Sequential(*made)
        self.classifier = nn.Linear(512, classes)

    def forward(self, x):
        return self.classifier(self.features(x).mean(dim=(2, 3)))


class OptionBBlock(nn.Module):
    def __init__(self, channels, filters, stride, bottleneck):
        super().__init__()
        if bottleneck:
            wide = 4 * filters
            sizes = (
                (channels, filters, 1, 1),
                (filters, filters, 3, stride),
                (filters, wide, 1, 1),
            )
        else:
            wide = filters
            sizes = ((channels, filters, 3, stride), (filters, filters, 3, 1))
        for number, size in enumerate(sizes, 1):
            self.add_module(f"conv{number}", conv(*size))
            self.add_module(f"bn{number}", nn.BatchNorm2d(size[1]))
        self.count = len(sizes)
        self.downsample = None
        if stride != 1 or channels != wide:
            self.downsample = nn.Sequential(conv(channels, wide, 1, stride), nn.BatchNorm2d(wide))

    def forward(self, x):
        y = x
        for number in range(1, self.count + 1):
            y = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(y))
            if number < self.count:
                y = torch.relu(y)
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class ImageNetResNet(nn.Module):
    names = (
        (r"conv1", "stem"),
        (r"bn1", "stem_bn"),
        (r"layer(\d)\.(\d+)\.(conv|bn)(\d)", "stage{0}_block{1+1}_{2}{3}"),
        (r"layer(\d)\.(\d+)\.downsample\.0", "stage{0}_block{1+1}_shortcut"),
        (r"layer(\d)\.(\d+)\.downsample\.1", "stage{0}_block{1+1}_shortcut_bn"),
        (r"fc", "logits"),
    )

    def __init__(self, depths, bottleneck, channels, classes):
        super().__init__()
        self.conv1 = conv(channels, 64, 7, 2)
        self.bn1 = nn.BatchNorm2d(64)
        self.pool = nn.MaxPool2d(3, 2, padding=1)
        width = 64
        for number, (depth, filters) in enumerate(zip(depths, (64, 128, 256, 512), strict=True), 1):
            made = []
            for block in range(depth):
                stride = 2 if number > 1 and block == 0 else 1
                made.append(OptionBBlock(width, filters, stride, bottleneck))
                width = filters * (4 if bottleneck else 1)
            self.add_module(f"layer{number}", nn.Sequential(*made))
        self.fc = nn.Linear(width, classes)

    def forward(self, x):
        x = self.pool(torch.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean(dim=(2, 3)))


TWINS = {
    "resnet20": lambda channels, classes: CifarResNet(3, channels, classes),
    "resnet32": lambda channels, classes: CifarResNet(5, channels, classes),
    "resnet44": lambda channels, classes: CifarResNet(7, channels, classes),
    "resnet56": lambda channels, classes: CifarResNet(9, channels, classes),
    "resnet110": lambda channels, classes: CifarResNet(18, channels, classes),
    "resnet20-leaky": lambda channels, classes: CifarResNet(3, channels, classes, 0.01),
    "mobilenet_v2": CifarMobileNetV2,
    "mobilenet_v2-224": MobileNetV2,
    "vgg16": CifarVGG16,
    "wrn-10-1": lambda channels, classes: WideResNet(1, 1, channels, classes),
    "wrn-16-2": lambda channels, classes: WideResNet(2, 2, channels, classes),
    "wrn-28-10": lambda channels, classes: WideResNet(4, 10, channels, classes),
    "resnet18": lambda channels, classes: ImageNetResNet((2, 2, 2, 2), False, channels, classes),
    "resnet34": lambda channels, classes: ImageNetResNet((3, 4, 6, 3), False, channels, classes),
    "resnet50": lambda channels, classes: ImageNetResNet((3, 4, 6, 3), True, channels, classes),
}


def stage(block, channels, filters, count, stride, *options):
    made = [block(channels, filters, stride, *options)]
    made += [block(filters, filters, 1, *options) for _ in range(count - 1)]
    return nn.Sequential(*made)


def randomise(module, generator):
    """Kernels of a size that keeps activations near 1; every other number away from its default."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            fan_in = part.weight[0].numel()
            part.weight.data.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
            if part.bias is not None:
                part.bias.data.normal_(generator=generator)
        if isinstance(part, nn.BatchNorm2d):
            part.weight.data.uniform_(0.5, 1.5, generator=generator)
            part.bias.data.normal_(0, 0.5, generator=generator)
            part.running_mean.normal_(0, 0.5, generator=generator)
            part.running_var.uniform_(0.5, 2.0, generator=generator)


def layer_name(module, name):
    """What Keras calls the sub-module `name`; `{1+1}` in a template is the second group plus 1."""
    for pattern, template in module.names:
        found = re.fullmatch(pattern, name)
        if found:
            groups = found.groups()
            return re.sub(
                r"\{(\d)(\+1)?\}",
                lambda m, g=groups: str(int(g[int(m[1])]) + 1) if m[2] else g[int(m[1])],
                template,
            )
    raise KeyError(name)


def weights_by_layer(module):
    """Keras layer name -> its weights as NumPy arrays, in Keras' order and layout."""
    layers = {}
    for name, part in module.named_modules():
        if isinstance(part, nn.Conv2d):
            kernel = part.weight.permute(2, 3, 1, 0)
            arrays = [kernel.permute(0, 1, 3, 2) if part.groups > 1 else kernel]
            arrays += [] if part.bias is None else [part.bias]
        elif isinstance(part, nn.Linear):
            arrays = [part.weight.T, part.bias]
        elif isinstance(part, nn.BatchNorm2d):
            arrays = [part.weight, part.bias, part.running_mean, part.running_var]
        else:
            continue
        layers[layer_name(module, name)] = [array.detach().numpy() for array in arrays]
    return layers


def copy_to(model, module):
    """Give a Keras model the weights of its twin, once both have the same layers."""
    layers = weights_by_layer(module)
    assert {layer.name for layer in model.layers if layer.weights} == set(layers)
    for name, arrays in layers.items():
        # copies: jax would take the twin's memory for its own, and train along with it
        model.get_layer(name).set_weights([array.copy() for array in arrays])
