"""``--arch toy-W``: a network of L = 3 blocks of one convolution, W channels wide."""

from collections import OrderedDict

from torch import nn

from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.registry.architectures import FAMILIES, Architecture, Family


def build(width: int, num_classes: int) -> BlockModel:
    blocks = [
        nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()),
        nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()),
        nn.Sequential(
            OrderedDict(
                pool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                linear=nn.Linear(width, num_classes),
            )
        ),
    ]
    return BlockModel(nn.Conv2d(3, width, 3, stride=2), blocks)


def parse(name: str) -> Architecture | None:
    family, _, width = name.partition("-")
    if family != "toy" or not width.isdecimal():
        return None
    return Architecture(3, f"{__name__}:build", (int(width),))


FAMILIES["toy"] = Family("toy-W", parse)
