"""The attacks by name, each as one function of the same shape."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from cartl_cli.core.attacks.apgd import apgd, apgd_targeted
from cartl_cli.core.attacks.autoattack import autoattack
from cartl_cli.core.attacks.feature import feature_attack
from cartl_cli.core.attacks.geometry import scatter
from cartl_cli.core.attacks.pgd import Budget, Objective, Outcome, attack, counted_noise, walk
from cartl_cli.core.attacks.square import counted_draws, square
from cartl_cli.core.config import AttackName
from cartl_cli.core.losses import cross_entropy, margin
from cartl_cli.core.models.blocks import BlockModel

WRONG_CLASSES = 9  # at most that targeted attacks aim at, as in AutoAttack


@dataclass(frozen=True)
class Setting:
    """What an attack needs beside its budget: ``restart`` counts from 0, ``k`` is the sub-model's.

    With ``to_the_end``, PGD walks on with images that have fallen, for their last iterate.
    """

    seed: int
    restart: int
    queries: int
    k: int
    to_the_end: bool


@dataclass(frozen=True)
class Batch:
    """Images (B, C, H, W) in [0, 1], their labels (B,) and their ``indices`` (B,) in the data."""

    images: Tensor
    labels: Tensor
    indices: Tensor


@dataclass(frozen=True)
class Targets:
    """Images to attack, by their ``indices`` (N,): at most ``size`` of them are made at a time."""

    indices: Tensor
    size: int
    batch: Callable[[Tensor], Batch]


Attack = Callable[[BlockModel, Targets, Budget, Setting], Iterator[tuple[Tensor, Outcome]]]
"""Yields what was found, of some indices at a time, in any order."""


def by_batches(attack: Callable[[BlockModel, Batch, Budget, Setting], Outcome]) -> Attack:
    """An attack that takes one batch after another."""

    def run(
        model: BlockModel, targets: Targets, budget: Budget, setting: Setting
    ) -> Iterator[tuple[Tensor, Outcome]]:
        for indices in targets.indices.split(targets.size):
            yield indices, attack(model, targets.batch(indices), budget, setting)

    return run


def start(batch: Batch, budget: Budget, setting: Setting, purpose: str = "attack start") -> Tensor:
    """A random start (B, C, H, W) that belongs to each image and restart."""
    images, indices = batch.images, batch.indices
    noise = counted_noise(images, setting.seed, purpose, setting.restart, indices)
    return scatter(images, noise, budget.eps, budget.norm)


def _pgd(
    objective: Objective, model: BlockModel, targets: Targets, budget: Budget, setting: Setting
) -> Iterator[tuple[Tensor, Outcome]]:
    def begin(indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch = targets.batch(indices)
        return batch.images, batch.labels, start(batch, budget, setting)

    return walk(model, targets.indices, targets.size, begin, budget, objective, setting.to_the_end)


def _fgsm(model: BlockModel, batch: Batch, budget: Budget, setting: Setting) -> Outcome:
    """One step of size ε from the image itself (Goodfellow et al. 2015)."""
    one = replace(budget, steps=1, step_size=budget.eps)
    images = batch.images
    return attack(model, images, batch.labels, images, one, cross_entropy, False)


def _apgd_ce(model: BlockModel, batch: Batch, budget: Budget, setting: Setting) -> Outcome:
    begun = start(batch, budget, setting)
    return apgd(model, batch.images, batch.labels, begun, budget, cross_entropy)


def _apgd_t(model: BlockModel, batch: Batch, budget: Budget, setting: Setting) -> Outcome:
    def start_of(target: int, rows: Tensor) -> Tensor:
        some = Batch(batch.images[rows], batch.labels[rows], batch.indices[rows])
        return start(some, budget, setting, f"attack start towards {target}")

    fewer = replace(budget, steps=steps_towards_each(budget.steps))
    return apgd_targeted(model, batch.images, batch.labels, start_of, fewer, WRONG_CLASSES)


def steps_towards_each(steps: int) -> int:
    """A third of all: what falls to ``apgd-t`` falls early (docs/strength.md)."""
    return math.ceil(steps / 3)


def _square(model: BlockModel, batch: Batch, budget: Budget, setting: Setting) -> Outcome:
    draws = counted_draws(
        batch.images, _own_seed(setting), batch.indices, setting.queries, budget.norm
    )
    queries = replace(budget, steps=setting.queries)
    return square(model, batch.images, batch.labels, draws, queries)


def _feature(model: BlockModel, batch: Batch, budget: Budget, setting: Setting) -> Outcome:
    begun = start(batch, budget, setting)
    boundary = len(model.blocks) - setting.k
    return feature_attack(model, batch.images, batch.labels, begun, budget, boundary)


def _autoattack(model: BlockModel, batch: Batch, budget: Budget, setting: Setting) -> Outcome:
    seed = _own_seed(setting)
    return autoattack(model, batch.images, batch.labels, budget, WRONG_CLASSES, seed)


def _own_seed(setting: Setting) -> int:
    """A seed of each restart, for draws that do not count restarts; seeds are below 2**32."""
    return setting.seed + 2**32 * setting.restart


ATTACKS: Mapping[AttackName, Attack] = {
    "fgsm": by_batches(_fgsm),
    "pgd": partial(_pgd, cross_entropy),
    "pgd-margin": partial(_pgd, margin),
    "apgd-ce": by_batches(_apgd_ce),
    "apgd-t": by_batches(_apgd_t),
    "square": by_batches(_square),
    "feature": by_batches(_feature),
    "autoattack": by_batches(_autoattack),
}

PAPERS: AttackName = "pgd"
"""The paper's attack: as the first of several it walks to the end with all images, since the paper
counts the last iterate alone."""

INDEPENDENT: tuple[AttackName, ...] = (PAPERS, "pgd-margin", "autoattack")
"""Attacks that are run on all images, for a number to cite: the paper's, its antidote, the
reference."""
