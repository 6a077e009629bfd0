"""Hand-written PyTorch networks, to hold the Keras ones against.

They share no code with kgraft. Sub-modules are called as the Keras layers are, with dots for
underscores (`stage1.block1.conv1`), so that weights can be copied by name.
"""

from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional


class BasicBlock(nn.Module):
    def __init__(self, channels, filters, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, filters, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(filters)
        self.conv2 = nn.Conv2d(filters, filters, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(filters)
        self.stride, self.extra = stride, filters - channels

    def forward(self, x):
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        if self.extra:
            x = x[:, :, :: self.stride, :: self.stride]
            x = functional.pad(x, (0, 0, 0, 0, self.extra // 2, self.extra // 2))
        return torch.relu(y + x)


class CifarResNet(nn.Module):
    def __init__(self, per_stage, channels, classes):
        super().__init__()
        self.stem = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.stem_bn = nn.BatchNorm2d(16)
        self.stage1 = stage(BasicBlock, 16, 16, per_stage, 1)
        self.stage2 = stage(BasicBlock, 16, 32, per_stage, 2)
        self.stage3 = stage(BasicBlock, 32, 64, per_stage, 2)
        self.logits = nn.Linear(64, classes)

    def forward(self, x):
        x = torch.relu(self.stem_bn(self.stem(x)))
        x = self.stage3(self.stage2(self.stage1(x)))
        return self.logits(x.mean(dim=(2, 3)))


class InvertedResidual(nn.Module):
    def __init__(self, channels, filters, expansion, stride):
        super().__init__()
        wide = channels * expansion
        self.expand = nn.Conv2d(channels, wide, 1, bias=False)
        self.expand_bn = nn.BatchNorm2d(wide)
        self.depthwise = nn.Conv2d(wide, wide, 3, stride=stride, padding=1, groups=wide, bias=False)
        self.depthwise_bn = nn.BatchNorm2d(wide)
        self.project = nn.Conv2d(wide, filters, 1, bias=False)
        self.project_bn = nn.BatchNorm2d(filters)
        self.stride = stride
        self.projects = stride == 1 and channels != filters
        if self.projects:
            self.shortcut = nn.Conv2d(channels, filters, 1, bias=False)
            self.shortcut_bn = nn.BatchNorm2d(filters)

    def forward(self, x):
        y = torch.relu(self.expand_bn(self.expand(x)))
        y = torch.relu(self.depthwise_bn(self.depthwise(y)))
        y = self.project_bn(self.project(y))
        if self.stride == 2:
            return y
        return y + (self.shortcut_bn(self.shortcut(x)) if self.projects else x)


class CifarMobileNetV2(nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        self.stem = nn.Conv2d(channels, 32, 3, padding=1, bias=False)
        self.stem_bn = nn.BatchNorm2d(32)
        width = 32
        table = [[1, 16, 1, 1], [6, 24, 2, 1], [6, 32, 3, 2], [6, 64, 4, 2]]
        table += [[6, 96, 3, 1], [6, 160, 3, 2], [6, 320, 1, 1]]
        for number, (expansion, filters, count, stride) in enumerate(table, start=1):
            made = OrderedDict()
            for block in range(count):
                made[f"block{block + 1}"] = InvertedResidual(
                    width, filters, expansion, stride if block == 0 else 1
                )
                width = filters
            self.add_module(f"stage{number}", nn.Sequential(made))
        self.last = nn.Conv2d(320, 1280, 1, bias=False)
        self.last_bn = nn.BatchNorm2d(1280)
        self.logits = nn.Linear(1280, classes)

    def forward(self, x):
        x = torch.relu(self.stem_bn(self.stem(x)))
        for number in range(1, 8):
            x = getattr(self, f"stage{number}")(x)
        x = torch.relu(self.last_bn(self.last(x)))
        return self.logits(x.mean(dim=(2, 3)))


class WideBlock(nn.Module):
    def __init__(self, channels, filters, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, filters, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(filters)
        self.conv2 = nn.Conv2d(filters, filters, 3, padding=1, bias=False)
        self.projects = channels != filters
        if self.projects:
            self.shortcut = nn.Conv2d(channels, filters, 1, stride=stride, bias=False)

    def forward(self, x):
        active = torch.relu(self.bn1(x))
        y = self.conv2(torch.relu(self.bn2(self.conv1(active))))
        return y + (self.shortcut(active) if self.projects else x)


class WideResNet(nn.Module):
    def __init__(self, per_stage, width, channels, classes):
        super().__init__()
        self.stem = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.stage1 = stage(WideBlock, 16, 16 * width, per_stage, 1)
        self.stage2 = stage(WideBlock, 16 * width, 32 * width, per_stage, 2)
        self.stage3 = stage(WideBlock, 32 * width, 64 * width, per_stage, 2)
        self.last_bn = nn.BatchNorm2d(64 * width)
        self.logits = nn.Linear(64 * width, classes)

    def forward(self, x):
        x = self.stage3(self.stage2(self.stage1(self.stem(x))))
        return self.logits(torch.relu(self.last_bn(x)).mean(dim=(2, 3)))


def stage(block, channels, filters, count, stride):
    made = OrderedDict(block1=block(channels, filters, stride))
    for number in range(2, count + 1):
        made[f"block{number}"] = block(filters, filters, 1)
    return nn.Sequential(made)


def randomise(module, generator):
    """Kernels of a size that keeps activations near 1; every other number away from its default."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            fan_in = part.weight[0].numel()
            part.weight.data.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
        if isinstance(part, nn.Linear):
            part.bias.data.normal_(generator=generator)
        if isinstance(part, nn.BatchNorm2d):
            part.weight.data.uniform_(0.5, 1.5, generator=generator)
            part.bias.data.normal_(0, 0.5, generator=generator)
            part.running_mean.normal_(0, 0.5, generator=generator)
            part.running_var.uniform_(0.5, 2.0, generator=generator)


def weights_by_layer(module):
    """Keras layer name -> its weights as NumPy arrays, in Keras' order and layout."""
    layers = {}
    for name, part in module.named_modules():
        if isinstance(part, nn.Conv2d):
            kernel = part.weight.permute(2, 3, 1, 0)
            arrays = [kernel.permute(0, 1, 3, 2) if part.groups > 1 else kernel]
        elif isinstance(part, nn.Linear):
            arrays = [part.weight.T, part.bias]
        elif isinstance(part, nn.BatchNorm2d):
            arrays = [part.weight, part.bias, part.running_mean, part.running_var]
        else:
            continue
        layers[name.replace(".", "_")] = [array.detach().numpy() for array in arrays]
    return layers
