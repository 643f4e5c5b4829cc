"""Clean and robust accuracy, image by image."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from cartl_cli.core.attacks.pgd import Budget, attack, correct, counted_start, predict
from cartl_cli.core.data.split import Split, to_pixels
from cartl_cli.core.losses import cross_entropy, margin
from cartl_cli.core.models.blocks import eval_mode
from cartl_cli.core.randomness import generator

OBJECTIVES = {"ce": cross_entropy, "margin": margin}
Loss = Literal["ce", "margin"]


@dataclass(frozen=True)
class Robustness:
    """Per-image verdicts, each (N,) bool: right on the clean image, and under each loss.

    ``standing[loss]``: right at every iterate of every restart. ``standing_last``: right at the
    last iterate of the first restart under the first loss, the way the paper counts.
    """

    clean: Tensor
    standing: dict[Loss, Tensor]
    standing_last: Tensor

    @property
    def worst(self) -> Tensor:
        """Right under every loss (N,)."""
        return torch.stack(list(self.standing.values())).all(0)


def clean_correct(model: nn.Module, split: Split, batch_size: int) -> Tensor:
    """Which images the model gets right (N,), in float32 and evaluation mode."""
    with eval_mode(model):
        return torch.cat(
            [
                correct(predict(model, _pixels(images)), labels)
                for images, labels in zip(
                    split.images.split(batch_size), split.labels.split(batch_size), strict=True
                )
            ]
        )


def robustness(
    model: nn.Module,
    split: Split,
    budget: Budget,
    losses: tuple[Loss, ...],
    restarts: int,
    seed: int,
    batch_size: int,
    autocast: torch.autocast,
    report: Callable[[int], None],
) -> Robustness:
    """Attack every image that is right when clean; an image that has fallen is left alone.

    Only the first restart of the first loss runs to its last step for everybody, to count last
    iterates. The verdicts do not depend on ``batch_size``: losses are summed over the batch and
    random starts drawn per image. ``report`` gets the number of attacks done, of
    ``len(losses) · restarts · N``.
    """
    clean = clean_correct(model, split, batch_size)
    standing = {loss: clean.clone() for loss in losses}
    standing_last = clean.clone()
    for loss in losses:
        for restart in range(restarts):
            first = loss == losses[0] and restart == 0
            for rows in torch.arange(len(split), device=clean.device).split(batch_size):
                targets = rows[standing[loss][rows]]
                if len(targets) > 0:
                    part = split.take(targets)
                    images = _pixels(part.images)
                    start = counted_start(images, budget.eps, seed, restart, targets)
                    with autocast:
                        outcome = attack(
                            model, images, part.labels, start, budget, OBJECTIVES[loss], first
                        )
                    standing[loss][targets] = ~outcome.fallen
                    if first:
                        standing_last[targets] = ~outcome.fallen_last
                report(len(rows))
    return Robustness(clean, standing, standing_last)


def share(verdicts: Tensor) -> float:
    """The fraction of true verdicts (N,)."""
    return int(verdicts.sum()) / len(verdicts)


def stratified(labels: Tensor, count: int, seed: int, purpose: str) -> Tensor:
    """Sorted indices of ``count`` images, spread over the classes as evenly as they allow.

    Images are taken in rounds, one of each class a round, in a seeded order.
    """
    order = torch.randperm(len(labels), generator=generator(seed, purpose))
    seen: dict[int, int] = {}
    ranks = []
    for label in labels.cpu()[order].tolist():
        ranks.append(seen.get(label, 0))
        seen[label] = ranks[-1] + 1
    by_round = torch.tensor(ranks).argsort(stable=True)
    return order[by_round[:count]].sort().values


def _pixels(images: Tensor) -> Tensor:
    return to_pixels(images).to(memory_format=torch.channels_last)
