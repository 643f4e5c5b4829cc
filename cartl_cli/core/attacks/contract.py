"""What an attack is given and what it gives."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from cartl_cli.core.method.pgd import Budget
from cartl_cli.core.models.blocks import BlockModel

STANDS = -1
WRONG_CLASSES = 9  # at most that targeted attacks aim at, as in AutoAttack


@dataclass(frozen=True)
class Outcome:
    """What one attack found, image by image, judged in float32.

    ``adversarial`` (B, C, H, W): the first misclassified iterate, else the last one, or the best
    one of an attack that keeps it (Auto-PGD, Square).
    ``fell_at`` (B,): the number of that iterate, 0 for the start, ``STANDS`` where there is none.
    ``fallen_last`` (B,): misclassified at the last iterate made for that image.
    """

    adversarial: Tensor
    fell_at: Tensor
    fallen_last: Tensor

    @property
    def fallen(self) -> Tensor:
        """Misclassified at some iterate (B,)."""
        return self.fell_at != STANDS


@dataclass(frozen=True)
class AttackSetting:
    """What an attack needs beside its budget: ``restart`` counts from 0, ``k`` is the sub-model's.

    With ``to_the_end``, PGD walks on with images that have fallen, for their last iterate.
    """

    seed: int
    restart: int
    queries: int
    k: int
    to_the_end: bool

    @property
    def own_seed(self) -> int:
        """A seed of each restart, for draws that do not count restarts; seeds are below 2**32."""
        return self.seed + 2**32 * self.restart


@dataclass(frozen=True)
class Batch:
    """Images (B, C, H, W) in [0, 1], their labels (B,) and their ``indices`` (B,) in the data."""

    images: Tensor
    labels: Tensor
    indices: Tensor


@dataclass(frozen=True)
class Targets:
    """Images to attack: those numbered in ``indices`` (N,), at most ``size`` of them at a time.

    ``batch`` gives some of them by their numbers (B,).
    """

    batch: Callable[[Tensor], Batch]
    indices: Tensor
    size: int


Attack = Callable[[BlockModel, Targets, Budget, AttackSetting], Iterator[tuple[Tensor, Outcome]]]
"""Yields what was found, of some indices at a time, in any order."""


def by_batches(attack: Callable[[BlockModel, Batch, Budget, AttackSetting], Outcome]) -> Attack:
    """An attack that takes one batch after another."""

    def run(
        model: BlockModel, targets: Targets, budget: Budget, setting: AttackSetting
    ) -> Iterator[tuple[Tensor, Outcome]]:
        for indices in targets.indices.split(targets.size):
            yield indices, attack(model, targets.batch(indices), budget, setting)

    return run
