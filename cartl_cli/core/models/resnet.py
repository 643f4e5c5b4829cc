"""ResNets (He et al. 2016): ResNet-18 with the CIFAR stem, and those of torchvision.

Each residual block is a block; the last one is the classifier with its pooling.
"""

from collections import OrderedDict
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from cartl_cli.core.models.blocks import BlockModel, ResidualSum, initialize
from cartl_cli.core.models.wide_resnet import conv3x3


def projection(channels_in: int, channels_out: int, stride: int) -> nn.Sequential | None:
    """A 1×1 convolution with batch norm where the shape changes."""
    if channels_in == channels_out and stride == 1:
        return None
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
    )


class BasicBlock(nn.Module):
    """conv, norm, act, conv, norm, add, act; a 1×1 shortcut where the shape changes."""

    FOLLOWED = (("conv1", "norm1"), ("conv2", "norm2"))

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(channels_in, channels_out, stride)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = conv3x3(channels_out, channels_out)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.shortcut = projection(channels_in, channels_out, stride)
        self.add = ResidualSum()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) → (B, C_out, H/stride, W/stride)."""
        branch = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return F.relu(cast(Tensor, self.add(shortcut, branch)))


class Bottleneck(nn.Module):
    """1×1 conv, norm, act, 3×3 conv of ``width``, norm, act, 1×1 conv, norm, add, act.

    The stride is that of the 3×3 convolution, as in torchvision.
    """

    FOLLOWED = (("conv1", "norm1"), ("conv2", "norm2"), ("conv3", "norm3"))

    def __init__(self, channels_in: int, width: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, width, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, channels_out, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(channels_out)
        self.shortcut = projection(channels_in, channels_out, stride)
        self.add = ResidualSum()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) → (B, C_out, H/stride, W/stride)."""
        branch = F.relu(self.norm1(self.conv1(x)))
        branch = F.relu(self.norm2(self.conv2(branch)))
        branch = self.norm3(self.conv3(branch))
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return F.relu(cast(Tensor, self.add(shortcut, branch)))


def resnet18(num_classes: int) -> BlockModel:
    """A 3×3 stem without max-pool, eight residual blocks, and the classifier: L = 9."""
    stem = nn.Sequential(conv3x3(3, 64), nn.BatchNorm2d(64), nn.ReLU(inplace=True))
    return _resnet(stem, "basic", 64, (2, 2, 2, 2), num_classes)


def imagenet_resnet(
    kind: str, width: int, one: int, two: int, three: int, four: int, num_classes: int
) -> BlockModel:
    """A ResNet of torchvision, whose stages have so many blocks.

    ``kind``: basic or bottleneck; ``width``: channels of the 3×3 convolutions of the first stage.
    """
    stem = nn.Sequential(
        nn.Conv2d(3, 64, 7, 2, padding=3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, padding=1),
    )
    return _resnet(stem, kind, width, (one, two, three, four), num_classes)


def _resnet(
    stem: nn.Module, kind: str, width: int, counts: tuple[int, ...], num_classes: int
) -> BlockModel:
    blocks: list[nn.Module] = []
    channels = 64
    for stage, count in enumerate(counts):
        inner, out = width * 2**stage, (64 if kind == "basic" else 256) * 2**stage
        for index in range(count):
            stride = 2 if stage > 0 and index == 0 else 1
            blocks.append(
                BasicBlock(channels, out, stride)
                if kind == "basic"
                else Bottleneck(channels, inner, out, stride)
            )
            channels = out
    blocks.append(
        nn.Sequential(
            OrderedDict(
                pool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                linear=nn.Linear(channels, num_classes),
            )
        )
    )
    model = BlockModel(stem, blocks)
    initialize(model)
    return model
