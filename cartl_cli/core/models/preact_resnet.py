"""Pre-activation ResNet-18 (He et al. 2016b) with the CIFAR stem, as L = 9 blocks."""

from collections import OrderedDict

from torch import nn

from cartl_cli.core.models.blocks import BlockModel, initialize
from cartl_cli.core.models.wide_resnet import PreActivationBlock, conv3x3, norm_act


def preact_resnet18(normed: int, num_classes: int) -> BlockModel:
    """Eight residual blocks, and the classifier with its pooling.

    The networks that go around as one differ in two points. ``normed`` 1: shortcuts start behind
    the first activation, and the last block begins with norm and activation (Rice et al. 2020).
    0: neither (Wong et al. 2020).
    """
    blocks: list[nn.Module] = []
    channels = 64
    for stage, out in enumerate((64, 128, 256, 512)):
        for index in range(2):
            stride = 2 if stage > 0 and index == 0 else 1
            blocks.append(PreActivationBlock(channels, out, stride, 0.0, raw_shortcut=not normed))
            channels = out
    last = OrderedDict(norm_act(channels, 0.0).named_children() if normed else [])
    last.update(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten())
    last.update(linear=nn.Linear(channels, num_classes))
    blocks.append(nn.Sequential(last))
    model = BlockModel(conv3x3(3, 64), blocks)
    initialize(model)
    return model
