"""Clean and robust accuracy, image by image: every attack, every eps, the worst of all."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cartl_cli.core.attacks.contract import STANDS, AttackSetting, Batch, Targets
from cartl_cli.core.attacks.judged_pgd import correct, predict
from cartl_cli.core.data.split import Split, stratified, to_pixels
from cartl_cli.core.method.losses import margin
from cartl_cli.core.method.pgd import Budget
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.registry.evaluation_attacks import EVALUATION_ATTACKS

UNTRIED = -2
"""Of an image that this attack was not run on: it is wrong when clean or has fallen before.

One that has stood ``r`` restarts and waits for the next is ``UNTRIED - r``."""


class Stage(NamedTuple):
    """Numbers of an eps, of an attack and of its restart."""

    eps: int
    attack: int
    restart: int


@dataclass(frozen=True)
class Plan:
    """``attacks`` one after another at each of the rising ``eps``, ``restarts`` times each.

    An attack is run on the images that still stand; independent ones on all that are right
    when clean, so that their own accuracy can be cited. The adversarial images of the ``probe`` are
    kept, and with ``keep_all`` those of all. ``final_iterate``: fallen images walk on in the first
    attack, which must be the paper's.
    """

    attacks: tuple[str, ...]
    budgets: tuple[Budget, ...]
    restarts: int
    queries: int
    k: int
    seed: int
    batch_size: int
    probe: int = 128  # images on which the checks of trust are made
    keep_all: bool = False
    final_iterate: bool = False

    @property
    def stages(self) -> list[Stage]:
        """In the order in which they are done."""
        numbers = map(range, (len(self.budgets), len(self.attacks), self.restarts))
        return [Stage(*each) for each in itertools.product(*numbers)]


@dataclass(frozen=True)
class Verdicts:
    """What is known of each image (N,); E values of eps, A attacks.

    ``clean``: right without any attack. ``margin``: z_y − max_{j≠y} z_j of the clean image.
    ``fell_at`` (E, A, N): the iterate at which it fell to an attack, ``STANDS`` or ``UNTRIED``.
    ``last`` (E, N): right at the last iterate of the first restart of the first attack, the way
    the paper counts, if the plan asks for it. ``answers`` (1 + E, N): the class that the clean
    image is taken for, and that at each eps, where an image that stands keeps its clean answer.
    ``kept`` (K,): rising numbers of the images
    whose ``adversarial`` (K, C, H, W) is kept, where one fell or was last led to.
    """

    clean: Tensor
    margin: Tensor
    fell_at: Tensor
    last: Tensor
    answers: Tensor
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

    def tell(self, targets: Tensor, eps: int, answers: Tensor) -> None:
        """Note what targets (M,), which have just fallen, are taken for at an eps and above."""
        self.answers[eps + 1 :, targets] = answers

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
            "answers": self.answers,
        }

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name, to go on from."""
        return {**self.outcomes(), "kept": self.kept, "adversarial": self.adversarial}


def unattacked(model: nn.Module, split: Split, plan: Plan) -> Verdicts:
    """The verdicts before any attack, in float32 and evaluation mode."""
    parts = split.batches(plan.batch_size)
    logits = torch.cat([predict(model, _pixels(part)) for part in parts])
    clean = correct(logits, split.labels)
    shape = (len(plan.budgets), len(plan.attacks), len(split))
    fell_at = torch.full(shape, UNTRIED, dtype=torch.int32, device=clean.device)
    last = clean.expand(len(plan.budgets), -1).clone()
    answers = torch.where(clean, split.labels, likeliest_other(logits, split.labels)).int()
    answers = answers.expand(1 + len(plan.budgets), -1).clone()
    everything = torch.arange(len(split), device=clean.device)
    kept = everything[:0]
    if plan.keep_all:
        kept = everything
    elif plan.probe > 0:
        kept = probe_images(split.labels, plan)
    adversarial = to_pixels(split.take(kept).images)
    margins = -margin(logits, split.labels).nan_to_num()
    return Verdicts(clean, margins, fell_at, last, answers, kept, adversarial)


def clean_correct(model: nn.Module, split: Split, batch_size: int, device: torch.device) -> Tensor:
    """Which images the model on a device gets right (N,), in float32 and evaluation mode."""
    logits = [predict(model, _pixels(part.to(device))) for part in split.batches(batch_size)]
    return correct(torch.cat(logits).cpu(), split.labels.cpu())


def robustness(
    model: BlockModel, split: Split, plan: Plan, autocast: torch.autocast, verdicts: Verdicts
) -> Iterator[int]:
    """Run what is left of the plan, batch by batch; ``verdicts`` are updated in place.

    The verdicts do not depend on the batch size: losses are summed over the batch and every random
    draw belongs to an image. It is halved where memory is too small. After each batch it yields the
    number of images that still wait, one counting once for each eps and attack. It falls faster
    than batches are done: what has fallen to one attack does not wait for the next.
    """
    for stage in plan.stages:
        size = plan.batch_size
        while len(rows := waiting(plan, verdicts, stage)) > 0:
            try:
                for _ in _attacked(model, split, plan, autocast, verdicts, stage, rows, size):
                    yield all_waiting(plan, verdicts)
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                size //= 2


def waiting(plan: Plan, verdicts: Verdicts, stage: Stage) -> Tensor:
    """Rising numbers of the images that a restart of an attack is still to be run on."""
    eps, attack, restart = stage
    chosen = EVALUATION_ATTACKS[plan.attacks[attack]]
    if attack == 0 and plan.final_iterate:
        right = verdicts.clean
    elif chosen.independent:
        right = verdicts.stands_alone(eps, attack)
    else:
        right = verdicts.stands(eps, attack)
    return (right & (verdicts.fell_at[eps, attack] == UNTRIED - restart)).nonzero().squeeze(1)


def all_waiting(plan: Plan, verdicts: Verdicts) -> int:
    """How many images wait, counted for each eps and attack."""
    return sum(len(waiting(plan, verdicts, stage)) for stage in plan.stages)


def _attacked(
    model: BlockModel,
    split: Split,
    plan: Plan,
    autocast: torch.autocast,
    verdicts: Verdicts,
    stage: Stage,
    rows: Tensor,
    size: int,
) -> Iterator[None]:
    """One restart of one attack on the images ``rows``, ``size`` at a time; yields after each."""
    eps, number, restart = stage
    fell_at, attack = verdicts.fell_at[eps, number], EVALUATION_ATTACKS[plan.attacks[number]]
    stood = STANDS if restart == plan.restarts - 1 else UNTRIED - restart - 1

    to_the_end = number == restart == 0 and plan.final_iterate
    setting = AttackSetting(plan.seed, restart, plan.queries, plan.k, to_the_end)

    def batch(indices: Tensor) -> Batch:
        some = split.take(indices)
        return Batch(_pixels(some.images), some.labels, indices)

    targets = Targets(batch, rows, size)
    found = resolve_name(attack.code)(model, targets, plan.budgets[eps], setting)
    while True:
        with autocast:
            if (part := next(found, None)) is None:
                return
        some, outcome = part
        told = outcome.fallen if attack.iterates is None else torch.ones_like(outcome.fallen)
        verdicts.keep(some[told], outcome.adversarial[told])
        first = outcome.fallen & ~verdicts.fallen[some]
        if first.any():
            logits, labels = predict(model, outcome.adversarial[first]), split.labels[some[first]]
            verdicts.tell(some[first], eps, likeliest_other(logits, labels).int())
        fell_at[some] = torch.where(outcome.fallen, outcome.fell_at, stood).int()
        if to_the_end:
            verdicts.last[eps, some] = ~outcome.fallen_last
        yield


def likeliest_other(logits: Tensor, labels: Tensor) -> Tensor:
    """The likeliest class but the label (B,), from logits (B, classes), finite or not.

    What a wrong image is taken for. Another batch rounds otherwise, and cannot make it right.
    """
    others = logits.nan_to_num().scatter(1, labels[:, None], -math.inf)
    return others.argmax(1)


def probe_images(labels: Tensor, plan: Plan) -> Tensor:
    """Rising numbers of the images on which the checks of trust are made."""
    count = min(plan.probe, len(labels))
    return stratified(labels, count, plan.seed, "probe").to(labels.device)


def share(verdicts: Tensor) -> float:
    """The fraction of true verdicts (N,)."""
    return int(verdicts.sum()) / len(verdicts)


def _pixels(images: Tensor) -> Tensor:
    return to_pixels(images).to(memory_format=torch.channels_last)
