"""Projected gradient descent in the ℓ∞ or ℓ₂ ball (Madry et al. 2018; CARTL Eq. 5).

Pixels stay in [0, 1]. The iterate is kept rather than δ = adversarial − images, so that the ball
and the pixel range are one projection.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cartl_cli.core.choices import Norm
from cartl_cli.core.method.losses import PerImageLoss, cross_entropy
from cartl_cli.core.method.norm_ball import project, uphill
from cartl_cli.core.models.blocks import eval_mode
from cartl_cli.core.models.pieces import joined, pieces


@dataclass(frozen=True)
class Budget:
    """eps and step_size in ``norm``, pixels on the 0..1 scale; ``steps`` of gradient ascent."""

    eps: float
    step_size: float
    steps: int
    norm: Norm = "linf"


def pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    start: Tensor,
    budget: Budget,
    loss: PerImageLoss = cross_entropy,
) -> Tensor:
    """The last PGD iterate (B, C, H, W), the model in evaluation mode: x̃ ← Π(x̃ + α·∇/‖∇‖)."""
    adversarial = start
    with eval_mode(model):
        for _ in range(budget.steps):
            _, gradient = ascent(model, adversarial, labels, loss)
            adversarial = pgd_step(adversarial, gradient, images, budget)
    return adversarial


def ascent(
    model: Callable[[Tensor], Tensor], adversarial: Tensor, labels: Tensor, loss: PerImageLoss
) -> tuple[Tensor, Tensor]:
    """Logits (B, classes) and ∇ (B, C, H, W) of the summed loss; parameters get no gradient.

    ``labels`` (B, …): what ``loss`` is told of each image. A large batch is taken in ``pieces``.
    """
    cut = pieces(adversarial, labels)
    found = [_ascent(model, some, theirs, loss) for some, theirs in cut]
    logits, gradients = zip(*found, strict=True)
    return joined(logits), joined(gradients)


def _ascent(
    model: Callable[[Tensor], Tensor], adversarial: Tensor, labels: Tensor, loss: PerImageLoss
) -> tuple[Tensor, Tensor]:
    adversarial = adversarial.detach().requires_grad_()
    with torch.enable_grad():
        logits = model(adversarial)
        (gradient,) = torch.autograd.grad(loss(logits, labels).sum(), adversarial)
    return logits.detach(), gradient


def pgd_step(adversarial: Tensor, gradient: Tensor, images: Tensor, budget: Budget) -> Tensor:
    """x̃ ← Π(x̃ + α·∇/‖∇‖), in ℓ∞ the sign of ∇; Π onto the ε-ball and onto [0, 1]."""
    moved = adversarial + budget.step_size * uphill(gradient, budget.norm)
    return project(moved, images, budget.eps, budget.norm)
