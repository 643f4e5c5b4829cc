"""Square Attack: random search that asks for logits only (Andriushchenko et al. 2020).

arXiv 1912.00049, with the sizes of squares and the ℓ₂ update as in AutoAttack. A query changes one
square of the image and is kept if it raises the margin loss.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from cartl_cli.core.attacks.contract import STANDS, AttackSetting, Batch, Outcome, by_batches
from cartl_cli.core.attacks.judged_pgd import confirm, correct, predict
from cartl_cli.core.choices import Norm
from cartl_cli.core.method.losses import margin
from cartl_cli.core.method.norm_ball import project, sizes, uphill
from cartl_cli.core.method.pgd import Budget
from cartl_cli.core.models.blocks import BlockModel, eval_mode
from cartl_cli.core.runtime.randomness import generator

P_INIT = 0.8
HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


@dataclass(frozen=True)
class Draws:
    """All that is random, from U(0, 1): ``first`` (B, …) of the start, ``then`` (B, queries, …)."""

    first: Tensor
    then: Tensor


def counted_draws(images: Tensor, seed: int, indices: Tensor, queries: int, norm: Norm) -> Draws:
    """The draws of each image by its index: they do not depend on the batch."""
    channels, height, width = images.shape[1:]
    if norm == "linf":
        first, each = (channels, 1, width), 2 + channels
    else:
        _, down, across = _tiling(height, width)
        first, each = (1 + channels, down, across), 5 + channels
    drawn = []
    for index in indices.tolist():
        draws = generator(seed, "square", index)
        drawn.append(
            (torch.rand(first, generator=draws), torch.rand(queries, each, generator=draws))
        )
    return Draws(
        torch.stack([one for one, _ in drawn]).to(images.device),
        torch.stack([many for _, many in drawn]).to(images.device),
    )


@by_batches
def square_attack(
    model: BlockModel, batch: Batch, budget: Budget, setting: AttackSetting
) -> Outcome:
    """Square with the queries of the setting, drawn for each image and restart."""
    queries = replace(budget, steps=setting.queries)
    draws = counted_draws(batch.images, setting.own_seed, batch.indices, queries.steps, budget.norm)
    return square(model, batch.images, batch.labels, draws, queries)


def square(
    model: nn.Module, images: Tensor, labels: Tensor, draws: Draws, budget: Budget
) -> Outcome:
    """``budget.steps`` queries after the start, for which ``draws`` are: see ``counted_draws``.

    Queries may run under the caller's autocast, verdicts are float32: an image that falls leaves
    the batch, one that stands is judged once more at its best point. ``fell_at`` is the query.
    """
    found, fell_at = images.clone(), torch.full_like(labels, STANDS)
    rows = torch.arange(len(labels), device=labels.device)
    best, highest = images, torch.full(labels.shape, -math.inf, device=labels.device)
    with eval_mode(model):
        for query in range(budget.steps + 1):
            if query == 0:
                points = _start(images, draws.first, budget)
            else:
                draw = draws.then[rows, query - 1]
                points = _proposed(best, images[rows], draw, budget, _share(query - 1))
            with torch.no_grad():
                logits = confirm(model, points, labels[rows], model(points))
            reached = margin(logits, labels[rows])
            better = reached > highest
            best = torch.where(better.view(-1, 1, 1, 1), points, best)
            highest = torch.where(better, reached, highest)
            wrong = ~correct(logits, labels[rows])
            if wrong.any():
                found[rows[wrong]], fell_at[rows[wrong]] = points[wrong], query
                rows, best, highest = rows[~wrong], best[~wrong], highest[~wrong]
            if len(rows) == 0:
                return Outcome(found, fell_at, fell_at != STANDS)
        found[rows] = best
        wrong = ~correct(predict(model, best), labels[rows])
        fell_at[rows[wrong]] = budget.steps
    return Outcome(found, fell_at, fell_at != STANDS)


def _share(query: int) -> float:
    """The share of the pixels in the square at a query, counted from 0.

    AutoAttack's: the schedule of the paper for 10,000 queries, not shrunk to fewer.
    """
    return P_INIT / 2.0 ** sum(query > after for after in HALVED_AFTER)


def _start(images: Tensor, first: Tensor, budget: Budget) -> Tensor:
    """ℓ∞: vertical stripes of ±ε. ℓ₂: a grid of tiles with the bumps of ``_bump``."""
    if budget.norm == "linf":
        return project(images + budget.eps * _signs(first), images, budget.eps, "linf")
    height, width = images.shape[2:]
    size, down, across = _tiling(height, width)
    tiles = _turned(_bump(size).to(images), first[:, :1]) * _signs(first[:, 1:])[..., None, None]
    grid = tiles.transpose(3, 4).flatten(4).flatten(2, 3)  # (B, C, down·size, across·size)
    top, left = (height - down * size) // 2, (width - across * size) // 2
    delta = torch.zeros_like(images)
    delta[:, :, top : top + down * size, left : left + across * size] = grid
    return project(images + budget.eps * uphill(delta, "l2"), images, budget.eps, "l2")


def _proposed(best: Tensor, images: Tensor, draw: Tensor, budget: Budget, share: float) -> Tensor:
    """The next points to ask for, (n, C, H, W) like ``best``; ``draw`` (n, …) from U(0, 1)."""
    height, width = images.shape[2:]
    side = round(math.sqrt(share * height * width))
    if budget.norm == "linf":
        return _recoloured(best, images, draw, budget.eps, min(max(side, 1), height, width))
    side = max(side, 3)
    return _moved_mass(best, images, draw, budget.eps, min(side + 1 - side % 2, height, width))


def _recoloured(best: Tensor, images: Tensor, draw: Tensor, eps: float, side: int) -> Tensor:
    """ℓ∞: each channel of one square becomes x + ε or x − ε."""
    inside = _inside(images, _corner(images, draw[:, :2], side), side)
    corners = images + eps * _signs(draw[:, 2:, None, None])
    return torch.where(inside, project(corners, images, eps, "linf"), best)


def _moved_mass(best: Tensor, images: Tensor, draw: Tensor, eps: float, side: int) -> Tensor:
    """ℓ₂ (Algorithm 3): one square gives its share of ‖δ‖₂² to another, as a new bump there."""
    delta = best - images
    channels = delta.shape[1]
    target, giver = _corner(images, draw[:, :2], side), _corner(images, draw[:, 2:4], side)
    both = _inside(images, target, side) | _inside(images, giver, side)
    unused = (eps**2 - sizes(delta, "l2") ** 2).clamp_min(0)  # (n, 1, 1, 1)
    energy = unused / channels + (delta * both).square().sum((2, 3), keepdim=True)  # (n, C, 1, 1)
    bump = _turned(_bump(side).to(images), draw[:, 4:5])  # (n, 1, side, side)
    window = _window(images, target, side)
    fresh = bump * _signs(draw[:, 5:, None, None]) + _unit(delta[window])
    delta[_window(images, giver, side)] = 0
    delta[window] = _unit(fresh) * energy.sqrt()
    return project(images + eps * uphill(delta, "l2"), images, eps, "l2")


def _signs(draws: Tensor) -> Tensor:
    """U(0, 1) → ±1."""
    return 1 - 2 * (draws < 0.5).to(draws.dtype)


def _corner(images: Tensor, draws: Tensor, side: int) -> Tensor:
    """(n, 2) from U(0, 1) → the top and left of a square that lies in the image."""
    height, width = images.shape[2:]
    return torch.stack(
        [draws[:, 0] * (height - side + 1), draws[:, 1] * (width - side + 1)], dim=1
    ).long()


def _inside(images: Tensor, corner: Tensor, side: int) -> Tensor:
    """Which pixels are in the squares (n, 1, H, W)."""
    down, across = (
        torch.arange(length, device=images.device) - corner[:, axis, None]
        for axis, length in enumerate(images.shape[2:])
    )
    tall, wide = (down >= 0) & (down < side), (across >= 0) & (across < side)
    return (tall[:, :, None] & wide[:, None, :])[:, None]


def _window(images: Tensor, corner: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What indexes the squares as (n, C, side, side)."""
    count, channels = images.shape[:2]
    number = torch.arange(count, device=images.device).view(-1, 1, 1, 1)
    channel = torch.arange(channels, device=images.device).view(-1, 1, 1)
    steps = torch.arange(side, device=images.device)
    down, across = corner[:, 0, None] + steps, corner[:, 1, None] + steps  # (n, side)
    return number, channel, down[:, None, :, None], across[:, None, None, :]


def _unit(windows: Tensor) -> Tensor:
    """(n, C, side, side) with ‖·‖₂ = 1 in each channel, zero where it was zero."""
    norms: Tensor = torch.linalg.vector_norm(windows, dim=(2, 3), keepdim=True)
    return windows / norms.clamp_min(1e-12)


def _tiling(height: int, width: int) -> tuple[int, int, int]:
    """Side of a tile of the ℓ₂ start, about a fifth of the image, and how many down and across."""
    size = max(min(height, width) // 5, 1)
    return size, height // size, width // size


def _turned(bump: Tensor, draws: Tensor) -> Tensor:
    """(s, s) and U(0, 1) of any shape → that shape + (s, s), half of them transposed."""
    return torch.where(draws[..., None, None] < 0.5, bump, bump.T)


def _bump(size: int) -> Tensor:
    """η (s, s): a hill in the upper half and a valley in the lower one, ‖η‖₂ = 1."""
    upper = size // 2
    bump = torch.cat([_hill(upper, size), -_hill(size - upper, size)])
    norm: Tensor = torch.linalg.vector_norm(bump)
    return bump / norm


def _hill(height: int, width: int) -> Tensor:
    """Σ 1/k² over k from 1 + the distance to the middle to the longest one, of ‖·‖₂ = 1."""
    down = (torch.arange(height) - height // 2).abs()
    across = (torch.arange(width) - width // 2).abs()
    distance = torch.maximum(down[:, None], across[None])  # (height, width)
    reach = max(height // 2, width // 2) + 1
    terms = 1 / torch.arange(1, reach + 1).square()
    tails = terms.flip(0).cumsum(0).flip(0)  # tails[d] = Σ_{k>d} 1/k²
    hill = tails[distance]
    norm: Tensor = torch.linalg.vector_norm(hill)
    return hill / norm.clamp_min(1e-12)
