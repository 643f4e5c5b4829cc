"""An exponential moving average of the weights, of batch-norm statistics too."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from cartl_cli.core.training.training_plan import TrainingPlan

PREFIX = "average."


def begin(model: nn.Module) -> dict[str, Tensor]:
    """Room for the average, by names that no parameter has."""
    return {PREFIX + name: tensor.clone() for name, tensor in model.state_dict().items()}


def follow(average: dict[str, Tensor], model: nn.Module, decay: float, step: int) -> None:
    """Take in the weights after ``step``, counted from 1; ``average`` is updated in place.

    It is Σ dᵗ⁻ⁱ·wᵢ / Σ dᵗ⁻ⁱ over the steps i = 1..t: divided by the sum of the factors as the
    means of Adam are (Kingma & Ba 2015), so that the weights before the first step have no part
    in it. Whole numbers, such as batch norm's count of batches, are those of the last step.
    """
    part = (1 - decay) / (1 - decay**step)
    new = {PREFIX + name: tensor for name, tensor in model.state_dict().items()}
    moved = [name for name, tensor in new.items() if tensor.is_floating_point()]
    torch._foreach_lerp_([average[name] for name in moved], [new[name] for name in moved], part)
    for name in new.keys() - set(moved):
        average[name].copy_(new[name])


def take(average: dict[str, Tensor], model: nn.Module) -> None:
    """Make the average the model's weights."""
    model.load_state_dict({name: average[PREFIX + name] for name in model.state_dict()})


def averaged(plan: TrainingPlan, model: nn.Module, decay: float) -> TrainingPlan:
    """The plan, with an average of the weights in its state; as it is where ``decay`` is 0."""
    if decay == 0:
        return plan
    average = begin(model)

    def step_done(step: int) -> None:
        plan.step_done(step)
        follow(average, model, decay, step)

    return replace(plan, state=plan.state | average, step_done=step_done)
