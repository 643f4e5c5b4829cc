"""K1, the planted adversary: does the attack find an adversarial image that is known to exist?

After Zimmermann et al. 2022, "Increasing Confidence in Adversarial Robustness Evaluations". For
each image, a random corner of its ε-ball is planted: the network's last linear layer is replaced
by a detector that calls the image and random points of its ball "clean" and the corner "planted".
The detector is the linear discriminant w = (Σ + λ)⁻¹(φ_planted − μ) of what enters that layer,
with mean μ and covariance Σ of the clean points, and its threshold lies 90 % of the way from the
highest clean score to the planted one, so that random points do not pass for planted. An attack
that misses has no usable gradient through the network. One that does not miss may still be weak: a
random corner is far from the worst point of its ball.
"""

import torch
from torch import Tensor, nn

from cartl_cli.core.attacks.judged_pgd import attack, predict
from cartl_cli.core.method.losses import cross_entropy
from cartl_cli.core.method.norm_ball import scatter
from cartl_cli.core.runs.results import Check
from cartl_cli.core.trust.checks import limited
from cartl_cli.core.trust.probe import Probe, corner, noise, share, short

INNER = 15  # random points of each ball that must count as clean
INNER_RADIUS = 0.95  # of eps, as in the paper
THRESHOLD = 0.9
RIDGE = 1e-3  # λ, in mean variances
VISIBLE = 1e-5  # relative difference of features that is no rounding error


class Entering(nn.Module):
    """What enters one linear layer of a network, (B, d), in the place of its logits.

    A layer that is used several times counts at its last use.
    """

    def __init__(self, network: nn.Module, layer: str) -> None:
        super().__init__()
        self.network, self.layer = network, layer

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) → (B, d)."""
        found: list[Tensor] = []
        layer = self.network.get_submodule(self.layer)
        watch = layer.register_forward_pre_hook(lambda module, entering: found.append(entering[0]))
        try:
            self.network(images)
        finally:
            watch.remove()
        return found[-1]


class Detectors(nn.Module):
    """One linear detector for each image of the probe, on the features of a network.

    An image carries the number of its detector in a further channel, constant and without gradient,
    because attacks drop fallen images and change the order of the rest.
    """

    def __init__(self, features: nn.Module, centre: Tensor, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.features = features
        self.centre, self.weight, self.bias = centre, weight, bias  # (N, d), (N, d), (N,)

    def forward(self, numbered: Tensor) -> Tensor:
        """(B, C + 1, H, W) → logits (B, 2) of "clean" and "planted"."""
        rows = (numbered[:, -1, 0, 0] * len(self.bias)).round().long()
        features = self.features(numbered[:, :-1]) - self.centre[rows]
        score = (features * self.weight[rows]).sum(1) + self.bias[rows]
        return torch.stack([torch.zeros_like(score), score], dim=1)


def planted_adversary(probe: Probe) -> Check | None:
    """K1: share of planted adversaries not found; warns above 1 %, fails above 5 %.

    None of a network without a linear layer. B·(INNER + 2) passes to plant, at most B·22 to attack.
    """
    if (layer := last_linear(probe.model, probe.images[:1])) is None:
        return None
    features = Entering(probe.model, layer)
    detectors = Detectors(features, *_fitted(probe, features))
    budget = short(probe.budget)
    rows = torch.arange(probe.count, device=probe.labels.device)
    numbers = (rows / probe.count).view(-1, 1, 1, 1).expand_as(probe.images[:, :1])
    start = scatter(probe.images, noise(probe, "planted start"), budget.eps, budget.norm)
    with probe.autocast:
        outcome = attack(
            detectors,
            torch.cat([probe.images, numbers], dim=1),
            torch.zeros_like(probe.labels),
            torch.cat([start, numbers], dim=1),
            budget,
            cross_entropy,
            False,
        )
    missed = share(~outcome.fallen)
    by_chance = int((outcome.fell_at == 0).sum())
    return limited(
        "K1",
        missed,
        f"The attack missed {100 * missed:.1f} % of {probe.count} planted adversarial images "
        f"({by_chance} found by its random start alone).",
        warn=0.01,
        fail=0.05,
    )


def last_linear(model: nn.Module, images: Tensor) -> str | None:
    """The name of the last linear layer that ``images`` go through as vectors (B, d)."""
    passed: list[str] = []

    def note(name: str, entering: Tensor) -> None:
        if entering.dim() == 2 and len(entering) == len(images):
            passed.append(name)

    watches = [
        module.register_forward_pre_hook(lambda _, entering, name=name: note(name, entering[0]))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        predict(model, images)
    finally:
        for watch in watches:
            watch.remove()
    return passed[-1] if passed else None


def _fitted(probe: Probe, features: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """Centre (B, d), weight (B, d) and bias (B,) of each image's detector.

    Where corner and clean points have the same features there is nothing to detect, and the
    detector always says "clean": such a network hides its gradient, the image counts as missed.
    """
    images, (eps, norm) = probe.images, (probe.budget.eps, probe.budget.norm)
    clean = [images] + [
        scatter(images, noise(probe, "inner point", i), INNER_RADIUS * eps, norm)
        for i in range(INNER)
    ]
    planted = scatter(images, corner(noise(probe, "planted")), eps, norm)
    inner = torch.stack([predict(features, points).cpu().double() for points in clean], dim=1)
    wanted = predict(features, planted).cpu().double()  # (B, d)
    centre = inner.mean(1)
    spread, toward = inner - centre[:, None], wanted - centre  # (B, 1 + INNER, d), (B, d)
    gram = spread @ spread.mT
    ridge = RIDGE * gram.diagonal(dim1=1, dim2=2).mean(1) + 1e-30
    system = gram + ridge[:, None, None] * torch.eye(gram.shape[1], dtype=gram.dtype)
    inside = torch.linalg.solve(system, (spread @ toward[..., None]))
    weight = toward - (spread.mT @ inside).squeeze(2)
    highest = (spread @ weight[..., None]).squeeze(2).amax(1)
    gap = (toward * weight).sum(1) - highest
    usable = gap > (VISIBLE * wanted.norm(dim=1)) ** 2
    gap = torch.where(usable, gap, 1)
    weight = torch.where(usable[:, None], weight / gap[:, None], 0)
    bias = torch.where(usable, -highest / gap - THRESHOLD, -1)
    found = [tensor.to(images.device, images.dtype) for tensor in (centre, weight, bias)]
    return found[0], found[1], found[2]
