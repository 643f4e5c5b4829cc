"""The one training loop. Learning rate and epsilon are functions of the step."""

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from cartl_cli.core.config import TrainingConfig
from cartl_cli.core.data.batches import (
    batches_per_epoch,
    epoch_batches,
    images_of_batch,
    part_of_batch,
)
from cartl_cli.core.data.split import Split
from cartl_cli.core.errors import DivergedError
from cartl_cli.core.method.objective import Objective, StepLoss
from cartl_cli.core.runs.manifest import Position
from cartl_cli.core.runtime.ranks import ALONE, Part, Ranks


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


def count_steps(config: TrainingConfig, images: int, replays: int = 1) -> int:
    """Steps of the whole training, ``replays`` in a row on each batch."""
    return config.epochs * batches_per_epoch(images, config.batch_size) * replays


def replayed(
    batches: Iterable[tuple[Tensor, Tensor]], times: int, done: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Each batch ``times`` in a row; ``done`` times of the first one are over."""
    repeated = (batch for batch in batches for _ in range(times))
    return itertools.islice(repeated, done, None)


def sgd(model: nn.Module, config: TrainingConfig) -> torch.optim.SGD:
    """The optimizer of everything in ``model`` that is to be trained.

    Momentum starts as zeros rather than at the first gradient, so that a checkpoint has it of every
    parameter, even of one that has no gradient (None) in the first steps.
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


@dataclass(frozen=True)
class Training:
    """What is trained (``model``, by ``optimizer``), on what (``split``, augmented), to what end.

    Each batch is used for ``replays`` steps in a row. The caller has set each module's training
    flag. Of many processes (``ranks``) each takes a part of every batch, and the mean of their
    gradients is that of the whole batch.
    """

    model: nn.Module
    optimizer: torch.optim.SGD
    split: Split
    config: TrainingConfig
    objective: Objective
    autocast: torch.autocast
    augment: tuple[str, ...] = ()
    ranks: Ranks = ALONE
    replays: int = 1


@dataclass(frozen=True)
class Progress:
    """Where training stands after a step; loss and accuracies are those of the epoch so far.

    ``accuracy`` has fractions, by what was predicted.
    """

    position: Position
    epoch: int
    epochs: int
    total_steps: int
    epoch_ended: bool
    learning_rate: float
    images_per_second: float
    loss: float
    accuracy: dict[str, float]

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


@dataclass(frozen=True)
class Step:
    """A step that has been taken, the ``done``-th of all. To ``look`` is to wait for the device.

    ``look`` raises DivergedError if the loss of a step since the last look is not finite.
    """

    done: int
    epoch_ended: bool
    look: Callable[[], Progress]


def take_step(
    training: Training, images: Tensor, labels: Tensor, step: int, part: Part, rate: float | Tensor
) -> StepLoss:
    """One step of the optimizer on a batch, at a learning rate."""
    for group in training.optimizer.param_groups:
        group["lr"] = rate
    with training.autocast:
        result = training.objective(images, labels, step, part)
    # over several processes the mean of the gradients is taken
    (result.loss * (part.weight * training.ranks.size)).backward()
    if result.backward_done is not None:
        result.backward_done()
    training.optimizer.step()
    training.optimizer.zero_grad()  # gradients hold no memory while the next images are made
    return result


Take = Callable[[Training, Tensor, Tensor, int, Part, float], StepLoss]
"""(training, images, labels, step, part, learning rate) → one step of the optimizer."""


def fit(training: Training, begun: Position, take: Take = take_step) -> Iterator[Step]:
    """Minimise the objective in place, from a position on to the last step; yields each step.

    The caller must look at the step that ends an epoch, and may look at any other. Between two
    looks nothing waits for the device. Of many processes all must look after the same steps.
    ``take`` takes each step.

    Given the model and optimizer of that position, what follows does not depend on how it was
    reached: every random draw and the learning rate are functions of epoch, batch and step. No
    module's training flag is changed here.
    """
    config, count, times = training.config, len(training.split.labels), training.replays
    total_steps = count_steps(config, count, times)
    steps_per_epoch = total_steps // config.epochs
    tally = Tally(training.ranks, begun)
    for epoch in range(begun.step // steps_per_epoch, config.epochs):
        first = max(0, begun.step - epoch * steps_per_epoch)
        tally.begin_epoch(first)
        batch, replays = divmod(first, times)
        batches = epoch_batches(
            training.split,
            config.batch_size,
            training.augment,
            config.seed,
            epoch,
            batch,
            training.ranks,
        )
        for step, (images, labels) in enumerate(
            replayed(batches, times, replays), start=epoch * steps_per_epoch + first
        ):
            batch = step // times % batches_per_epoch(count, config.batch_size)
            size = images_of_batch(count, config.batch_size, batch)
            part = part_of_batch(size, training.ranks)
            rate = learning_rate(config, step, steps_per_epoch)
            found = take(training, images, labels, step, part, rate)
            tally.add(found, len(labels), part)
            ended = step + 1 == (epoch + 1) * steps_per_epoch

            yield Step(
                step + 1, ended, partial(tally.progress, config, total_steps, epoch, ended, rate)
            )


class Tally:
    """Where training stands, and what its steps have left on the device since somebody looked."""

    def __init__(self, ranks: Ranks, begun: Position) -> None:
        self.ranks = ranks
        self.position = begun
        self.steps: list[tuple[Tensor, int, Part]] = []
        self.names: tuple[str, ...] = ()
        self.before = begun.seconds
        self.session = time.monotonic()

    def begin_epoch(self, steps_done: int) -> None:
        """Begin an epoch, of which so many steps are done: at 0 its sums begin anew."""
        if steps_done == 0:
            self.position = Position(step=self.position.step, seconds=self.position.seconds)
        self.epoch_began, self.seen_before = time.monotonic(), self.position.seen

    def add(self, result: StepLoss, count: int, part: Part) -> None:
        """What a step made of ``count`` images, this process's ``part`` of a batch."""
        loss = result.loss.detach()
        row = torch.stack([loss, *(right.to(loss) for right in result.correct.values())])
        self.steps.append((row, count, part))
        self.names = tuple(result.correct)

    def progress(
        self, config: TrainingConfig, total_steps: int, epoch: int, epoch_ended: bool, rate: float
    ) -> Progress:
        """Where training stands in an epoch, counted from 0, after a step at a learning rate."""
        position, now = self.read(), time.monotonic()
        seconds = max(now - self.epoch_began, 1e-9)
        return Progress(
            position=position,
            epoch=epoch + 1,
            epochs=config.epochs,
            total_steps=total_steps,
            epoch_ended=epoch_ended,
            learning_rate=rate,
            images_per_second=(position.seen - self.seen_before) / seconds,
            loss=position.loss_sum / position.seen,
            accuracy={name: count / position.seen for name, count in position.correct.items()},
        )

    def read(self) -> Position:
        """The position with the steps added that were not looked at; then there are none.

        Waits for the device. Raises DivergedError if one of their losses is not finite.
        """
        steps, self.steps = self.steps, []
        rows = torch.stack([row for row, _, _ in steps]).tolist() if steps else []
        shares = [
            part.weight * value
            for (loss, *right), (_, count, part) in zip(rows, steps, strict=True)
            for value in (loss, *(number / count for number in right))
        ]
        means = iter(self.ranks.summed(shares))
        position = self.position
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
            position = Position(
                step=position.step + 1,
                seen=position.seen + count,
                loss_sum=position.loss_sum + loss * count,
                correct=correct,
            )
        seconds = self.before + time.monotonic() - self.session
        self.position = position.model_copy(update={"seconds": seconds})
        return self.position
