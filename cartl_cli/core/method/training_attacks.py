"""The inner maximisation of adversarial training: how the images to train on are made.

The model is in evaluation mode meanwhile, and nothing of it changes. Free training makes its images
on the way; see ``adversarial_training``.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from cartl_cli.core.method.losses import cross_entropy, kl_divergence
from cartl_cli.core.method.norm_ball import normal, scatter
from cartl_cli.core.method.pgd import Budget, ascent, pgd
from cartl_cli.core.models.blocks import BlockModel, eval_mode
from cartl_cli.core.models.folding import FoldedCopy
from cartl_cli.core.models.pieces import in_pieces

NOISE = 2  # k of N-FGSM: its noise reaches k·ε
NUDGE = 0.001  # standard deviation of the start of TRADES

TrainingAttack = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""(images, labels, noise, grown) → adversarial images (B, C, H, W).

``noise`` (B, C, H, W) is U(0, 1); ``grown`` (0..1) is the part of its full size that eps has grown
to.
"""


def ramp(step: int, total_steps: int, warmup: float) -> float:
    """Factor of eps: rises linearly to 1 over the first ``warmup`` (0..1) of training."""
    return min(1.0, (step + 1) / (warmup * total_steps)) if warmup > 0 else 1.0


def grown_budget(full: Budget, grown: float) -> Budget:
    """The training attack while eps has ``grown`` to a part (0..1) of its full size.

    The distance the attack can walk, step_size · steps, grows with eps: full-size steps, but fewer.
    """
    steps = math.ceil(full.steps * grown)
    step_size = full.step_size * full.steps * grown / steps
    return Budget(full.eps * grown, step_size, steps)


def pgd_attack(model: BlockModel, budget: Budget) -> TrainingAttack:
    """PGD under cross-entropy from a uniform start (Madry et al. 2018; CARTL Eq. 5).

    Gradients come from a copy of the model with batch norm folded away, renewed for each batch.
    They differ by rounding, so that the sign of one near 0 can be another. The divergence of TRADES
    is itself near 0 at first, and a single gradient does not make up for the copy.
    """
    light = FoldedCopy(model)

    def attack(images: Tensor, labels: Tensor, noise: Tensor, grown: float) -> Tensor:
        smaller = grown_budget(budget, grown)
        start = scatter(images, noise, smaller.eps, "linf")
        return pgd(light.refreshed(), images, labels, start, smaller)

    return attack


def n_fgsm(model: BlockModel, budget: Budget) -> TrainingAttack:
    """N-FGSM (de Jorge et al. 2022, arXiv 2202.01181): x̃ = x + η + ε·sign ∇ℓ(f(x + η), y).

    η ~ U(−2ε, 2ε). Pixels stay in [0, 1]; the perturbation is not clipped to the ε-ball, which it
    leaves by up to 2ε.
    """

    def attack(images: Tensor, labels: Tensor, noise: Tensor, grown: float) -> Tensor:
        eps = budget.eps * grown
        noisy = scatter(images, noise, NOISE * eps, "linf")  # x + η
        with eval_mode(model):
            _, gradient = ascent(model, noisy, labels, cross_entropy)
        return (noisy + eps * gradient.sign()).clamp(0, 1)

    return attack


def trades(model: BlockModel, budget: Budget) -> TrainingAttack:
    """PGD under KL(f(x) ‖ f(x̃)) from x + 0.001·N(0, 1) (Zhang et al. 2019, and their code)."""

    def attack(images: Tensor, labels: Tensor, noise: Tensor, grown: float) -> Tensor:
        with torch.no_grad(), eval_mode(model):
            clean_logits = in_pieces(model, images)  # (B, classes)
        start = images + NUDGE * normal(noise)
        return pgd(model, images, clean_logits, start, grown_budget(budget, grown), kl_divergence)

    return attack
