"""Whether another attack breaks what the real one left standing: K5, K6, K9, K10, K17.

An attack that is as strong as it can be leaves nothing to weaker ones. What "breaks some images"
means on few images: a true loss of 0.2 points breaks at least one of 128 images in one probe of
four, two or more in one of 36. So one image warns, and more than one fails where that is also above
the limit. Noise and a single step, which have no business to break anything, keep their own rules.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from cartl_cli.core.attacks.feature import feature_attack
from cartl_cli.core.attacks.judged_pgd import correct, predict
from cartl_cli.core.attacks.square import counted_draws, square
from cartl_cli.core.method.losses import cross_entropy
from cartl_cli.core.method.norm_ball import scatter
from cartl_cli.core.method.pgd import ascent, pgd, pgd_step
from cartl_cli.core.models.blocks import BlockModel, eval_mode
from cartl_cli.core.runs.results import Check
from cartl_cli.core.trust.checks import limited
from cartl_cli.core.trust.probe import Probe, corner, noise, share, short


def random_noise(probe: Probe, draws: int) -> Check:
    """K5: standing images that random noise misclassifies, corners and insides; any fails.

    At most S·draws passes.
    """
    images, labels, budget = probe.images, probe.labels, probe.budget
    broken = torch.zeros_like(probe.fallen)
    for number in range(draws):
        rows = (~probe.fallen & ~broken).nonzero().squeeze(1)
        if len(rows) == 0:
            break
        drawn = noise(probe, "noise", number)
        drawn = corner(drawn) if number % 2 == 0 else drawn
        points = scatter(images, drawn, budget.eps, budget.norm)[rows]
        broken[rows] = ~correct(predict(probe.model, points), labels[rows])
    text = f"{draws} draws of noise break {int(broken.sum())} images that the attack did not."
    return limited("K5", share(broken), text, fail=0)


def black_box(probe: Probe, queries: int) -> Check:
    """K6: images that Square breaks, which asks for no gradient, and the attack does not.

    Any warns, above 0.2 points and one image fails. S·(queries + 2) passes.
    """

    def searched(rows: Tensor) -> Tensor:
        images, budget = probe.images[rows], replace(probe.budget, steps=queries)
        draws = counted_draws(images, probe.seed, rows, queries, budget.norm)
        with probe.autocast:
            return square(probe.model, images, probe.labels[rows], draws, budget).adversarial

    return _rival("K6", probe, searched, f"Square with {queries} queries", 0.002)


def single_step(probe: Probe) -> Check:
    """K9: images that one step of eps breaks and the attack does not; any warns, above 1 % fails.

    2S passes.
    """

    def stepped(rows: Tensor) -> Tensor:
        images, whole = probe.images[rows], replace(probe.budget, step_size=probe.budget.eps)
        with eval_mode(probe.model), probe.autocast:
            _, gradient = ascent(probe.model, images, probe.labels[rows], cross_entropy)
        return pgd_step(images, gradient, images, whole)

    broken = _broken(probe, stepped)
    text = f"One step (FGSM) breaks {int(broken.sum())} images that the attack did not."
    return limited("K9", share(broken), text, warn=0, fail=0.01)


def transfer(probe: Probe, source: BlockModel) -> Check:
    """K10: images that an attack on ``source`` breaks and the attack does not.

    Any warns, above 0.5 points and one image fails. The attack turns the source away from what it
    predicts, since its classes may be others. S·22 passes.
    """

    def transferred(rows: Tensor) -> Tensor:
        images, budget = probe.images[rows], short(probe.budget)
        start = scatter(probe.images, noise(probe, "transfer"), budget.eps, budget.norm)[rows]
        labels = predict(source, images).argmax(1)
        with probe.autocast:
            return pgd(source, images, labels, start, budget)

    return _rival("K10", probe, transferred, "Transfer from the source", 0.005)


def adaptive(probe: Probe) -> Check:
    """K17: images that fall to an attack on the features where CARTL freezes, L − k blocks deep.

    Feature distance is what FDM trains and NEFT bounds: what an attack made for CARTL aims at
    (after Tramèr et al. 2020). Any warns, above 0.5 points and one image fails. S·(N + 4) passes.
    """

    def led_away(rows: Tensor) -> Tensor:
        images, budget = probe.images[rows], probe.budget
        start = scatter(probe.images, noise(probe, "feature"), budget.eps, budget.norm)[rows]
        boundary = len(probe.model.blocks) - probe.k
        with probe.autocast:
            outcome = feature_attack(
                probe.model, images, probe.labels[rows], start, budget, boundary
            )
        return outcome.adversarial

    return _rival("K17", probe, led_away, "The attack on CARTL's features", 0.005)


def _rival(
    name: str, probe: Probe, moved: Callable[[Tensor], Tensor], attack: str, limit: float
) -> Check:
    broken = _broken(probe, moved)
    text = f"{attack} breaks {int(broken.sum())} images that the attack did not."
    return limited(name, share(broken), text, warn=0, fail=max(limit, 1.01 / probe.count))


def _broken(probe: Probe, moved: Callable[[Tensor], Tensor]) -> Tensor:
    """Which images (B,) stand against the real attack and fall where ``moved(rows)`` puts them."""
    broken, rows = torch.zeros_like(probe.fallen), probe.standing
    if len(rows) > 0:
        broken[rows] = ~correct(predict(probe.model, moved(rows)), probe.labels[rows])
    return broken
