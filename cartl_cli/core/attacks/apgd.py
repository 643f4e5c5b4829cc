"""Auto-PGD: gradient ascent that finds its own step sizes (Croce & Hein 2020, arXiv 2003.01690).

Each image begins with steps of 2ε. At every checkpoint an image that no longer gets on is put back
on its best point so far, and its steps are halved.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cartl_cli.core.attacks.contract import (
    STANDS,
    WRONG_CLASSES,
    AttackSetting,
    Batch,
    Outcome,
    Targets,
    by_batches,
)
from cartl_cli.core.attacks.judged_pgd import confirm, correct, predict, start
from cartl_cli.core.method.losses import PerImageLoss, cross_entropy, targeted_dlr
from cartl_cli.core.method.norm_ball import project, uphill
from cartl_cli.core.method.pgd import Budget, ascent
from cartl_cli.core.models.blocks import BlockModel, eval_mode
from cartl_cli.core.models.folding import folded
from cartl_cli.core.runtime.devices import float32

MOMENTUM = 0.25
RHO = 0.75


class Place(NamedTuple):
    """A point of each image (n, C, H, W), the loss there (n,) and its gradient (n, C, H, W)."""

    points: Tensor
    loss: Tensor
    gradient: Tensor


class Climb(NamedTuple):
    """How far each of n images has come. Every tensor has n rows: one of an image that has fallen
    can be taken out without a trace in the others.

    ``rows`` (n,): their numbers in the batch. ``images``: x. ``here``: x̃ₖ. ``previous``: x̃ₖ₋₁.
    ``best``: where the loss was largest. ``step_size`` η (n, 1, 1, 1). Since the last checkpoint:
    ``rises`` (n,), how many steps raised the loss, ``best_then`` (n,), the largest loss at that
    time, and ``halved`` (n,), whether η was halved there.
    """

    rows: Tensor
    images: Tensor
    here: Place
    previous: Tensor
    best: Place
    step_size: Tensor
    rises: Tensor
    best_then: Tensor
    halved: Tensor


@by_batches
def apgd_ce(model: BlockModel, batch: Batch, budget: Budget, setting: AttackSetting) -> Outcome:
    """Auto-PGD on the cross-entropy from a random start."""
    begun = start(batch, budget, setting)
    return apgd(model, batch.images, batch.labels, begun, budget, cross_entropy)


class Round(NamedTuple):
    """Images whose targeted DLR loss has come to ``near`` climb towards each of ``targets`` classes
    in turn, those they came nearest to, each time with that ``part`` of the steps.
    """

    near: float
    targets: int
    part: float


ROUNDS = (Round(-math.inf, WRONG_CLASSES, 1 / 5), Round(-0.3, 3, 1 / 2), Round(-0.1, 3, 1))
"""What each is for: docs/strength.md. ``near`` never falls."""


def apgd_t(
    model: BlockModel, targets: Targets, budget: Budget, setting: AttackSetting
) -> Iterator[tuple[Tensor, Outcome]]:
    """Auto-PGD on the targeted DLR loss in ``ROUNDS``, each climb with a start of its own.

    The first takes everybody; the others, in float32, those of all batches that it nearly broke.
    """
    queue, near = targets.indices, None
    for number in range(len(ROUNDS)):
        going_on: list[tuple[Tensor, Tensor]] = []
        for rows in torch.arange(len(queue), device=queue.device).split(targets.size):
            batch = targets.batch(queue[rows])
            begun = _clean_losses(model, batch) if near is None else near[rows]
            outcome, reached = _round(model, batch, begun, budget, setting, number)
            least = ROUNDS[number + 1].near if number + 1 < len(ROUNDS) else math.inf
            again = ~outcome.fallen & (reached.amax(1) >= least)
            going_on.append((queue[rows[again]], reached[again]))
            left = ~again
            if left.any():
                yield (
                    queue[rows[left]],
                    Outcome(
                        outcome.adversarial[left], outcome.fell_at[left], outcome.fallen_last[left]
                    ),
                )
        if not any(len(some) for some, _ in going_on):
            return
        queue, near = (torch.cat(parts) for parts in zip(*going_on, strict=True))


def _clean_losses(model: BlockModel, batch: Batch) -> Tensor:
    """The targeted DLR loss of each image towards each class (B, classes), −∞ towards its own."""
    clean = predict(model, batch.images)
    losses = [
        targeted_dlr(clean, batch.labels, torch.full_like(batch.labels, to))
        for to in range(clean.shape[1])
    ]
    return torch.stack(losses, 1).scatter(1, batch.labels[:, None], -torch.inf)


def _round(
    model: BlockModel,
    batch: Batch,
    near: Tensor,
    budget: Budget,
    setting: AttackSetting,
    number: int,
) -> tuple[Outcome, Tensor]:
    """One round, and the largest loss so far towards each class, like ``near`` (B, classes)."""
    _, targets, part = ROUNDS[number]
    order = near.argsort(dim=1, descending=True, stable=True)
    classes = order[:, : min(targets, near.shape[1] - 1)]
    fewer = replace(budget, steps=math.ceil(part * budget.steps))

    def start_of(target: int, rows: Tensor) -> Tensor:
        some = Batch(batch.images[rows], batch.labels[rows], batch.indices[rows])
        return start(some, budget, setting, f"attack start towards {target} in {number}")

    with float32(batch.images.device) if number > 0 else nullcontext():
        outcome, reached = _towards_each(
            model, batch.images, batch.labels, start_of, fewer, classes
        )
    return outcome, near.scatter_reduce(1, classes, reached, "amax")


def apgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    start: Tensor,
    budget: Budget,
    loss: PerImageLoss,
) -> Outcome:
    """Auto-PGD; an image has fallen if *any* iterate is misclassified in float32, and leaves.

    ``budget.step_size`` has no say, as step sizes are found. An image that stands is judged once
    more at its best point.
    """
    return _climb(
        model, images, labels, start, budget, lambda logits, rows: loss(logits, labels[rows])
    )[0]


def apgd_targeted(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    start_of: Callable[[int, Tensor], Tensor],
    budget: Budget,
    targets: int,
) -> Outcome:
    """Auto-PGD towards each of the ``targets`` wrong classes of the largest clean logits in turn.

    ``start_of(number, rows)`` is the start towards the target of that number of the images
    ``rows``, those that still stand. ``fell_at`` counts the iterates towards one target.
    """
    others = predict(model, images).scatter(1, labels[:, None], -torch.inf)
    classes = others.argsort(dim=1, descending=True, stable=True)[:, :-1][:, :targets]
    return _towards_each(model, images, labels, start_of, budget, classes)[0]


def _towards_each(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    start_of: Callable[[int, Tensor], Tensor],
    budget: Budget,
    classes: Tensor,
) -> tuple[Outcome, Tensor]:
    """``apgd_targeted`` towards ``classes`` (B, T), and the largest loss on each way (B, T)."""
    found, fell_at = images.clone(), torch.full_like(labels, STANDS)
    reached = images.new_full(classes.shape, -torch.inf)
    for number, to in enumerate(classes.T):
        rows = (fell_at == STANDS).nonzero().squeeze(1)
        if len(rows) == 0:
            break
        ours, wanted = labels[rows], to[rows]

        def towards(
            logits: Tensor, some: Tensor, ours: Tensor = ours, to: Tensor = wanted
        ) -> Tensor:
            return targeted_dlr(logits, ours[some], to[some])

        begun = start_of(number, rows)
        outcome, reached[rows, number] = _climb(model, images[rows], ours, begun, budget, towards)
        found[rows], fell_at[rows] = outcome.adversarial, outcome.fell_at
    return Outcome(found, fell_at, fell_at != STANDS), reached


def checkpoints(steps: int) -> dict[int, int]:
    """At which iterates steps may be halved: ⌈pⱼ·steps⌉, each with its distance to the one before.

    p₀ = 0, p₁ = 0.22, pⱼ₊₁ = pⱼ + max(pⱼ − pⱼ₋₁ − 0.03, 0.06), here in whole percents.
    """
    before, percent = 0, 22
    found, last = {}, 0
    while percent <= 100:
        mark = -(-percent * steps // 100)
        if mark > last:
            found[mark], last = mark - last, mark
        before, percent = percent, percent + max(percent - before - 3, 6)
    return found


def _climb(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    start: Tensor,
    budget: Budget,
    loss: PerImageLoss,
) -> tuple[Outcome, Tensor]:
    """Algorithm 1, and the largest loss (B,) of each image that stands.

    ``loss`` is told the rows of the batch its logits belong to.
    """
    found, fell_at = start.clone(), torch.full_like(labels, STANDS)
    largest = images.new_zeros(len(labels))
    marks, light = checkpoints(budget.steps), folded(model)

    def look(points: Tensor, rows: Tensor) -> tuple[Place, Tensor]:
        logits, gradient = ascent(light, points, rows, loss)
        wrong = ~correct(confirm(model, points, labels[rows], logits), labels[rows])
        return Place(points, loss(logits, rows), gradient), wrong

    with eval_mode(model):
        rows = torch.arange(len(labels), device=labels.device)
        here, wrong = look(start, rows)
        climb = _begun(rows, images, here, budget.eps)
        for step in range(budget.steps + 1):
            if step > 0:
                here, wrong = look(_moved(climb, budget, 0 if step == 1 else MOMENTUM), climb.rows)
                climb = _arrived(climb, here)
            if wrong.any():
                fallen = climb.rows[wrong]
                found[fallen], fell_at[fallen] = here.points[wrong], step
                climb = _rows_of(climb, ~wrong)
            if len(climb.rows) == 0:
                return Outcome(found, fell_at, fell_at != STANDS), largest
            if step in marks:
                climb = _checked(climb, marks[step])
        found[climb.rows], largest[climb.rows] = climb.best.points, climb.best.loss.to(largest)
        wrong = ~correct(predict(model, climb.best.points), labels[climb.rows])
        fell_at[climb.rows[wrong]] = budget.steps
    return Outcome(found, fell_at, fell_at != STANDS), largest


def _begun(rows: Tensor, images: Tensor, start: Place, eps: float) -> Climb:
    step_size = torch.full_like(start.loss, 2 * eps).view(-1, 1, 1, 1)
    none = torch.zeros_like(rows)
    return Climb(rows, images, start, start.points, start, step_size, none, start.loss, none.bool())


def _moved(climb: Climb, budget: Budget, momentum: float) -> Tensor:
    """With z = Π(x̃ₖ + η·∇/‖∇‖): x̃ₖ₊₁ = Π(x̃ₖ + (1 − μ)(z − x̃ₖ) + μ(x̃ₖ − x̃ₖ₋₁))."""
    here = climb.here.points
    plain = here + climb.step_size * uphill(climb.here.gradient, budget.norm)
    ahead = project(plain, climb.images, budget.eps, budget.norm) - here
    moved = here + (1 - momentum) * ahead + momentum * (here - climb.previous)
    return project(moved, climb.images, budget.eps, budget.norm)


def _arrived(climb: Climb, here: Place) -> Climb:
    return climb._replace(
        here=here,
        previous=climb.here.points,
        best=_either(here.loss > climb.best.loss, here, climb.best),
        rises=climb.rises + (here.loss > climb.here.loss),
    )


def _checked(climb: Climb, steps: int) -> Climb:
    """Halve η and go back to the best point under one of two conditions.

    1. Fewer than ρ of the ``steps`` since the last checkpoint raised the loss.
    2. Since then the largest loss has not changed, and η neither, not having been halved there.
    """
    unchanged = ~climb.halved & (climb.best.loss == climb.best_then)
    halved = (climb.rises < RHO * steps) | unchanged
    return climb._replace(
        here=_either(halved, climb.best, climb.here),
        step_size=torch.where(_wide(halved, climb.step_size), climb.step_size / 2, climb.step_size),
        rises=torch.zeros_like(climb.rises),
        best_then=climb.best.loss,
        halved=halved,
    )


def _either(which: Tensor, one: Place, other: Place) -> Place:
    """Image by image ``one`` where ``which`` (n,), else ``other``."""
    pairs = zip(one, other, strict=True)
    return Place(*(torch.where(_wide(which, a), a, b) for a, b in pairs))


def _wide(which: Tensor, like: Tensor) -> Tensor:
    """(n,) → (n, 1, …), with as many dimensions as ``like``."""
    return which.view(-1, *[1] * (like.dim() - 1))


def _rows_of(climb: Climb, which: Tensor) -> Climb:
    """What ``which`` (n,) keeps of the images."""
    kept: list[Any] = [
        part[which] if isinstance(part, Tensor) else Place(*(tensor[which] for tensor in part))
        for part in climb
    ]
    return Climb(*kept)
