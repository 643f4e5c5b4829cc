"""The inner maximisation of adversarial training: how the images to train on are made.

The model is in evaluation mode meanwhile, and nothing of it changes. Free training makes its images
on the way; see ``adversarial_training``.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cartl_cli.core.method.losses import cross_entropy, kl_divergence
from cartl_cli.core.method.norm_ball import normal, scatter
from cartl_cli.core.method.pgd import Budget, ascent, pgd
from cartl_cli.core.models.blocks import BlockModel, eval_mode
from cartl_cli.core.models.folding import FoldedCopy
from cartl_cli.core.models.pieces import in_pieces
from cartl_cli.core.runtime.replays import number_of

NOISE = 2  # k of N-FGSM: its noise reaches k·ε
NUDGE = 0.001  # standard deviation of the start of TRADES

TrainingAttack = Callable[[Tensor, Tensor, Tensor, Budget], Tensor]
"""(images, labels, noise, budget) → adversarial images (B, C, H, W).

``noise`` (B, C, H, W) is U(0, 1). The ``budget`` is that of the step: eps may be still growing.
"""


def ramp(step: int, total_steps: int, warmup: float) -> float:
    """Factor of eps: rises linearly to 1 over the first ``warmup`` (0..1) of training."""
    return min(1.0, (step + 1) / (warmup * total_steps)) if warmup > 0 else 1.0


@dataclass(frozen=True)
class Growing:
    """A ``full`` budget whose eps grows from 0 over the first ``warmup`` (0..1) of training.

    The distance the attack can walk, step_size · steps, grows with eps: full-size steps, but fewer.
    """

    full: Budget
    total_steps: int
    warmup: float = 0.0

    def grown(self, step: int) -> float:
        """The part of its full size (0..1) that eps has at a step."""
        return ramp(step, self.total_steps, self.warmup)

    def steps(self, step: int) -> int:
        """Steps of the attack at a step of the training."""
        return math.ceil(self.full.steps * self.grown(step))

    def budget(self, step: int) -> Budget:
        """What the attack may do at a step of the training."""
        full, steps = self.full, self.steps(step)

        def walked(step: int) -> float:
            return full.step_size * full.steps * self.grown(step) / steps

        eps = number_of(step, lambda step: full.eps * self.grown(step))
        return Budget(eps, number_of(step, walked), steps)


def pgd_attack(model: BlockModel) -> TrainingAttack:
    """PGD under cross-entropy from a uniform start (Madry et al. 2018; CARTL Eq. 5).

    Gradients come from a copy of the model with batch norm folded away, renewed for each batch.
    They differ by rounding, so that the sign of one near 0 can be another. The divergence of TRADES
    is itself near 0 at first, and a single gradient does not make up for the copy.
    """
    light = FoldedCopy(model)

    def attack(images: Tensor, labels: Tensor, noise: Tensor, budget: Budget) -> Tensor:
        start = scatter(images, noise, budget.eps, "linf")
        return pgd(light.refreshed(), images, labels, start, budget)

    return attack


def n_fgsm(model: BlockModel) -> TrainingAttack:
    """N-FGSM (de Jorge et al. 2022, arXiv 2202.01181): x̃ = x + η + ε·sign ∇ℓ(f(x + η), y).

    η ~ U(−2ε, 2ε). Pixels stay in [0, 1]; the perturbation is not clipped to the ε-ball, which it
    leaves by up to 2ε.
    """

    def attack(images: Tensor, labels: Tensor, noise: Tensor, budget: Budget) -> Tensor:
        noisy = scatter(images, noise, NOISE * budget.eps, "linf")  # x + η
        with eval_mode(model):
            _, gradient = ascent(model, noisy, labels, cross_entropy)
        return (noisy + budget.eps * gradient.sign()).clamp(0, 1)

    return attack


def trades(model: BlockModel) -> TrainingAttack:
    """PGD under KL(f(x) ‖ f(x̃)) from x + 0.001·N(0, 1) (Zhang et al. 2019, and their code)."""

    def attack(images: Tensor, labels: Tensor, noise: Tensor, budget: Budget) -> Tensor:
        with torch.no_grad(), eval_mode(model):
            clean_logits = in_pieces(model, images)  # (B, classes)
        start = images + NUDGE * normal(noise)
        return pgd(model, images, clean_logits, start, budget, kl_divergence)

    return attack
