"""Weights part of the way from the classifier alone trained to everything fine-tuned.

A target model that leaves its robust source less far keeps more of its robustness, as weights
between those of a zero-shot and a fine-tuned model do (Wortsman et al. 2022, arXiv 2109.01903).
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from cartl_cli.core.training.training_plan import TrainingPlan

PREFIX = "classifier alone."


def remembered(plan: TrainingPlan, model: nn.Module) -> TrainingPlan:
    """The plan, with the weights after the phase of the classifier alone in its state."""
    kept = {PREFIX + name: tensor.clone() for name, tensor in model.state_dict().items()}

    def step_done(step: int) -> None:
        plan.step_done(step)
        if step == plan.head_steps:
            for name, tensor in model.state_dict().items():
                kept[PREFIX + name].copy_(tensor)

    return replace(plan, state=plan.state | kept, step_done=step_done)


@torch.no_grad()
def interpolate(kept: dict[str, Tensor], model: nn.Module, part: float) -> None:
    """θ ← θ_classifier alone + ``part`` · (θ − θ_classifier alone), batch-norm statistics too."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.lerp(kept[PREFIX + name], tensor, part))
