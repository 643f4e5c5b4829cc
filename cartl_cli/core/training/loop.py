"""The one training loop. Learning rate and epsilon are functions of the step."""

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from cartl_cli.core.config import PretrainConfig, TrainingConfig
from cartl_cli.core.data.batches import (
    Part,
    batches_per_epoch,
    epoch_batches,
    images_of_batch,
)
from cartl_cli.core.data.split import Split
from cartl_cli.core.errors import DivergedError, UsageError
from cartl_cli.core.ranks import ALONE, Ranks
from cartl_cli.core.records.manifest import Position


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


LossOfBatch = Callable[[Tensor, Tensor, int], StepLoss]
"""(images, labels, step) → StepLoss."""


@dataclass(frozen=True)
class Recipe:
    """What a training minimises, and what it carries from step to step besides the model.

    ``state``: named tensors that are updated in place and are part of every checkpoint.
    ``step_done`` is called after each step, before its state can be saved; what it has measured
    joins the line of ``metrics.jsonl``.
    """

    loss_of_batch: LossOfBatch
    state: dict[str, Tensor] = field(default_factory=dict)
    step_done: Callable[[Progress], dict[str, float]] = lambda progress: {}


def one_cycle(step: int, total_steps: int) -> float:
    """Factor of the peak learning rate: up over the first 30 % of training, down to 0."""
    done = (step + 1) / (total_steps + 1)
    return min(done / 0.3, (1 - done) / 0.7)


def step_decay(epoch: float, milestones: Sequence[int], warmup_epochs: float) -> float:
    """Factor of the peak learning rate: linear warm-up, then ×0.2 after each milestone."""
    warmup = min(1.0, epoch / warmup_epochs) if warmup_epochs > 0 else 1.0
    return warmup * 0.2 ** sum(epoch > milestone for milestone in milestones)


def learning_rate(config: TrainingConfig, step: int, steps_per_epoch: int) -> float:
    """The learning rate of one step under the configured schedule."""
    if config.schedule == "onecycle":
        return config.lr * one_cycle(step, config.epochs * steps_per_epoch)
    epoch = (step + 1) / steps_per_epoch
    return config.lr * step_decay(epoch, config.milestones, config.warmup_epochs)


def ramp(step: int, total_steps: int, warmup: float) -> float:
    """Factor of eps: rises linearly to 1 over the first ``warmup`` (0..1) of training."""
    return min(1.0, (step + 1) / (warmup * total_steps)) if warmup > 0 else 1.0


def count_steps(config: TrainingConfig, images: int) -> int:
    """Steps of the whole training. Raises UsageError if the batch is larger than the data."""
    if config.batch_size > images:
        raise UsageError(
            f"--batch-size: {config.batch_size} is larger than the {images} training images; "
            f"use 2..{images}"
        )
    return config.epochs * batches_per_epoch(images, config.batch_size) * steps_per_batch(config)


def steps_per_batch(config: TrainingConfig) -> int:
    """Steps in a row on each batch."""
    return config.steps_per_batch if isinstance(config, PretrainConfig) else 1


def replayed(
    batches: Iterable[tuple[Tensor, Tensor]], times: int, done: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Each batch ``times`` in a row; ``done`` times of the first one are over."""
    repeated = (batch for batch in batches for _ in range(times))
    return itertools.islice(repeated, done, None)


def part_of_step(config: TrainingConfig, images: int, ranks: Ranks, step: int) -> Part:
    """What this process takes of the batch of a step, of ``images`` an epoch."""
    batch = step % batches_per_epoch(images, config.batch_size)
    return ranks.part(images_of_batch(images, config.batch_size, batch))


def sgd(model: nn.Module, config: TrainingConfig) -> torch.optim.SGD:
    """The optimizer of everything in ``model`` that is to be trained.

    Momentum starts as zeros rather than at the first gradient, so that a checkpoint has it of every
    parameter, of those too that a recipe leaves alone for a while (a gradient of None).
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(
        trained, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
    )
    if config.momentum > 0:
        for parameter in trained:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def fit(
    model: nn.Module,
    optimizer: torch.optim.SGD,
    split: Split,
    config: TrainingConfig,
    augment: Sequence[str],
    loss_of_batch: LossOfBatch,
    autocast: torch.autocast,
    begun: Position,
    step_done: Callable[[Progress], None],
    ranks: Ranks = ALONE,
) -> Position:
    """Minimise ``loss_of_batch`` in place, from a position on to the last step.

    Of many processes each takes a part of every batch, the mean of their gradients is that of the
    whole batch, and position and progress count all images.

    Given the model and optimizer of that position, what follows does not depend on how it was
    reached: every random draw and the learning rate are functions of epoch, batch and step. The
    caller has set each module's training flag; nothing here changes it. Raises DivergedError
    before the optimizer takes a step on a loss that is not finite.
    """
    total_steps = count_steps(config, len(split))
    steps_per_epoch = total_steps // config.epochs
    times = steps_per_batch(config)
    position, session = begun, time.monotonic()
    for epoch in range(begun.step // steps_per_epoch, config.epochs):
        first = position.step - epoch * steps_per_epoch
        if first == 0:
            position = Position(step=position.step, seconds=position.seconds)
        epoch_began, seen_before = time.monotonic(), position.seen
        batch, replays = divmod(first, times)
        batches = epoch_batches(
            split, config.batch_size, augment, config.seed, epoch, batch, ranks.part
        )
        for images, labels in replayed(batches, times, replays):
            part = part_of_step(config, len(split), ranks, position.step)
            rate = learning_rate(config, position.step, steps_per_epoch)
            for group in optimizer.param_groups:
                group["lr"] = rate
            with autocast:
                result = loss_of_batch(images, labels, position.step)
            right = [int(count) / len(labels) for count in result.correct.values()]
            loss, *right = ranks.mean([result.loss.item(), *right], part.weight)
            if not math.isfinite(loss):
                raise DivergedError(
                    f"loss: not finite at step {position.step + 1} (epoch {epoch + 1}); start a "
                    "new run with a smaller --lr"
                )
            optimizer.zero_grad()
            # over several processes the mean of the gradients is taken
            (result.loss * (part.weight * ranks.size)).backward()
            result.backward_done()
            optimizer.step()
            count = round(len(labels) / part.share)
            correct = {
                name: position.correct.get(name, 0) + round(share * count)
                for name, share in zip(result.correct, right, strict=True)
            }
            now = time.monotonic()
            position = Position(
                step=position.step + 1,
                seconds=begun.seconds + now - session,
                seen=position.seen + count,
                loss_sum=position.loss_sum + loss * count,
                correct=correct,
            )
            step_done(
                Progress(
                    position=position,
                    epoch=epoch + 1,
                    epochs=config.epochs,
                    total_steps=total_steps,
                    epoch_ended=position.step == (epoch + 1) * steps_per_epoch,
                    learning_rate=rate,
                    images_per_second=(position.seen - seen_before) / max(now - epoch_began, 1e-9),
                )
            )
    return position
