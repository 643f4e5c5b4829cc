"""The inner maximisation of adversarial training: how images to train on are made, by method.

The model is in evaluation mode meanwhile, and nothing of it changes.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from cartl_cli.core.attacks.geometry import normal, scatter
from cartl_cli.core.attacks.pgd import Budget, ascent, perturb
from cartl_cli.core.config import PretrainConfig
from cartl_cli.core.losses import cross_entropy, kl_divergence
from cartl_cli.core.models.blocks import BlockModel, eval_mode
from cartl_cli.core.models.folding import FoldedCopy

NOISE = 2  # k of N-FGSM: its noise reaches k·ε
NUDGE = 0.001  # standard deviation of the start of TRADES

Inner = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""(images, labels, noise, grown) → adversarial images (B, C, H, W).

``noise`` (B, C, H, W) is U(0, 1); ``grown`` (0..1) is the part of its full size that eps has grown
to.
"""


def training_budget(config: PretrainConfig, grown: float) -> Budget:
    """The training attack while eps has ``grown`` to a part (0..1) of its full size.

    The distance the attack can walk, step_size · steps, grows with eps: full-size steps, but fewer.
    """
    steps = math.ceil(config.pgd_steps * grown)
    step_size = config.attack_step * config.pgd_steps * grown / steps
    return Budget(config.eps * grown, step_size, steps)


def pgd(model: BlockModel, config: PretrainConfig) -> Inner:
    """PGD under cross-entropy from a uniform start (Madry et al. 2018; CARTL Eq. 5).

    Gradients come from a copy of the model with batch norm folded away, renewed for each batch.
    They differ by rounding, so that the sign of one near 0 can be another. The divergence of TRADES
    is itself near 0 at first, and a single gradient does not make up for the copy.
    """
    light = FoldedCopy(model)

    def attack(images: Tensor, labels: Tensor, noise: Tensor, grown: float) -> Tensor:
        budget = training_budget(config, grown)
        start = scatter(images, noise, budget.eps, "linf")
        return perturb(light.refreshed(), images, labels, start, budget)

    return attack


def n_fgsm(model: BlockModel, config: PretrainConfig) -> Inner:
    """N-FGSM (de Jorge et al. 2022, arXiv 2202.01181): x̃ = x + η + ε·sign ∇ℓ(f(x + η), y).

    η ~ U(−2ε, 2ε). Pixels stay in [0, 1]; the perturbation is not clipped to the ε-ball, which it
    leaves by up to 2ε.
    """

    def attack(images: Tensor, labels: Tensor, noise: Tensor, grown: float) -> Tensor:
        eps = config.eps * grown
        noisy = scatter(images, noise, NOISE * eps, "linf")  # x + η
        with eval_mode(model):
            _, gradient = ascent(model, noisy, labels, cross_entropy)
        return (noisy + eps * gradient.sign()).clamp(0, 1)

    return attack


def trades(model: BlockModel, config: PretrainConfig) -> Inner:
    """PGD under KL(f(x) ‖ f(x̃)) from x + 0.001·N(0, 1) (Zhang et al. 2019, and their code)."""

    def attack(images: Tensor, labels: Tensor, noise: Tensor, grown: float) -> Tensor:
        with torch.no_grad(), eval_mode(model):
            clean_logits = model(images)  # (B, classes)

        def divergence(logits: Tensor, _: Tensor) -> Tensor:
            return kl_divergence(logits, clean_logits)

        start = images + NUDGE * normal(noise)
        return perturb(model, images, labels, start, training_budget(config, grown), divergence)

    return attack


INNER: Mapping[str, Callable[[BlockModel, PretrainConfig], Inner]] = {
    "at": pgd,
    "fast": n_fgsm,
    "trades": trades,
}
