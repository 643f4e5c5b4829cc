"""Where training stands, and what its steps leave on the device until somebody looks."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cartl_cli.core.data.batches import Part
from cartl_cli.core.errors import DivergedError
from cartl_cli.core.ranks import Ranks
from cartl_cli.core.records.manifest import Position
from cartl_cli.core.training.recipe import StepLoss


@dataclass(frozen=True)
class Progress:
    """Where training stands after a step."""

    position: Position
    epoch: int
    epochs: int
    total_steps: int
    epoch_ended: bool
    learning_rate: float
    images_per_second: float

    @property
    def loss(self) -> float:
        """Mean over the images of the epoch so far."""
        return self.position.loss_sum / self.position.seen

    @property
    def accuracy(self) -> dict[str, float]:
        """By what was predicted; fractions of the images of the epoch so far."""
        return {name: count / self.position.seen for name, count in self.position.correct.items()}

    @property
    def metrics(self) -> dict[str, int | float]:
        """The line of ``metrics.jsonl`` at the end of an epoch."""
        return {
            "epoch": self.epoch,
            "step": self.position.step,
            "loss": self.loss,
            **{f"{name}_accuracy": value for name, value in self.accuracy.items()},
            "learning_rate": self.learning_rate,
        }


class Tally:
    """Losses and counts of the steps since somebody looked: to read them is to wait for the device.

    Of many processes all must look after the same steps.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.steps: list[tuple[Tensor, int, Part]] = []
        self.names: tuple[str, ...] = ()

    def add(self, result: StepLoss, count: int, part: Part) -> None:
        """What a step made of ``count`` images, this process's ``part`` of a batch."""
        loss = result.loss.detach()
        row = torch.stack([loss, *(right.to(loss) for right in result.correct.values())])
        self.steps.append((row, count, part))
        self.names = tuple(result.correct)

    def read(self, position: Position) -> Position:
        """``position`` with these steps added, all but its seconds; the tally is empty then.

        Raises DivergedError if one of their losses is not finite.
        """
        steps, self.steps = self.steps, []
        rows = torch.stack([row for row, _, _ in steps]).tolist() if steps else []
        shares = [
            part.weight * value
            for (loss, *right), (_, count, part) in zip(rows, steps, strict=True)
            for value in (loss, *(number / count for number in right))
        ]
        means = iter(self.ranks.summed(shares))
        for _, own, part in steps:
            count, loss = round(own / part.share), next(means)
            if not math.isfinite(loss):
                raise DivergedError(
                    f"loss: not finite at step {position.step + 1}; start a new run with a smaller "
                    "--lr"
                )
            correct = {
                name: position.correct.get(name, 0) + round(next(means) * count)
                for name in self.names
            }
            position = position.model_copy(
                update={
                    "step": position.step + 1,
                    "seen": position.seen + count,
                    "loss_sum": position.loss_sum + loss * count,
                    "correct": correct,
                }
            )
        return position
