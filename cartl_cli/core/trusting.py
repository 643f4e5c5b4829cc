"""The checks of trust, made on a finished attack of the recipe."""

import torch

from cartl_cli.core.attacks.pgd import Objective
from cartl_cli.core.config import AttackConfig, AttackName
from cartl_cli.core.data.split import Split, to_pixels
from cartl_cli.core.evaluation import Plan, Verdicts, probe_images
from cartl_cli.core.losses import cross_entropy, margin
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.trust.checks import Check
from cartl_cli.core.trust.invariants import CleanAccuracy, Snapshot, invariants, snapshot
from cartl_cli.core.trust.probe import Probe
from cartl_cli.core.trust.tiers import strength

OBJECTIVE: dict[AttackName, Objective] = {
    "fgsm": cross_entropy,
    "pgd": cross_entropy,
    "apgd-ce": cross_entropy,
    "feature": cross_entropy,
    "pgd-margin": margin,
    "apgd-t": margin,
    "square": margin,
    "autoattack": margin,
}
"""What each attack raises, as far as the short attacks within the checks can follow it."""


def checked(
    config: AttackConfig,
    plan: Plan,
    model: BlockModel,
    split: Split,
    verdicts: Verdicts,
    before: Snapshot,
    clean: CleanAccuracy | None,
    classes: int,
    autocast: torch.autocast,
) -> list[Check]:
    """What the checks of the configured tier say, at the largest eps, on the probe's images.

    ``before`` is the model as it was when the attack began. The strength of an attack with eps 0
    is not checked.
    """
    if config.checks == "off":
        return []
    rows = probe_images(split.labels, plan.seed)
    images = split.take(rows)
    losses = tuple(dict.fromkeys(OBJECTIVE[name] for name in plan.attacks))
    probe = Probe(
        model=model,
        images=to_pixels(images.images).to(memory_format=torch.channels_last),
        labels=images.labels,
        budget=plan.budgets[-1],
        losses=losses,
        seed=plan.seed,
        autocast=autocast,
        adversarial=verdicts.adversarial_of(rows),
        fallen=~verdicts.worst(len(plan.budgets) - 1)[rows],
    )
    found = invariants(probe, before, snapshot(model), classes, clean)
    if plan.budgets[-1].eps > 0:
        found += strength(probe, config.checks)
    return found
