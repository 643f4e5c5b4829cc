"""Clean and robust accuracy, image by image."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from cartl_cli.core.attacks.geometry import scatter
from cartl_cli.core.attacks.pgd import Budget, attack, correct, counted_noise, predict
from cartl_cli.core.data.split import Split, to_pixels
from cartl_cli.core.losses import cross_entropy, margin
from cartl_cli.core.models.blocks import eval_mode
from cartl_cli.core.randomness import generator

OBJECTIVES = {"ce": cross_entropy, "margin": margin}
Loss = Literal["ce", "margin"]


@dataclass(frozen=True)
class Plan:
    """Every image is attacked under each loss, ``restarts`` times."""

    budget: Budget
    losses: tuple[Loss, ...]
    restarts: int
    seed: int
    batch_size: int

    def batches(self, count: int) -> int:
        """Batches of the whole plan over ``count`` images."""
        return len(self.losses) * self.restarts * math.ceil(count / self.batch_size)


@dataclass(frozen=True)
class Robustness:
    """Per-image verdicts, each (N,) bool: right on the clean image, and under each loss so far.

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

    def tensors(self) -> dict[str, Tensor]:
        """All verdicts by name, to be stored."""
        standing = {f"standing.{loss}": tensor for loss, tensor in self.standing.items()}
        return {"clean": self.clean, "standing_last": self.standing_last, **standing}


def unattacked(clean: Tensor, losses: tuple[Loss, ...]) -> Robustness:
    """The verdicts before any attack: what is right on the clean image (N,) stands."""
    return Robustness(clean, {loss: clean.clone() for loss in losses}, clean.clone())


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
    plan: Plan,
    autocast: torch.autocast,
    verdicts: Robustness,
    batch_done: Callable[[int], None],
    done: int = 0,
) -> Robustness:
    """Attack every image that still stands, batch by batch; ``verdicts`` are updated in place.

    Only the first restart of the first loss runs to its last step for everybody, to count last
    iterates. The verdicts do not depend on the batch size: losses are summed over the batch and
    random starts drawn per image. ``batch_done`` gets the number of batches done, of
    ``plan.batches(N)``; the first ``done`` of them are taken as done before.
    """
    rounds = itertools.product(
        plan.losses,
        range(plan.restarts),
        torch.arange(len(split), device=split.labels.device).split(plan.batch_size),
    )
    for number, (loss, restart, rows) in enumerate(rounds):
        if number < done:
            continue
        standing = verdicts.standing[loss]
        first = loss == plan.losses[0] and restart == 0
        targets = rows[standing[rows]]
        if len(targets) > 0:
            outcome = _attack(model, split, plan, loss, restart, targets, autocast, first)
            standing[targets] = ~outcome[0]
            if first:
                verdicts.standing_last[targets] = ~outcome[1]
        batch_done(number + 1)
    return verdicts


def _attack(
    model: nn.Module,
    split: Split,
    plan: Plan,
    loss: Loss,
    restart: int,
    targets: Tensor,
    autocast: torch.autocast,
    to_the_end: bool,
) -> tuple[Tensor, Tensor]:
    """Which ``targets`` fall, and which at their last iterate; in halves if memory is too small."""
    part = split.take(targets)
    images = _pixels(part.images)
    noise = counted_noise(images, plan.seed, "attack start", restart, targets)
    start = scatter(images, noise, plan.budget.eps, plan.budget.norm)
    try:
        with autocast:
            outcome = attack(
                model, images, part.labels, start, plan.budget, OBJECTIVES[loss], to_the_end
            )
        return outcome.fallen, outcome.fallen_last
    except torch.OutOfMemoryError:
        if len(targets) == 1:
            raise
    halves = [
        _attack(model, split, plan, loss, restart, half, autocast, to_the_end)
        for half in targets.tensor_split(2)
    ]
    return torch.cat([half[0] for half in halves]), torch.cat([half[1] for half in halves])


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
