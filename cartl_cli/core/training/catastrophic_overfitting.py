"""Catastrophic overfitting (Wong et al. 2020): FGSM training learns to withstand FGSM alone.

Gradients at the images then point nowhere, accuracy under FGSM is high, under PGD near zero.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from cartl_cli.core.attacks.judged_pgd import correct, predict
from cartl_cli.core.data.split import Split, stratified, to_pixels
from cartl_cli.core.method.norm_ball import uniform_start
from cartl_cli.core.method.pgd import Budget, pgd
from cartl_cli.core.method.training_attacks import Growing
from cartl_cli.core.runtime.randomness import generator
from cartl_cli.core.training.training_plan import TrainingSetup

COLLAPSED = "collapsed"  # of a plan's state
IMAGES = 128  # at most, of the training images
PGD_STEPS = 10
BETWEEN = 4000  # training images from one look to the next: a look costs as much as 500 of them


@dataclass(frozen=True)
class Sign:
    """How many of ``n`` images are right under FGSM and under PGD-10, at their last iterates."""

    fgsm: int
    pgd: int
    n: int

    @property
    def collapsed(self) -> bool:
        """PGD leaves less than half of what FGSM leaves, and more than a tenth of the images less.

        The second keeps a model that is near chance, or a few images, from raising the alarm.
        """
        return self.pgd < self.fgsm / 2 and self.fgsm - self.pgd > self.n / 10


def watched(split: Split, seed: int) -> Split:
    """The training images to look at after each epoch: seeded, stratified, always the same."""
    return split.take(stratified(split.labels, min(IMAGES, len(split)), seed, "overfitting"))


def guard(
    model: nn.Module,
    setup: TrainingSetup,
    budget: Growing,
    collapsed: torch.Tensor,
    say: Callable[[str], None],
) -> Callable[[int, int], dict[str, float]]:
    """What to do after each epoch of a plan: look whether training overfits, note it and say it.

    With few training images that is after the last epoch and every so many before it. ``budget``:
    of the training. ``collapsed``: the epoch after which it was found, 0 if it was not; from then
    on training is to take all steps of the budget.
    """
    config = setup.config
    images = watched(setup.split, config.seed).to(setup.device)
    every = max(1, round(BETWEEN / len(setup.split)))

    def epoch_done(epoch: int, step: int) -> dict[str, float]:
        if epoch % every and epoch < config.epochs:
            return {}
        eps = budget.budget(step - 1).eps
        sign = look(model, images, eps, config.seed, config.batch_size, setup.autocast)
        if sign.collapsed and collapsed == 0:
            collapsed.fill_(epoch)
            say(
                f"warning: catastrophic overfitting after epoch {epoch}: of {sign.n} "
                f"training images {sign.fgsm} are right under FGSM, {sign.pgd} under PGD-10; "
                f"steps that follow train with PGD-{budget.full.steps}"
            )
        return {"fgsm_accuracy": sign.fgsm / sign.n, "pgd_accuracy": sign.pgd / sign.n}

    return epoch_done


def look(
    model: nn.Module,
    images: Split,
    eps: float,
    seed: int,
    batch_size: int,
    autocast: torch.autocast,
) -> Sign:
    """Attack the images with one step of ε from the image itself, and with PGD-10.

    In evaluation mode; ``model`` is left as it was. Verdicts are float32.
    """
    one_step, many = Budget(eps, eps, 1), Budget(eps, eps / 4, PGD_STEPS)
    draws = generator(seed, "overfitting start")
    right = {one_step: 0, many: 0}
    for pixels, labels in zip(
        to_pixels(images.images).split(batch_size), images.labels.split(batch_size), strict=True
    ):
        clean = pixels.to(memory_format=torch.channels_last)
        starts = {one_step: clean, many: uniform_start(clean, eps, draws)}
        for budget, start in starts.items():
            with autocast:
                adversarial = pgd(model, clean, labels, start, budget)
            right[budget] += int(correct(predict(model, adversarial), labels).sum())
    return Sign(right[one_step], right[many], len(images))
