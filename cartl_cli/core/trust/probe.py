"""The images that checks are made on, and the short attack that most of them make.

Costs are counted in passes: one image once forward through the network, whether or not back again.
B is the number of images, S ≤ B how many of them the real attack left standing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from cartl_cli.core.attacks.judged_pgd import attack
from cartl_cli.core.method.losses import PerImageLoss
from cartl_cli.core.method.norm_ball import scatter
from cartl_cli.core.method.pgd import Budget
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.runtime.randomness import generator

SHORT = 20  # steps of an attack within a check


@dataclass(frozen=True)
class Probe:
    """A model, images (B, C, H, W) in [0, 1] with labels (B,), and what the real attack found.

    ``budget`` (eps > 0) and ``losses`` are the real attack's, gradients are taken under
    ``autocast``. ``adversarial`` (B, C, H, W): for a fallen image a misclassified point, the image
    itself if that is wrong already; for another where the attack ended. ``fallen`` (B,): not
    robust. ``k`` blocks at the end are the sub-model's. ``source``: another model for the same
    images, whose adversarial images may transfer. ``ceiling``: a robust accuracy that nobody has
    reached on this data at this eps. ``allowed`` (B,): the eps of the attack that led each image
    there, of several, and 0 if none tells where it led; that of ``budget`` unless given.
    """

    model: BlockModel
    images: Tensor
    labels: Tensor
    budget: Budget
    losses: tuple[PerImageLoss, ...]
    seed: int
    k: int
    autocast: torch.autocast
    adversarial: Tensor
    fallen: Tensor
    source: BlockModel | None = None
    ceiling: float | None = None
    allowed: Tensor | None = None

    @property
    def count(self) -> int:
        """B."""
        return len(self.labels)

    @property
    def standing(self) -> Tensor:
        """Rows (S,) of the images that the real attack left standing."""
        return (~self.fallen).nonzero().squeeze(1)

    @cached_property
    def plain(self) -> Tensor:
        """Which images (B,) the short attack misclassifies: what K3, K11 and K12 compare with.

        At most B·22 passes for each loss, once.
        """
        budget = short(self.budget)
        return falls(self, budget, self.losses, begun(self, budget))


def short(budget: Budget) -> Budget:
    """At most ``SHORT`` steps that go as far in all, none longer than eps/4 or the attack's own."""
    steps = min(budget.steps, SHORT)
    fitting = min(budget.step_size * budget.steps / steps, budget.eps / 4)
    return replace(budget, steps=steps, step_size=max(budget.step_size, fitting))


def widened(budget: Budget, factor: float) -> Budget:
    """The same steps in a ball ``factor`` times as large."""
    return replace(budget, eps=budget.eps * factor, step_size=budget.step_size * factor)


def noise(probe: Probe, purpose: str, number: int = 0) -> Tensor:
    """U(0, 1) of the images' shape, of one address."""
    draws = generator(probe.seed, f"trust {purpose}", number)
    return torch.rand(probe.images.shape, generator=draws).to(probe.images.device)


def corner(noise: Tensor) -> Tensor:
    """Noise that ``scatter`` makes a corner of the ball: in ℓ∞, ±eps at every pixel."""
    return noise.round()


def begun(probe: Probe, budget: Budget, restart: int = 0) -> Tensor:
    """A random start (B, C, H, W) in the ball of a budget."""
    return scatter(probe.images, noise(probe, "start", restart), budget.eps, budget.norm)


def falls(
    probe: Probe,
    budget: Budget,
    losses: Sequence[PerImageLoss],
    start: Tensor,
    before: Tensor | None = None,
) -> Tensor:
    """Which images (B,) PGD from ``start`` misclassifies under any loss, or fell ``before``.

    At most B·(steps + 2) passes for each loss: an image that has fallen is not attacked again.
    """
    fallen = torch.zeros_like(probe.fallen) if before is None else before.clone()
    for loss in losses:
        rows = (~fallen).nonzero().squeeze(1)
        if len(rows) > 0:
            images, labels = probe.images[rows], probe.labels[rows]
            with probe.autocast:
                outcome = attack(probe.model, images, labels, start[rows], budget, loss, False)
            fallen[rows] = outcome.fallen
    return fallen


def share(flags: Tensor) -> float:
    """The fraction of true flags (B,)."""
    return flags.float().mean().item()
