"""The one training loop. Learning rate and epsilon are functions of the step."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cartl_cli.core.config import TrainingConfig
from cartl_cli.core.data.batches import batches_per_epoch, epoch_batches
from cartl_cli.core.data.split import Split
from cartl_cli.core.errors import DivergedError, UsageError


@dataclass(frozen=True)
class StepLoss:
    """What a recipe makes of one batch: the loss to minimise and how many images it got right.

    ``correct`` maps what was predicted (``"clean"``, ``"adversarial"``) to a count, a 0-d tensor.
    """

    loss: Tensor
    correct: dict[str, Tensor]


@dataclass(frozen=True)
class Progress:
    """Where training stands after a step. Means are over the epoch so far; accuracies 0..1."""

    epoch: int
    epochs: int
    step: int
    total_steps: int
    epoch_ended: bool
    loss: float
    accuracy: dict[str, float]
    learning_rate: float
    images_per_second: float


LossOfBatch = Callable[[Tensor, Tensor, int], StepLoss]
"""(images, labels, step) → StepLoss."""


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
    return config.epochs * batches_per_epoch(images, config.batch_size)


def fit(
    model: nn.Module,
    split: Split,
    config: TrainingConfig,
    augment: Sequence[str],
    loss_of_batch: LossOfBatch,
    report: Callable[[Progress], None],
    autocast: torch.autocast,
) -> None:
    """Minimise ``loss_of_batch`` over the trainable parameters with SGD, in place.

    The caller has set each module's training flag; nothing here changes it. Raises DivergedError
    before the optimizer takes a step on a loss that is not finite.
    """
    total_steps = count_steps(config, len(split))
    steps_per_epoch = total_steps // config.epochs
    optimizer = torch.optim.SGD(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )
    step = 0
    for epoch in range(config.epochs):
        began, seen, loss_sum = time.monotonic(), 0, 0.0
        correct: dict[str, int] = {}
        for images, labels in epoch_batches(split, config.batch_size, augment, config.seed, epoch):
            rate = learning_rate(config, step, steps_per_epoch)
            for group in optimizer.param_groups:
                group["lr"] = rate
            with autocast:
                result = loss_of_batch(images.to(memory_format=torch.channels_last), labels, step)
            loss = result.loss.item()
            if not math.isfinite(loss):
                raise DivergedError(
                    f"loss: not finite at step {step + 1} (epoch {epoch + 1}); try a smaller --lr"
                )
            optimizer.zero_grad()
            result.loss.backward()
            optimizer.step()
            step += 1
            seen += len(labels)
            loss_sum += loss * len(labels)
            for name, count in result.correct.items():
                correct[name] = correct.get(name, 0) + int(count)
            report(
                Progress(
                    epoch=epoch + 1,
                    epochs=config.epochs,
                    step=step,
                    total_steps=total_steps,
                    epoch_ended=step % steps_per_epoch == 0,
                    loss=loss_sum / seen,
                    accuracy={name: count / seen for name, count in correct.items()},
                    learning_rate=rate,
                    images_per_second=seen / max(time.monotonic() - began, 1e-9),
                )
            )
