"""Another's network taken as it is: one block, which is its own ``forward``."""

import torch
from torch import Tensor, nn

from cartl_cli.core.models.blocks import BlockModel


class Whole(nn.Module):
    """A network that nobody has cut into blocks.

    It gets its images in torch's usual memory layout, since many networks flatten with ``view``.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] → what the network gives."""
        found: Tensor = self.network(images.contiguous())
        return found


def whole(network: nn.Module) -> BlockModel:
    """The network, not copied, as the only block; its own normalization, if any, is within it."""
    return BlockModel(nn.Identity(), [Whole(network)])


def within_whole(model: nn.Module) -> set[nn.Module]:
    """All modules of networks that nobody has cut into blocks."""
    taken = [module for module in model.modules() if isinstance(module, Whole)]
    return {inner for module in taken for inner in module.modules()}


def laid_out(model: BlockModel) -> BlockModel:
    """The model in the memory layout that is fastest; a whole network keeps its own."""
    if within_whole(model):
        return model
    return model.to(memory_format=torch.channels_last)
