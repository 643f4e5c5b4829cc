"""Losses as pure functions of tensors."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def feature_distance(clean: Tensor, adversarial: Tensor) -> Tensor:
    """Feature distance of Eq. 10 without its λ: Σ_batch ‖f(x) − f(x̃)‖₂ / √d, a scalar.

    ``clean`` and ``adversarial`` are features (B, …) of the same images; d counts the elements of
    one image. The sum over the batch is the paper's, so λ is tied to the batch size.
    """
    difference = (clean.float() - adversarial.float()).flatten(1)  # (B, d)
    distances: Tensor = torch.linalg.vector_norm(difference, dim=1)  # (B,)
    return distances.sum() / math.sqrt(difference.shape[1])


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each image (B,), from logits (B, classes)."""
    return F.cross_entropy(logits, labels, reduction="none")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """max_{j≠y} z_j − z_y of each image (B,): positive exactly where the prediction is wrong.

    Unlike cross-entropy it does not fade when all logits are small, as they are for a small β.
    """
    own = logits.gather(1, labels[:, None])  # (B, 1)
    others = logits.scatter(1, labels[:, None], -math.inf)  # (B, classes)
    return others.amax(1) - own.squeeze(1)
