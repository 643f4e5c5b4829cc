"""Gradients averaged over processes by torch's DistributedDataParallel."""

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.ranks import Ranks
from cartl_cli.core.training.recipe import LossOfBatch, StepLoss


class _Loss(nn.Module):
    """A recipe's loss as a module, for DistributedDataParallel to follow.

    Everything that a step does with the model happens in this one forward pass: the attack, which
    takes gradients of pixels alone, and one or two passes whose loss is differentiated.
    """

    def __init__(self, model: BlockModel, loss_of_batch: LossOfBatch) -> None:
        super().__init__()
        self.model = model
        self.loss_of_batch = loss_of_batch

    def forward(self, images: Tensor, labels: Tensor, step: int) -> StepLoss:
        """As the recipe's own."""
        return self.loss_of_batch(images, labels, step)


def averaged(
    model: BlockModel,
    loss_of_batch: LossOfBatch,
    ranks: Ranks,
    device: torch.device,
    head_steps: int,
) -> LossOfBatch:
    """The same loss, after which the gradients are the mean over all processes.

    Before each step all buffers (batch-norm statistics, vectors of the spectral norm) become those
    of the first process. The first ``head_steps`` steps give some parameters no gradient. The model
    keeps its own structure and names.
    """
    if ranks.alone:
        return loss_of_batch

    def followed(partial: bool) -> DistributedDataParallel:
        return DistributedDataParallel(
            _Loss(model, loss_of_batch),
            device_ids=[device.index] if device.type == "cuda" else None,
            find_unused_parameters=partial,
        )

    rest = followed(False)
    if head_steps == 0:
        return rest
    head = followed(True)  # of the two only the one whose forward pass was made averages

    def loss(images: Tensor, labels: Tensor, step: int) -> StepLoss:
        found: StepLoss = (head if step < head_steps else rest)(images, labels, step)
        return found

    return loss
