"""Wide ResNet WRN-D-W (Zagoruyko & Komodakis 2016), D = 6n+4, as L = 3n+2 blocks."""

from collections import OrderedDict
from typing import cast

from torch import Tensor, nn

from cartl_cli.core.models.blocks import BlockModel, ResidualSum, initialize


def conv3x3(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    """A padded 3×3 convolution without bias."""
    return nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)


def norm_act(channels: int, slope: float) -> nn.Sequential:
    """Batch norm and a leaky ReLU, or a ReLU where the ``slope`` is 0."""
    act = nn.LeakyReLU(slope, inplace=True) if slope else nn.ReLU(inplace=True)
    return nn.Sequential(OrderedDict(norm=nn.BatchNorm2d(channels), act=act))


class PreActivationBlock(nn.Module):
    """norm, act, conv, norm, act, conv; a 1×1 shortcut where the channels change.

    The shortcut starts behind the first activation, or with ``raw_shortcut`` before its norm.
    """

    FOLLOWED = (("conv1", "norm_act2.norm"),)

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        stride: int,
        slope: float,
        raw_shortcut: bool = False,
    ) -> None:
        super().__init__()
        self.raw_shortcut = raw_shortcut
        self.norm_act1 = norm_act(channels_in, slope)
        self.conv1 = conv3x3(channels_in, channels_out, stride)
        self.norm_act2 = norm_act(channels_out, slope)
        self.conv2 = conv3x3(channels_out, channels_out)
        self.shortcut = (
            None
            if channels_in == channels_out
            else nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
        )
        self.add = ResidualSum()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) → (B, C_out, H/stride, W/stride)."""
        activated = self.norm_act1(x)
        branch = self.conv2(self.norm_act2(self.conv1(activated)))
        shortcut = x
        if self.shortcut is not None:
            shortcut = self.shortcut(x if self.raw_shortcut else activated)
        return cast(Tensor, self.add(shortcut, branch))


def wide_resnet(n: int, width: int, slope: float, num_classes: int) -> BlockModel:
    """Blocks 1..3n residual, block L−1 norm + act + pooling, block L the linear classifier.

    The official CARTL networks have leaky ReLUs of ``slope`` 0.1, others have ReLUs, slope 0.
    """
    blocks: list[nn.Module] = []
    channels = 16
    for stage, out in enumerate((16 * width, 32 * width, 64 * width)):
        for index in range(n):
            stride = 2 if stage > 0 and index == 0 else 1
            blocks.append(PreActivationBlock(channels, out, stride, slope))
            channels = out
    blocks.append(nn.Sequential(*norm_act(channels, slope), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    blocks.append(nn.Sequential(OrderedDict(linear=nn.Linear(channels, num_classes))))
    model = BlockModel(conv3x3(3, 16), blocks)
    initialize(model)
    return model
