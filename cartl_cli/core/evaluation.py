"""Clean and robust accuracy, image by image: every attack, every eps, the worst of all."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cartl_cli.core.attacks.pgd import STANDS, Budget, Outcome, correct, predict
from cartl_cli.core.attacks.suite import ATTACKS, INDEPENDENT, PAPERS, Batch, Setting
from cartl_cli.core.config import AttackName
from cartl_cli.core.data.split import Split, stratified, to_pixels
from cartl_cli.core.losses import margin
from cartl_cli.core.models.blocks import BlockModel, eval_mode

UNTRIED = -2
"""Of an image that this attack was not run on: it is wrong when clean or has fallen before."""


@dataclass(frozen=True)
class Plan:
    """``attacks`` one after another at each of the rising ``eps``, ``restarts`` times each.

    An attack is run on the images that still stand; those in ``INDEPENDENT`` on all that are right
    when clean, so that their own accuracy can be cited. The adversarial images of the ``probe`` are
    kept, and with ``keep_all`` those of all.
    """

    attacks: tuple[AttackName, ...]
    budgets: tuple[Budget, ...]
    restarts: int
    queries: int
    k: int
    seed: int
    batch_size: int
    probe: int = 128  # images on which the checks of trust are made
    keep_all: bool = False

    @property
    def stages(self) -> list[tuple[int, int]]:
        """Numbers of (eps, attack) in the order in which they are done."""
        return list(itertools.product(range(len(self.budgets)), range(len(self.attacks))))


@dataclass(frozen=True)
class Verdicts:
    """What is known of each image (N,); E values of eps, A attacks.

    ``clean``: right without any attack. ``margin``: z_y − max_{j≠y} z_j of the clean image.
    ``fell_at`` (E, A, N): the iterate at which it fell to an attack, ``STANDS`` or ``UNTRIED``.
    ``last`` (E, N): right at the last iterate of the first restart of the first attack, the way
    the paper counts, if that attack is the paper's. ``kept`` (K,): rising numbers of the images
    whose ``adversarial`` (K, C, H, W) is kept, where one fell or was last led to.
    """

    clean: Tensor
    margin: Tensor
    fell_at: Tensor
    last: Tensor
    kept: Tensor
    adversarial: Tensor

    @property
    def fallen(self) -> Tensor:
        """Fallen to any attack at any eps so far (N,)."""
        return (self.fell_at >= 0).flatten(0, 1).any(0)

    def keep(self, targets: Tensor, adversarial: Tensor) -> None:
        """Keep what an attack made of its targets, where they have not fallen before."""
        wanted = torch.isin(targets, self.kept) & ~self.fallen[targets]
        places = torch.searchsorted(self.kept, targets[wanted])
        self.adversarial[places] = adversarial[wanted]

    def adversarial_of(self, images: Tensor) -> Tensor:
        """What is kept (M, C, H, W) of images (M,), given by number, that are all in ``kept``."""
        return self.adversarial[torch.searchsorted(self.kept, images)]

    def stands_alone(self, eps: int, attack: int) -> Tensor:
        """Right under one attack at an eps and at every smaller one (N,)."""
        return self.clean & ~(self.fell_at[: eps + 1, attack] >= 0).any(0)

    def stands(self, eps: int, attack: int) -> Tensor:
        """Right under the attacks up to this one, and under all attacks at every smaller eps."""
        smaller = (self.fell_at[:eps] >= 0).any(0).any(0)
        here = (self.fell_at[eps, : attack + 1] >= 0).any(0)
        return self.clean & ~smaller & ~here

    def worst(self, eps: int) -> Tensor:
        """Right under every attack at this eps and every smaller one (N,)."""
        return self.stands(eps, self.fell_at.shape[1] - 1)

    def outcomes(self) -> dict[str, Tensor]:
        """What is known of each image, by name."""
        return {
            "clean": self.clean,
            "margin": self.margin,
            "fell_at": self.fell_at,
            "last": self.last,
        }

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name, to go on from."""
        return {**self.outcomes(), "kept": self.kept, "adversarial": self.adversarial}


def unattacked(model: nn.Module, split: Split, plan: Plan) -> Verdicts:
    """The verdicts before any attack, in float32 and evaluation mode."""
    with eval_mode(model):
        logits = torch.cat(
            [predict(model, _pixels(p)) for p in split.images.split(plan.batch_size)]
        )
    clean = correct(logits, split.labels)
    shape = (len(plan.budgets), len(plan.attacks), len(split))
    fell_at = torch.full(shape, UNTRIED, dtype=torch.int32, device=clean.device)
    last = clean.expand(len(plan.budgets), -1).clone()
    everything = torch.arange(len(split), device=clean.device)
    kept = everything if plan.keep_all else probe_images(split.labels, plan)
    adversarial = to_pixels(split.images[kept])
    return Verdicts(clean, -margin(logits, split.labels), fell_at, last, kept, adversarial)


def clean_correct(model: nn.Module, split: Split, batch_size: int) -> Tensor:
    """Which images the model gets right (N,), in float32 and evaluation mode."""
    with eval_mode(model):
        logits = torch.cat([predict(model, _pixels(p)) for p in split.images.split(batch_size)])
    return correct(logits, split.labels)


def robustness(
    model: BlockModel,
    split: Split,
    plan: Plan,
    autocast: torch.autocast,
    verdicts: Verdicts,
    batch_done: Callable[[int], None],
) -> Verdicts:
    """Run what is left of the plan, batch by batch; ``verdicts`` are updated in place.

    The verdicts do not depend on the batch size: losses are summed over the batch and every random
    draw belongs to an image. ``batch_done`` gets the number of images that still wait, one counting
    once for each eps and attack. It falls faster than batches are done: what has fallen to one
    attack does not wait for the next.
    """
    for eps, attack in plan.stages:
        while len(rows := waiting(plan, verdicts, eps, attack)[: plan.batch_size]) > 0:
            _attack_batch(model, split, plan, autocast, verdicts, eps, attack, rows)
            batch_done(all_waiting(plan, verdicts))
    return verdicts


def waiting(plan: Plan, verdicts: Verdicts, eps: int, attack: int) -> Tensor:
    """Rising numbers of the images that an attack is still to be run on."""
    name = plan.attacks[attack]
    if attack == 0 and name == PAPERS:
        right = verdicts.clean
    elif name in INDEPENDENT:
        right = verdicts.stands_alone(eps, attack)
    else:
        right = verdicts.stands(eps, attack)
    return (right & (verdicts.fell_at[eps, attack] == UNTRIED)).nonzero().squeeze(1)


def all_waiting(plan: Plan, verdicts: Verdicts) -> int:
    """How many images wait, counted for each eps and attack."""
    return sum(len(waiting(plan, verdicts, eps, attack)) for eps, attack in plan.stages)


def _attack_batch(
    model: BlockModel,
    split: Split,
    plan: Plan,
    autocast: torch.autocast,
    verdicts: Verdicts,
    eps: int,
    attack: int,
    rows: Tensor,
) -> None:
    """All restarts of one attack on the images ``rows``."""
    name, fell_at = plan.attacks[attack], verdicts.fell_at[eps, attack]
    for restart in range(plan.restarts):
        to_the_end = attack == restart == 0 and name == PAPERS
        targets = rows if restart == 0 else rows[fell_at[rows] == STANDS]
        if len(targets) == 0:
            break
        setting = Setting(plan.seed, restart, plan.queries, plan.k, to_the_end)
        outcome = _attack(model, split, name, targets, plan.budgets[eps], setting, autocast)
        verdicts.keep(targets, outcome.adversarial)
        fell_at[targets] = outcome.fell_at.int()
        if to_the_end:
            verdicts.last[eps, targets] = ~outcome.fallen_last


def _attack(
    model: BlockModel,
    split: Split,
    name: AttackName,
    targets: Tensor,
    budget: Budget,
    setting: Setting,
    autocast: torch.autocast,
) -> Outcome:
    """What one attack makes of its targets; in halves if memory is too small."""
    part = split.take(targets)
    try:
        with autocast:
            batch = Batch(_pixels(part.images), part.labels, targets)
            return ATTACKS[name](model, batch, budget, setting)
    except torch.OutOfMemoryError:
        if len(targets) == 1:
            raise
    halves = [
        _attack(model, split, name, half, budget, setting, autocast)
        for half in targets.tensor_split(2)
    ]
    return Outcome(
        torch.cat([half.adversarial for half in halves]),
        torch.cat([half.fell_at for half in halves]),
        torch.cat([half.fallen_last for half in halves]),
    )


def probe_images(labels: Tensor, plan: Plan) -> Tensor:
    """Rising numbers of the images on which the checks of trust are made."""
    count = min(plan.probe, len(labels))
    return stratified(labels, count, plan.seed, "probe").to(labels.device)


def share(verdicts: Tensor) -> float:
    """The fraction of true verdicts (N,)."""
    return int(verdicts.sum()) / len(verdicts)


def _pixels(images: Tensor) -> Tensor:
    return to_pixels(images).to(memory_format=torch.channels_last)
