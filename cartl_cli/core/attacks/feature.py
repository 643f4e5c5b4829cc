"""The attack made for CARTL: first on what feature distance minimisation trains, then on the loss.

Pretraining keeps ‖f^(L−k)(x) − f^(L−k)(x̃)‖₂ small where the transferred model is frozen (Eq. 10).
An attack fitted to a defence aims at what the defence relies on (Tramèr et al. 2020, arXiv
2002.08347): this one begins with the largest change of those features.
"""

from dataclasses import replace

import torch
from torch import Tensor

from cartl_cli.core.attacks.contract import STANDS, AttackSetting, Batch, Outcome, by_batches
from cartl_cli.core.attacks.judged_pgd import attack, confirm, correct, start
from cartl_cli.core.method.losses import cross_entropy, distances
from cartl_cli.core.method.pgd import Budget, ascent, pgd_step
from cartl_cli.core.models.blocks import BlockModel, eval_mode
from cartl_cli.core.models.folding import folded


@by_batches
def feature(model: BlockModel, batch: Batch, budget: Budget, setting: AttackSetting) -> Outcome:
    """The attack at block L − k, from a random start."""
    begun = start(batch, budget, setting)
    boundary = len(model.blocks) - setting.k
    return feature_attack(model, batch.images, batch.labels, begun, budget, boundary)


def feature_attack(
    model: BlockModel, images: Tensor, labels: Tensor, begun: Tensor, budget: Budget, boundary: int
) -> Outcome:
    """A third of the steps raise ‖f(x) − f(x̃)‖₂ of what leaves block ``boundary`` = L − k.

    The others are PGD on cross-entropy, from the point where the distance was largest. An image has
    fallen if *any* iterate is misclassified in float32, and leaves; ``fell_at`` counts on through
    both parts. The start must not be the clean image, where the distance has no gradient.
    """
    away, light = budget.steps // 3, folded(model)
    found, fell_at = begun.clone(), torch.full_like(labels, STANDS)
    rows = torch.arange(len(labels), device=labels.device)
    with eval_mode(model):
        with torch.no_grad():
            clean = light.features(images, boundary)
        points = best = begun
        farthest = torch.zeros(labels.shape, device=labels.device)
        for step in range(away + 1):
            features, gradient = ascent(
                lambda pixels: light.features(pixels, boundary), points, clean, distances
            )
            distance = distances(features, clean)
            farther = distance > farthest
            best = torch.where(farther.view(-1, 1, 1, 1), points, best)
            farthest = torch.where(farther, distance, farthest)
            wrong = _wrong(model, points, labels[rows], features, boundary)
            if wrong.any():
                found[rows[wrong]], fell_at[rows[wrong]] = points[wrong], step
                rows, points, best, farthest, clean, gradient = (
                    kept[~wrong] for kept in (rows, points, best, farthest, clean, gradient)
                )
            if len(rows) == 0:
                return Outcome(found, fell_at, fell_at != STANDS)
            points = pgd_step(points, gradient, images[rows], budget)
    rest = replace(budget, steps=budget.steps - away)
    outcome = attack(model, images[rows], labels[rows], best, rest, cross_entropy, False)
    found[rows] = outcome.adversarial
    fell_at[rows] = torch.where(outcome.fallen, away + outcome.fell_at, STANDS)
    return Outcome(found, fell_at, fell_at != STANDS)


def _wrong(
    model: BlockModel, points: Tensor, labels: Tensor, features: Tensor, boundary: int
) -> Tensor:
    """Which points are misclassified (n,); ``features`` are theirs at block ``boundary``."""
    with torch.no_grad():
        logits = model.classify(features, boundary)
    return ~correct(confirm(model, points, labels, logits), labels)
