"""The hand-written PyTorch loop: CIFAR networks, `torch.optim.SGD`, a per-layer grafting."""

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from kgraft.errors import UserError
from kgraft_cli.benchmarks.tasks import Task, batches_of, own_peak_bytes, take


def _conv(channels: int, filters: int, size: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(
        channels, filters, size, stride=stride, padding=size // 2, groups=groups, bias=False
    )


class _Block(nn.Module):
    def __init__(self, channels: int, filters: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(channels, filters, 3, stride), nn.BatchNorm2d(filters)
        self.conv2, self.bn2 = _conv(filters, filters, 3), nn.BatchNorm2d(filters)
        self.stride, self.side = stride, (filters - channels) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.side:
            x = x[:, :, :: self.stride, :: self.stride]
            x = functional.pad(x, (0, 0, 0, 0, self.side, self.side))
        return functional.relu(y + x)


class ResNet(nn.Module):
    """A CIFAR ResNet of depth 6n + 2 with option-A shortcuts."""

    def __init__(self, depth: int, channels: int, classes: int) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        width = 16
        for filters in (16, 32, 64):
            for number in range((depth - 2) // 6):
                stride = 2 if filters != 16 and number == 0 else 1
                blocks.append(_Block(width, filters, stride))
                width = filters
        self.conv, self.bn = _conv(channels, 16, 3), nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(*blocks)
        self.linear = nn.Linear(64, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        x = self.blocks(functional.relu(self.bn(self.conv(x))))
        return self.linear(x.mean((2, 3)))


class _Inverted(nn.Module):
    def __init__(self, channels: int, filters: int, expansion: int, stride: int) -> None:
        super().__init__()
        wide = channels * expansion
        self.conv1, self.bn1 = _conv(channels, wide, 1), nn.BatchNorm2d(wide)
        self.conv2, self.bn2 = _conv(wide, wide, 3, stride, groups=wide), nn.BatchNorm2d(wide)
        self.conv3, self.bn3 = _conv(wide, filters, 1), nn.BatchNorm2d(filters)
        self.residual = stride == 1
        self.shortcut = nn.Sequential()
        if self.residual and channels != filters:
            self.shortcut = nn.Sequential(_conv(channels, filters, 1), nn.BatchNorm2d(filters))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        y = functional.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return y + self.shortcut(x) if self.residual else y


class MobileNetV2(nn.Module):
    """MobileNetV2 for 32x32 images."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        table = [(1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1)]
        table += [(6, 160, 3, 2), (6, 320, 1, 1)]
        blocks: list[nn.Module] = []
        width = 32
        for expansion, filters, count, stride in table:
            for number in range(count):
                blocks.append(_Inverted(width, filters, expansion, stride if number == 0 else 1))
                width = filters
        self.conv1, self.bn1 = _conv(channels, 32, 3), nn.BatchNorm2d(32)
        self.blocks = nn.Sequential(*blocks)
        self.conv2, self.bn2 = _conv(width, 1280, 1), nn.BatchNorm2d(1280)
        self.linear = nn.Linear(1280, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        x = self.blocks(functional.relu(self.bn1(self.conv1(x))))
        x = functional.relu(self.bn2(self.conv2(x)))
        return self.linear(x.mean((2, 3)))


def network(name: str, channels: int, classes: int) -> nn.Module:
    """A hand-written network by kgraft's name of the architecture."""
    if name == "mobilenet_v2":
        return MobileNetV2(channels, classes)
    depth = name.removeprefix("resnet")
    if name.startswith("resnet") and depth.isdigit() and int(depth) % 6 == 2:
        return ResNet(int(depth), channels, classes)
    raise UserError(
        f"no hand-written PyTorch network for {name!r}: resnetN of CIFAR, mobilenet_v2."
    )


class Peer:
    """One network and its optimizer."""

    def __init__(self, task: Task, channels: int, classes: int) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        last = "channels-last" in task.contender
        self.format = torch.channels_last if last else torch.contiguous_format
        self.network = network(task.model, channels, classes).to(self.device)
        self.network = self.network.to(memory_format=self.format)
        self.optimizer = torch.optim.SGD(
            self.network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4
        )
        self.half = task.precision == "bfloat16"
        self.loss = self._forward
        if "compiled" in task.contender:
            self.loss = torch.compile(self._forward)
        self.total = torch.zeros((), device=self.device)
        self.right = torch.zeros((), device=self.device)

    def _forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            logits = self.network(x)
        return functional.cross_entropy(logits.float(), y), logits

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        """Forward, backward, update; loss and accuracy are summed up."""
        x = images.permute(0, 3, 1, 2).contiguous(memory_format=self.format)
        y = labels.long()
        self.optimizer.zero_grad()
        loss, logits = self.loss(x, y)
        loss.backward()
        self.optimizer.step()
        self.total += loss.detach()
        self.right += (logits.detach().argmax(1) == y).sum()


class Loop:
    """K networks, one after the other, in one process."""

    def __init__(self, task: Task) -> None:
        self._stream, classes = batches_of(task)
        channels = int(self._stream._images.shape[-1])
        self.peers = [Peer(task, channels, classes) for _ in range(task.peers)]

    def block(self, number: int, steps: int) -> None:
        """See `Contender`."""
        streams = [take(self._stream, k, number, steps) for k in range(len(self.peers))]
        for batches in zip(*streams, strict=True):
            for peer, batch in zip(self.peers, batches, strict=True):
                peer.network.train()
                peer.step(*batch)
        synchronize()

    def exchange(self) -> None:
        """The ring of the authors, layer by layer."""
        states = [
            {key: value.clone() for key, value in peer.network.state_dict().items()}
            for peer in self.peers
        ]
        for k, peer in enumerate(self.peers):
            peer.network.load_state_dict(graft(states[k], states[k - 1]))
        synchronize()

    def peak_bytes(self) -> int:
        """See `Contender`."""
        return own_peak_bytes()


def graft(own: dict[str, Any], donor: dict[str, Any]) -> dict[str, Any]:
    """One peer's state after grafting, by the authors' formula: a loop over all entries."""
    after, alpha = {}, 1.0
    for key, value in own.items():
        if "conv" in key and value.ndim == 4:
            difference = entropy(value) - entropy(donor[key])
            alpha = 0.4 / math.pi * math.atan(500 * difference) + 0.5
        if value.is_floating_point():
            value = alpha * value + (1 - alpha) * donor[key]
        after[key] = value
    return after


def entropy(weights: torch.Tensor, bins: int = 10) -> float:
    """Entropy of a layer's weights over equal-width bins, counted one bin after the other."""
    low, high = weights.min(), weights.max()
    width = (high - low) / bins
    total = 0.0
    for number in range(bins):
        start = low + number * width
        inside = weights >= start
        if number < bins - 1:
            inside &= weights < start + width
        share = inside.sum() / weights.numel()
        if share > 0:
            total -= float(share * torch.log(share))
    return total


def synchronize() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
