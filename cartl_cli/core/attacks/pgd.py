"""Projected gradient descent in the ℓ∞ or ℓ₂ ball (Madry et al. 2018; CARTL Eq. 5).

Pixels stay in [0, 1]. The iterate is kept rather than δ = adversarial − images, so that the ball
and the pixel range are one projection.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cartl_cli.core.attacks.geometry import Norm, project, scatter, uphill
from cartl_cli.core.devices import sent
from cartl_cli.core.losses import cross_entropy
from cartl_cli.core.models.blocks import eval_mode
from cartl_cli.core.models.folding import folded
from cartl_cli.core.precision import float32
from cartl_cli.core.randomness import generator

STANDS = -1

Objective = Callable[[Tensor, Tensor], Tensor]
"""(logits, labels) → what the attack maximises for each image (B,)."""

Begin = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
"""Numbers of images (n,) → the images, their labels and where they start."""


@dataclass(frozen=True)
class Budget:
    """eps and step_size in ``norm``, pixels on the 0..1 scale; ``steps`` of gradient ascent."""

    eps: float
    step_size: float
    steps: int
    norm: Norm = "linf"


@dataclass(frozen=True)
class Outcome:
    """What one attack found, image by image, judged in float32.

    ``adversarial`` (B, C, H, W): the first misclassified iterate, else the last one, or the best
    one of an attack that keeps it (Auto-PGD, Square).
    ``fell_at`` (B,): the number of that iterate, 0 for the start, ``STANDS`` where there is none.
    ``fallen_last`` (B,): misclassified at the last iterate made for that image.
    """

    adversarial: Tensor
    fell_at: Tensor
    fallen_last: Tensor

    @property
    def fallen(self) -> Tensor:
        """Misclassified at some iterate (B,)."""
        return self.fell_at != STANDS


def uniform_noise(images: Tensor, draws: torch.Generator, first: int = 0) -> Tensor:
    """U(0, 1) of the shape of a whole batch, or of its rows from ``first`` on.

    A row's noise does not depend on which other rows are asked for.
    """
    shape = (first + len(images), *images.shape[1:])
    return sent(torch.rand(shape, generator=draws)[first:], images.device)


def uniform_start(images: Tensor, eps: float, draws: torch.Generator) -> Tensor:
    """Random start for a whole batch: images plus U(−ε, ε), clipped to [0, 1]."""
    return scatter(images, uniform_noise(images, draws), eps, "linf")


def counted_noise(images: Tensor, seed: int, purpose: str, number: int, indices: Tensor) -> Tensor:
    """U(0, 1) of the images' shape, drawn per image index: it does not depend on the batch."""
    noise = torch.stack(
        [
            torch.rand(images.shape[1:], generator=generator(seed, purpose, number, index))
            for index in indices.tolist()
        ]
    )
    return noise.to(images.device)


def perturb(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    start: Tensor,
    budget: Budget,
    objective: Objective = cross_entropy,
) -> Tensor:
    """The training attack: the last PGD iterate, model in evaluation mode."""
    adversarial = start
    with eval_mode(model):
        for _ in range(budget.steps):
            _, gradient = ascent(model, adversarial, labels, objective)
            adversarial = _step(adversarial, gradient, images, budget)
    return adversarial


def attack(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    start: Tensor,
    budget: Budget,
    objective: Objective,
    to_the_end: bool,
) -> Outcome:
    """The evaluating attack, see ``walk``, on one batch of images."""
    outcome = Outcome(start.clone(), torch.full_like(labels, STANDS), labels < 0)

    def begin(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return images[rows], labels[rows], start[rows]

    rows = torch.arange(len(labels), device=labels.device)
    for some, part in walk(model, rows, len(rows), begin, budget, objective, to_the_end):
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
    objective: Objective,
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
                logits, gradient = ascent(light, points, labels[some], objective)
                wrong = ~correct(logits, labels[some]) & (fell_at[some] == STANDS)
                if wrong.any():
                    seen[rows[wrong]], suspected[rows[wrong]] = points[wrong], taken[rows[wrong]]
                moved = _step(points, gradient, images[some], budget)
                adversarial = moved if everybody else adversarial.index_copy(0, rows, moved)
                taken[some] += 1


def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Logits (B, classes) as every verdict takes them: float32, no TF32, no gradient."""
    with torch.no_grad(), float32(images.device):
        logits: Tensor = model(images)
        return logits


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


def ascent(
    model: Callable[[Tensor], Tensor], adversarial: Tensor, labels: Tensor, objective: Objective
) -> tuple[Tensor, Tensor]:
    """Logits and ∇ of the summed objective; parameters get no gradient."""
    adversarial = adversarial.detach().requires_grad_()
    with torch.enable_grad():
        logits = model(adversarial)
        (gradient,) = torch.autograd.grad(objective(logits, labels).sum(), adversarial)
    return logits.detach(), gradient


def _step(adversarial: Tensor, gradient: Tensor, images: Tensor, budget: Budget) -> Tensor:
    """x̃ ← Π(x̃ + α·∇/‖∇‖), in ℓ∞ the sign of ∇; Π onto the ε-ball and onto [0, 1]."""
    moved = torch.add(adversarial, uphill(gradient, budget.norm), alpha=budget.step_size)
    return project(moved, images, budget.eps, budget.norm)
