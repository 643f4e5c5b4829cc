"""PGD as an attack that measures: every iterate is judged, and a fallen image leaves."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from cartl_cli.core.attacks.contract import (
    STANDS,
    Attack,
    AttackSetting,
    Batch,
    Outcome,
    Targets,
    by_batches,
)
from cartl_cli.core.method.losses import PerImageLoss, cross_entropy, margin
from cartl_cli.core.method.norm_ball import scatter
from cartl_cli.core.method.pgd import Budget, ascent, pgd_step
from cartl_cli.core.models.blocks import BlockModel, eval_mode
from cartl_cli.core.models.folding import folded
from cartl_cli.core.models.pieces import in_pieces
from cartl_cli.core.runtime.devices import float32
from cartl_cli.core.runtime.randomness import counted_noise

Begin = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
"""Numbers of images (n,) → the images, their labels and where they start."""


def _pgd(
    loss: PerImageLoss, model: BlockModel, targets: Targets, budget: Budget, setting: AttackSetting
) -> Iterator[tuple[Tensor, Outcome]]:
    def begin(indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch = targets.batch(indices)
        return batch.images, batch.labels, start(batch, budget, setting)

    return walk(model, targets.indices, targets.size, begin, budget, loss, setting.to_the_end)


pgd_cross_entropy: Attack = partial(_pgd, cross_entropy)
"""The paper's attack."""

pgd_margin: Attack = partial(_pgd, margin)
"""PGD on the margin, which does not fade where logits are small."""


@by_batches
def fgsm(model: BlockModel, batch: Batch, budget: Budget, setting: AttackSetting) -> Outcome:
    """One step of size ε from the image itself (Goodfellow et al. 2015)."""
    one = replace(budget, steps=1, step_size=budget.eps)
    return attack(model, batch.images, batch.labels, batch.images, one, cross_entropy, False)


def attack(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    start: Tensor,
    budget: Budget,
    loss: PerImageLoss,
    to_the_end: bool,
) -> Outcome:
    """The evaluating attack, see ``walk``, on one batch of images."""
    outcome = Outcome(start.clone(), torch.full_like(labels, STANDS), labels < 0)

    def begin(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return images[rows], labels[rows], start[rows]

    rows = torch.arange(len(labels), device=labels.device)
    for some, part in walk(model, rows, len(rows), begin, budget, loss, to_the_end):
        outcome.adversarial[some] = part.adversarial
        outcome.fell_at[some] = part.fell_at
        outcome.fallen_last[some] = part.fallen_last
    return outcome


def walk(
    model: nn.Module,
    queue: Tensor,
    size: int,
    begin: Begin,
    budget: Budget,
    loss: PerImageLoss,
    to_the_end: bool,
) -> Iterator[tuple[Tensor, Outcome]]:
    """The evaluating attack: an image has fallen if *any* iterate is misclassified in float32.

    Gradients are those of the folded model and may be taken in bfloat16 (under the caller's
    autocast), verdicts are the model's own. A fallen image leaves, unless ``to_the_end`` asks for
    everybody's last iterate. The images numbered in ``queue`` (N,) walk ``size`` at a time, each by
    its own count of steps: where one leaves, the next takes its place, so that a pass is a full
    batch. Yields the numbers of those that leave and what was found of them.
    """
    light, steps = folded(model), budget.steps
    numbers, queue = queue[:size].clone(), queue[size:]
    images, labels, adversarial = (tensor.clone() for tensor in begin(numbers))  # by place
    found, seen = adversarial.clone(), adversarial.clone()
    taken, fell_at = torch.zeros_like(labels), torch.full_like(labels, STANDS)
    suspected = fell_at.clone()  # the number of the iterate ``seen`` that waits for float32
    busy = torch.ones_like(labels, dtype=torch.bool)

    with eval_mode(model):
        while busy.any():
            ended = busy & (suspected == STANDS) & (taken == steps)
            if ended.any():
                seen[ended], suspected[ended] = adversarial[ended], steps
            waiting = busy & (suspected != STANDS)
            in_doubt = waiting & (suspected < steps)
            # a look costs a pass however few they are; without a queue, doubt holds up the end
            if 8 * waiting.sum() >= busy.sum() or (len(queue) == 0 and in_doubt.any()):
                rows = waiting.nonzero().squeeze(1)
                wrong = ~correct(predict(model, seen[rows]), labels[rows])
                unfallen = fell_at[rows] == STANDS
                found[rows[unfallen]] = seen[rows[unfallen]]
                fell_at[rows[unfallen & wrong]] = suspected[rows[unfallen & wrong]]
                leaving = (
                    suspected[rows] == steps if to_the_end else wrong | (suspected[rows] == steps)
                )
                suspected[rows] = STANDS
                free = rows[leaving]
                yield numbers[free], Outcome(found[free], fell_at[free], wrong[leaving])
                arriving, queue = queue[: len(free)], queue[len(free) :]
                busy[free[len(arriving) :]] = False
                if len(arriving) > 0:
                    free = free[: len(arriving)]
                    numbers[free], taken[free], fell_at[free] = arriving, 0, STANDS
                    images[free], labels[free], adversarial[free] = begin(arriving)
            else:
                rows = (busy & ~waiting).nonzero().squeeze(1)
                everybody = len(rows) == len(busy)
                some = slice(None) if everybody else rows  # no copy
                points = adversarial[some]
                logits, gradient = ascent(light, points, labels[some], loss)
                wrong = ~correct(logits, labels[some]) & (fell_at[some] == STANDS)
                if wrong.any():
                    seen[rows[wrong]], suspected[rows[wrong]] = points[wrong], taken[rows[wrong]]
                moved = pgd_step(points, gradient, images[some], budget)
                adversarial = moved if everybody else adversarial.index_copy(0, rows, moved)
                taken[some] += 1


def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Logits (B, classes) as every verdict takes them.

    In evaluation mode, in float32 without TF32, without gradient.
    """
    with eval_mode(model), torch.no_grad(), float32(images.device):
        return in_pieces(model, images)


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Which predictions are right (B,); a logit that is not finite counts as wrong."""
    return (logits.argmax(1) == labels) & logits.isfinite().all(1)


def confirm(model: nn.Module, points: Tensor, labels: Tensor, logits: Tensor) -> Tensor:
    """``logits`` (B, classes), taken again in float32 where they say that a prediction is wrong."""
    suspects = ~correct(logits, labels)
    if not suspects.any():
        return logits
    sure = predict(model, points[suspects])
    return logits.to(sure.dtype).index_put((suspects,), sure)


def start(
    batch: Batch, budget: Budget, setting: AttackSetting, purpose: str = "attack start"
) -> Tensor:
    """A random start (B, C, H, W) that belongs to each image and restart."""
    images, indices = batch.images, batch.indices
    noise = counted_noise(images, setting.seed, purpose, setting.restart, indices)
    return scatter(images, noise, budget.eps, budget.norm)
