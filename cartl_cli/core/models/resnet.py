"""ResNet-18 (He et al. 2016) with the CIFAR stem, as L = 9 blocks."""

from collections import OrderedDict
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from cartl_cli.core.models.blocks import BlockModel, ResidualSum, initialize
from cartl_cli.core.models.wide_resnet import conv3x3


class BasicBlock(nn.Module):
    """conv, norm, act, conv, norm, add, act; a 1×1 shortcut where the shape changes."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(channels_in, channels_out, stride)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = conv3x3(channels_out, channels_out)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.shortcut = (
            None
            if channels_in == channels_out and stride == 1
            else nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False),
                nn.BatchNorm2d(channels_out),
            )
        )
        self.add = ResidualSum()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) → (B, C_out, H/stride, W/stride)."""
        branch = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return F.relu(cast(Tensor, self.add(shortcut, branch)))


def resnet18(num_classes: int) -> BlockModel:
    """A 3×3 stem without max-pool, eight residual blocks, and the classifier with its pooling."""
    stem = nn.Sequential(conv3x3(3, 64), nn.BatchNorm2d(64), nn.ReLU(inplace=True))
    blocks: list[nn.Module] = []
    channels = 64
    for stage, out in enumerate((64, 128, 256, 512)):
        for index in range(2):
            stride = 2 if stage > 0 and index == 0 else 1
            blocks.append(BasicBlock(channels, out, stride))
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
