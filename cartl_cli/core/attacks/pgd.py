"""Projected gradient descent in the ℓ∞ or ℓ₂ ball (Madry et al. 2018; CARTL Eq. 5).

Pixels stay in [0, 1]. The iterate is kept rather than δ = adversarial − images, so that the ball
and the pixel range are one projection.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cartl_cli.core.attacks.geometry import Norm, project, scatter, uphill
from cartl_cli.core.losses import cross_entropy
from cartl_cli.core.models.blocks import eval_mode
from cartl_cli.core.models.folding import folded
from cartl_cli.core.precision import float32
from cartl_cli.core.randomness import generator

STANDS = -1

Objective = Callable[[Tensor, Tensor], Tensor]
"""(logits, labels) → what the attack maximises for each image (B,)."""


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


def uniform_start(images: Tensor, eps: float, draws: torch.Generator, first: int = 0) -> Tensor:
    """Random start of a whole batch, or of its rows from ``first`` on: images plus U(−ε, ε).

    Clipped to [0, 1]. A row's noise does not depend on which other rows are asked for.
    """
    shape = (first + len(images), *images.shape[1:])
    noise = torch.rand(shape, generator=draws)[first:].to(images.device)
    return scatter(images, noise, eps, "linf")


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
    model: nn.Module, images: Tensor, labels: Tensor, start: Tensor, budget: Budget
) -> Tensor:
    """The training attack: the last PGD iterate under cross-entropy, model in evaluation mode."""
    adversarial = start
    with eval_mode(model):
        for _ in range(budget.steps):
            _, gradient = ascent(model, adversarial, labels, cross_entropy)
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
    """The evaluating attack: an image has fallen if *any* iterate is misclassified in float32.

    Gradients are those of the folded model and may be taken in bfloat16 (under the caller's
    autocast), verdicts are the model's own. A fallen image leaves the batch, unless ``to_the_end``
    asks for everybody's last iterate.
    """
    light = folded(model)
    found, adversarial = start.clone(), start
    fell_at = torch.full_like(labels, STANDS)
    standing = torch.arange(len(labels), device=labels.device)

    def judge(suspects: Tensor, step: int) -> None:
        suspects = suspects & (fell_at[standing] == STANDS)
        rows, candidates = standing[suspects], adversarial[suspects]
        if len(rows) > 0:
            found[rows] = candidates
            wrong = ~correct(predict(model, candidates), labels[rows])
            fell_at[rows[wrong]] = step

    with eval_mode(model):
        for step in range(budget.steps):
            logits, gradient = ascent(light, adversarial, labels[standing], objective)
            judge(~correct(logits, labels[standing]), step)
            adversarial = _step(adversarial, gradient, images[standing], budget)
            if not to_the_end and (fell_at[standing] != STANDS).any():
                still = fell_at[standing] == STANDS
                standing, adversarial = standing[still], adversarial[still]
            if len(standing) == 0:
                return Outcome(found, fell_at, fell_at != STANDS)
        judge(torch.ones_like(standing, dtype=torch.bool), budget.steps)
        if not to_the_end:
            return Outcome(found, fell_at, fell_at != STANDS)
        return Outcome(found, fell_at, ~correct(predict(model, adversarial), labels))


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
    moved = adversarial + budget.step_size * uphill(gradient, budget.norm)
    return project(moved, images, budget.eps, budget.norm)
