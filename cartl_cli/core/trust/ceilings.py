"""Robust accuracies that nobody has reached, by data set: figures to be surprised by (K18)."""

from dataclasses import dataclass

from cartl_cli.core.choices import Norm
from cartl_cli.core.method.pgd import Budget


@dataclass(frozen=True)
class Ceiling:
    """Nobody's robust accuracy on all ``classes`` of a data set has been above ``accuracy``."""

    data: str
    classes: int
    norm: Norm
    eps: float
    accuracy: float


CEILINGS = (
    Ceiling("cifar10", 10, "linf", 8 / 255, 0.78),
    Ceiling("cifar10", 10, "l2", 0.5, 0.90),
    Ceiling("cifar100", 100, "linf", 8 / 255, 0.48),
)
"""About three points above the best of RobustBench's leaderboards (robustbench.github.io), all by
Amini et al. 2024, arXiv 2406.05927, under AutoAttack: 75.28 %, 87.28 % and 44.78 %."""


def ceiling(data: str, classes: int, budget: Budget) -> float | None:
    """The lowest ceiling at this eps or a smaller one, since a larger eps can only take more."""
    found = [
        known.accuracy
        for known in CEILINGS
        if (known.data, known.classes, known.norm) == (data, classes, budget.norm)
        and known.eps <= budget.eps + 1e-9
    ]
    return min(found, default=None)
