"""Gradients averaged over processes by torch's DistributedDataParallel."""

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cartl_cli.core.method.objective import Objective, StepLoss
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.runtime.ranks import Part, Ranks


class _Loss(nn.Module):
    """An objective as a module, for DistributedDataParallel to follow.

    Everything that a step does with the model happens in this one forward pass: the attack, which
    takes gradients of pixels alone, and one or two passes whose loss is differentiated.
    """

    def __init__(self, model: BlockModel, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(self, images: Tensor, labels: Tensor, step: int, part: Part) -> StepLoss:
        """As the objective's own."""
        return self.objective(images, labels, step, part)


def averaged(
    model: BlockModel, objective: Objective, ranks: Ranks, device: torch.device, head_steps: int
) -> Objective:
    """The same objective, after which the gradients are the mean over all processes.

    Before each step all buffers (batch-norm statistics, vectors of the spectral norm) become those
    of the first process. The first ``head_steps`` steps give some parameters no gradient. The model
    keeps its own structure and names.
    """

    def followed(partial: bool) -> DistributedDataParallel:
        return DistributedDataParallel(
            _Loss(model, objective),
            device_ids=[device.index] if device.type == "cuda" else None,
            find_unused_parameters=partial,
        )

    rest = followed(False)
    if head_steps == 0:
        return rest
    head = followed(True)  # of the two only the one whose forward pass was made averages

    def loss(images: Tensor, labels: Tensor, step: int, part: Part) -> StepLoss:
        found: StepLoss = (head if step < head_steps else rest)(images, labels, step, part)
        return found

    return loss
