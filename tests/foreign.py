"""Networks as others publish them, with the names that their tensors have in checkpoints."""

from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F


class WideBlock(nn.Module):
    """RobustBench's block of a wide ResNet."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inside)
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        if inside != outside:
            self.convShortcut = nn.Conv2d(inside, outside, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        shortcut = self.convShortcut(out) if hasattr(self, "convShortcut") else x
        return torch.add(shortcut, self.conv2(F.relu(self.bn2(self.conv1(out)))))


class Stage(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int, count: int) -> None:
        super().__init__()
        first = WideBlock(inside, outside, stride)
        self.layer = nn.Sequential(
            first, *(WideBlock(outside, outside, 1) for _ in range(count - 1))
        )

    def forward(self, x: Tensor) -> Any:
        return self.layer(x)


class WideResNet(nn.Module):
    """RobustBench's, with the first stage that it keeps twice and the statistics of its images."""

    mu: Tensor
    sigma: Tensor

    def __init__(self, depth: int, width: int, classes: int) -> None:
        super().__init__()
        n, channels = (depth - 4) // 6, (16, 16 * width, 32 * width, 64 * width)
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.block1 = Stage(channels[0], channels[1], 1, n)
        self.sub_block1 = Stage(channels[0], channels[1], 1, n)
        self.block2 = Stage(channels[1], channels[2], 2, n)
        self.block3 = Stage(channels[2], channels[3], 2, n)
        self.bn1 = nn.BatchNorm2d(channels[3])
        self.fc = nn.Linear(channels[3], classes)
        self.register_buffer("mu", torch.tensor([0.49, 0.48, 0.45]).view(1, 3, 1, 1))
        self.register_buffer("sigma", torch.tensor([0.25, 0.24, 0.26]).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Any:
        out = self.conv1((x - self.mu) / self.sigma)
        out = self.block3(self.block2(self.block1(out)))
        out = F.avg_pool2d(F.relu(self.bn1(out)), 8)
        return self.fc(out.flatten(1))


class PreActBlock(nn.Module):
    """RobustBench's PreActBlock (``raw``) and PreActBlockV2."""

    def __init__(self, inside: int, outside: int, stride: int, raw: bool) -> None:
        super().__init__()
        self.raw = raw
        self.bn1 = nn.BatchNorm2d(inside)
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        if stride != 1 or inside != outside:
            convolution = nn.Conv2d(inside, outside, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        shortcut: Tensor = x
        if hasattr(self, "shortcut"):
            shortcut = self.shortcut(x if self.raw else out)
        out = self.conv2(F.relu(self.bn2(self.conv1(out))))
        total: Tensor = out + shortcut
        return total


class CifarBlock(nn.Module):
    """The basic block of the ResNets for 32 pixels that go around."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.shortcut = nn.Sequential()
        if stride != 1 or inside != outside:
            convolution = nn.Conv2d(inside, outside, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


class CifarResNet(nn.Module):
    """ResNet-18 for 32 pixels: ``plain`` blocks, or PreActResNet18 with and without a last norm."""

    def __init__(self, kind: str, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        if kind == "plain":
            self.bn1 = nn.BatchNorm2d(64)
        inside = 64
        stages = []
        for stage, outside in enumerate((64, 128, 256, 512)):
            blocks: list[nn.Module] = []
            for stride in (2 if stage else 1, 1):
                if kind == "plain":
                    blocks.append(CifarBlock(inside, outside, stride))
                else:
                    blocks.append(PreActBlock(inside, outside, stride, kind == "raw"))
                inside = outside
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        if kind == "normed":
            self.bn = nn.BatchNorm2d(512)
        self.linear = nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Any:
        out = self.conv1(x)
        out = F.relu(self.bn1(out)) if hasattr(self, "bn1") else out
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        out = F.relu(self.bn(out)) if hasattr(self, "bn") else out
        return self.linear(F.avg_pool2d(out, 4).flatten(1))


def published(arch: str, classes: int) -> nn.Module:
    """The network that an architecture must equal."""
    origin, _, name = arch.partition(":")
    if origin == "torchvision":
        found: nn.Module = getattr(torchvision.models, name)(weights=None, num_classes=classes)
        return found
    if origin == "timm":
        import timm

        made: nn.Module = timm.create_model(name, pretrained=False, num_classes=classes)
        return made
    if arch.startswith("wrn"):
        _, depth, width, _ = arch.split("-")
        return WideResNet(int(depth), int(width), classes)
    kinds = {"resnet-18": "plain", "preact-resnet-18": "normed", "preact-resnet-18-raw": "raw"}
    return CifarResNet(kinds[arch], classes)


def lived_in(network: nn.Module) -> nn.Module:
    """The network in evaluation mode and float64, with drawn statistics and scales of its norms."""
    draws = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2, generator=draws)
            elif name.endswith("running_mean"):
                tensor.normal_(0, 0.1, generator=draws)
            elif tensor.dim() == 1 and tensor.is_floating_point():
                tensor.add_(torch.randn(tensor.shape, generator=draws), alpha=0.1)
    return network.double().eval()
