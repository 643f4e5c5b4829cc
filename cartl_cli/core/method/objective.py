"""What a training loop asks of a method: the loss of each batch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from cartl_cli.core.runtime.ranks import Part


@dataclass(frozen=True)
class StepLoss:
    """What a method makes of one batch: the loss to minimise and how many images it got right.

    ``correct`` maps what was predicted (``"clean"``, ``"adversarial"``) to a count, a 0-d tensor.
    ``backward_done``, if any, is called once there are gradients, before the optimizer takes its
    step.
    """

    loss: Tensor
    correct: dict[str, Tensor]
    backward_done: Callable[[], None] | None = None


class Objective(Protocol):
    """What a training minimises: a function of a batch, of which the images are a ``part``.

    ``images`` (B, C, H, W) in [0, 1], or features (B, …), with ``labels`` (B,); ``step`` counts
    from 0.
    """

    def __call__(self, images: Tensor, labels: Tensor, step: int, part: Part, /) -> StepLoss:
        """The loss, with a graph to the weights."""
