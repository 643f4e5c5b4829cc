"""The one training loop. Learning rate and epsilon are functions of the step."""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

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
from cartl_cli.core.errors import UsageError
from cartl_cli.core.ranks import ALONE, Ranks
from cartl_cli.core.records.manifest import Position
from cartl_cli.core.training.progress import Progress, Tally
from cartl_cli.core.training.recipe import LossOfBatch


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
        trained,
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        fused=trained[0].is_cuda,  # on a CPU the same speed, rounded otherwise
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
    look: Callable[[Progress], None],
    step_done: Callable[[int], bool] = lambda step: True,
    ranks: Ranks = ALONE,
) -> Position:
    """Minimise ``loss_of_batch`` in place, from a position on to the last step.

    ``step_done`` is called after each step with the steps done so far, and says whether to ``look``
    at the progress, as is done at the end of each epoch. Between two looks nothing waits for the
    device.

    Of many processes each takes a part of every batch, the mean of their gradients is that of the
    whole batch, and position and progress count all images; all look after the same steps.

    Given the model and optimizer of that position, what follows does not depend on how it was
    reached: every random draw and the learning rate are functions of epoch, batch and step. The
    caller has set each module's training flag; nothing here changes it. Raises DivergedError
    before anybody looks at what a loss that is not finite has led to.
    """
    total_steps = count_steps(config, len(split))
    steps_per_epoch = total_steps // config.epochs
    times = steps_per_batch(config)
    position, tally, session = begun, Tally(ranks), time.monotonic()
    for epoch in range(begun.step // steps_per_epoch, config.epochs):
        first = position.step - epoch * steps_per_epoch
        if first == 0:
            position = Position(step=position.step, seconds=position.seconds)
        epoch_began, seen_before = time.monotonic(), position.seen
        batch, replays = divmod(first, times)
        batches = epoch_batches(
            split, config.batch_size, augment, config.seed, epoch, batch, ranks.part
        )
        for step, (images, labels) in enumerate(
            replayed(batches, times, replays), start=position.step
        ):
            part = part_of_step(config, len(split), ranks, step)
            rate = learning_rate(config, step, steps_per_epoch)
            for group in optimizer.param_groups:
                group["lr"] = rate
            with autocast:
                result = loss_of_batch(images, labels, step)
            # over several processes the mean of the gradients is taken
            (result.loss * (part.weight * ranks.size)).backward()
            result.backward_done()
            optimizer.step()
            optimizer.zero_grad()  # gradients hold no memory while the next images are made
            tally.add(result, len(labels), part)
            epoch_ended = step + 1 == (epoch + 1) * steps_per_epoch
            if step_done(step + 1) or epoch_ended:
                position = tally.read(position)
                now = time.monotonic()
                position = position.model_copy(update={"seconds": begun.seconds + now - session})
                look(
                    Progress(
                        position=position,
                        epoch=epoch + 1,
                        epochs=config.epochs,
                        total_steps=total_steps,
                        epoch_ended=epoch_ended,
                        learning_rate=rate,
                        images_per_second=(position.seen - seen_before)
                        / max(now - epoch_began, 1e-9),
                    )
                )
    return position
