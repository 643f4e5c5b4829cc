"""The attacks by name, each as one function of the same shape."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from cartl_cli.core.attacks.apgd import apgd, apgd_targeted
from cartl_cli.core.attacks.feature import feature_attack
from cartl_cli.core.attacks.geometry import scatter
from cartl_cli.core.attacks.pgd import Budget, Objective, Outcome, attack, counted_noise
from cartl_cli.core.attacks.square import counted_draws, square
from cartl_cli.core.config import AttackName
from cartl_cli.core.losses import cross_entropy, margin
from cartl_cli.core.models.blocks import BlockModel

TARGETS = 9  # wrong classes that apgd-t aims at, as AutoAttack does


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


Attack = Callable[[BlockModel, Tensor, Tensor, Tensor, Budget, Setting], Outcome]
"""(model, images, labels, indices of the images in the data set, budget, setting) → Outcome."""


def start(
    images: Tensor, indices: Tensor, budget: Budget, setting: Setting, purpose: str = "attack start"
) -> Tensor:
    """A random start that belongs to each image and restart."""
    noise = counted_noise(images, setting.seed, purpose, setting.restart, indices)
    return scatter(images, noise, budget.eps, budget.norm)


def _pgd(
    objective: Objective,
    model: BlockModel,
    images: Tensor,
    labels: Tensor,
    indices: Tensor,
    budget: Budget,
    setting: Setting,
) -> Outcome:
    begun = start(images, indices, budget, setting)
    return attack(model, images, labels, begun, budget, objective, setting.to_the_end)


def _fgsm(
    model: BlockModel,
    images: Tensor,
    labels: Tensor,
    indices: Tensor,
    budget: Budget,
    setting: Setting,
) -> Outcome:
    """One step of size ε from the image itself (Goodfellow et al. 2015)."""
    one = replace(budget, steps=1, step_size=budget.eps)
    return attack(model, images, labels, images, one, cross_entropy, False)


def _apgd_ce(
    model: BlockModel,
    images: Tensor,
    labels: Tensor,
    indices: Tensor,
    budget: Budget,
    setting: Setting,
) -> Outcome:
    begun = start(images, indices, budget, setting)
    return apgd(model, images, labels, begun, budget, cross_entropy)


def _apgd_t(
    model: BlockModel,
    images: Tensor,
    labels: Tensor,
    indices: Tensor,
    budget: Budget,
    setting: Setting,
) -> Outcome:
    def start_of(target: int, rows: Tensor) -> Tensor:
        purpose = f"attack start towards {target}"
        return start(images[rows], indices[rows], budget, setting, purpose)

    return apgd_targeted(model, images, labels, start_of, budget, TARGETS)


def _square(
    model: BlockModel,
    images: Tensor,
    labels: Tensor,
    indices: Tensor,
    budget: Budget,
    setting: Setting,
) -> Outcome:
    seed = setting.seed + 2**32 * setting.restart  # seeds are below 2**32
    draws = counted_draws(images, seed, indices, setting.queries, budget.norm)
    return square(model, images, labels, draws, replace(budget, steps=setting.queries))


def _feature(
    model: BlockModel,
    images: Tensor,
    labels: Tensor,
    indices: Tensor,
    budget: Budget,
    setting: Setting,
) -> Outcome:
    begun = start(images, indices, budget, setting)
    boundary = len(model.blocks) - setting.k
    return feature_attack(model, images, labels, begun, budget, boundary)


ATTACKS: Mapping[AttackName, Attack] = {
    "fgsm": _fgsm,
    "pgd": partial(_pgd, cross_entropy),
    "pgd-margin": partial(_pgd, margin),
    "apgd-ce": _apgd_ce,
    "apgd-t": _apgd_t,
    "square": _square,
    "feature": _feature,
}

INDEPENDENT: tuple[AttackName, ...] = ("pgd", "pgd-margin")
"""Attacks that are run on all images, for a number of their own: the paper's, and its antidote."""
