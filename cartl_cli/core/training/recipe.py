"""What a training minimises, and what it carries from step to step besides the model."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor


def nothing() -> None:
    """Do nothing."""


@dataclass(frozen=True)
class StepLoss:
    """What a recipe makes of one batch: the loss to minimise and how many images it got right.

    ``correct`` maps what was predicted (``"clean"``, ``"adversarial"``) to a count, a 0-d tensor.
    ``backward_done`` is called once there are gradients, before the optimizer takes its step.
    """

    loss: Tensor
    correct: dict[str, Tensor]
    backward_done: Callable[[], None] = nothing


LossOfBatch = Callable[[Tensor, Tensor, int], StepLoss]
"""(images, labels, step) → StepLoss."""


@dataclass(frozen=True)
class Recipe:
    """A loss, and the tensors that are its own.

    ``state``: named tensors that are updated in place and are part of every checkpoint.
    ``step_done`` is called after each step with the steps done so far, ``epoch_done`` after the
    last of an epoch with the epochs and steps done, both before their state can be saved; what the
    second has measured joins the line of ``metrics.jsonl``.
    """

    loss_of_batch: LossOfBatch
    state: dict[str, Tensor] = field(default_factory=dict)
    step_done: Callable[[int], None] = lambda step: None
    epoch_done: Callable[[int, int], dict[str, float]] = lambda epoch, step: {}
