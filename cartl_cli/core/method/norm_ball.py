"""The set an attack may not leave, ℓ∞ or ℓ₂ ball and pixel range, and the way uphill in it."""

import torch
from torch import Tensor

from cartl_cli.core.choices import Norm
from cartl_cli.core.runtime.randomness import uniform_noise

ROUNDING = 2e-6  # of an ℓ₂ eps: so much of it could be added by float32, as measured at 224 pixels


def sizes(delta: Tensor, norm: Norm) -> Tensor:
    """‖δ‖ of each image or its features: δ (B, …) → (B, 1, …)."""
    flat = delta.flatten(1)
    found = flat.abs().amax(1) if norm == "linf" else torch.linalg.vector_norm(flat, dim=1)
    return found.view(-1, *[1] * (delta.dim() - 1))


def project(points: Tensor, images: Tensor, eps: float, norm: Norm) -> Tensor:
    """Π onto the ε-ball around ``images`` and onto [0, 1].

    The images lie in the box, so that clamping to it does not lead out of the ball again.
    """
    if norm == "linf":
        return (points - images).clamp_(-eps, eps).add_(images).clamp_(0, 1)
    delta = points - images
    inside = eps * (1 - ROUNDING)
    shrink = (inside / sizes(delta, norm).clamp_min(1e-12)).clamp_max(1)
    return (images + shrink * delta).clamp(0, 1)


def uphill(gradient: Tensor, norm: Norm) -> Tensor:
    """The steepest direction of length one: sign(∇), or ∇/‖∇‖₂; zero where ∇ is 0 or NaN.

    A point that is not a number would count as misclassified, for no fault of the model.
    """
    if norm == "linf":
        return gradient.sign()
    return (gradient / sizes(gradient, norm).clamp_min(1e-12)).nan_to_num(0)


def scatter(images: Tensor, noise: Tensor, eps: float, norm: Norm) -> Tensor:
    """A random start: ``noise`` from U(0, 1), of the images' shape, as a point of the set.

    ℓ∞: uniform in the ball. ℓ₂: uniform on its surface, where almost all of a ball of so many
    dimensions is.
    """
    if norm == "linf":
        return (images + eps * (2 * noise - 1)).clamp(0, 1)
    return project(images + eps * uphill(normal(noise), norm), images, eps, norm)


def normal(noise: Tensor) -> Tensor:
    """N(0, 1) from U(0, 1), by the inverse of its distribution function."""
    return 2**0.5 * torch.erfinv((2 * noise - 1).clamp(-1 + 1e-6, 1 - 1e-6))


def uniform_start(
    images: Tensor, eps: float, draws: torch.Generator, norm: Norm = "linf"
) -> Tensor:
    """Random start for a whole batch, drawn by ``draws``: see ``scatter``."""
    return scatter(images, uniform_noise(images, draws), eps, norm)
