"""Losses as pure functions of tensors."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

PerImageLoss = Callable[[Tensor, Tensor], Tensor]
"""(logits (B, classes), labels (B,)) → the loss of each image (B,), which an attack raises."""


def feature_distance(clean: Tensor, adversarial: Tensor) -> Tensor:
    """Feature distance of Eq. 10 without its λ: Σ_batch ‖f(x) − f(x̃)‖₂ / √d, a scalar.

    ``clean`` and ``adversarial`` are features (B, …) of the same images; d counts the elements of
    one image. The sum over the batch is the paper's, so λ is tied to the batch size.
    """
    return distances(clean, adversarial).sum() / math.sqrt(clean[0].numel())


def distances(clean: Tensor, adversarial: Tensor) -> Tensor:
    """‖f(x) − f(x̃)‖₂ of each image (B,), from features (B, …)."""
    difference = (clean.float() - adversarial.float()).flatten(1)  # (B, d)
    found: Tensor = torch.linalg.vector_norm(difference, dim=1)
    return found


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each image (B,), from logits (B, classes)."""
    return F.cross_entropy(logits, labels, reduction="none")


def kl_divergence(logits: Tensor, reference: Tensor) -> Tensor:
    """KL(softmax(reference) ‖ softmax(logits)) of each image (B,), from logits (B, classes)."""
    found = F.kl_div(logits.log_softmax(1), reference.softmax(1), reduction="none")  # (B, classes)
    return found.sum(1)


def class_weights(labels: Tensor, classes: int) -> Tensor:
    """w_c = N / (C·n_c) (classes,): each class counts alike, and the mean over the images is 1.

    n_c of the N training ``labels`` are of class c, and C classes have images; others weigh 0.
    """
    counts = labels.bincount(minlength=classes)
    weights = len(labels) / ((counts > 0).sum() * counts)
    return weights.where(counts > 0, 0)


def classification_loss(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean cross-entropy (1/B) Σ w_y · CE(z, y), a scalar; w = 1 without ``weights`` (classes,)."""
    if weights is None:
        return F.cross_entropy(logits, labels)
    return (weights[labels] * cross_entropy(logits, labels)).mean()


def trades_loss(
    clean: Tensor, adversarial: Tensor, labels: Tensor, beta: float, weights: Tensor | None = None
) -> Tensor:
    """CE(f(x), y) + β · mean KL(f(x) ‖ f(x̃)), a scalar (Zhang et al. 2019, arXiv 1901.08573).

    ``clean`` and ``adversarial`` are logits (B, classes) of the same images. The gradient goes
    through both sides of the divergence, as in the authors' code. ``weights`` (classes,) weigh
    both terms, so that the trade-off within a class stays.
    """
    divergence = kl_divergence(adversarial, clean)
    if weights is not None:
        divergence = weights[labels] * divergence
    return classification_loss(clean, labels, weights) + beta * divergence.mean()


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """max_{j≠y} z_j − z_y of each image (B,): positive exactly where the prediction is wrong.

    Unlike cross-entropy it does not fade when all logits are small, as they are for a small β.
    """
    own = logits.gather(1, labels[:, None])  # (B, 1)
    others = logits.scatter(1, labels[:, None], -math.inf)  # (B, classes)
    return others.amax(1) - own.squeeze(1)


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """DLR towards class ``targets`` (B,) (Croce & Hein 2020, Eq. 7) of each image (B,).

    −(z_y − z_t) / (z_π1 − (z_π3 + z_π4)/2), π the classes in falling order of z. Unlike the margin
    it does not change when the logits are shifted or scaled, as β scales them. Fewer than four
    classes have no π4, and over z_π1 − z_π3 the ratio would be −1 wherever y is first and t third:
    of them z_t − z_y itself.
    """
    own, wanted = (logits.gather(1, which[:, None]).squeeze(1) for which in (labels, targets))
    if logits.shape[1] < 4:
        return wanted - own
    top = logits.topk(4, dim=1).values  # (B, 4)
    span = top[:, 0] - (top[:, 2] + top[:, 3]) / 2
    return (wanted - own) / span.clamp_min(1e-12)  # it is 0 where logits are tied


def right(logits: Tensor, labels: Tensor) -> Tensor:
    """How many predictions are right, 0-d."""
    return (logits.argmax(1) == labels).sum()
