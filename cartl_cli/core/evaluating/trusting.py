"""The checks of trust, made on a finished attack of the recipe."""

from collections.abc import Callable, Mapping
from contextlib import suppress

import torch
from torch import Tensor

from cartl_cli.core.attacks.pgd import Objective
from cartl_cli.core.attacks.suite import PAPERS
from cartl_cli.core.config import AttackConfig, AttackName
from cartl_cli.core.data.split import Split, to_pixels
from cartl_cli.core.errors import CartlError
from cartl_cli.core.evaluating.evaluation import Plan, Verdicts, probe_images
from cartl_cli.core.losses import cross_entropy, margin
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.records import runs
from cartl_cli.core.records.manifest import Run
from cartl_cli.core.trust.ceilings import ceiling
from cartl_cli.core.trust.checks import Check
from cartl_cli.core.trust.invariants import (
    CleanAccuracy,
    Snapshot,
    best_iterate,
    invariants,
    snapshot,
)
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


IMAGES: Mapping[str, int] = {"off": 128, "fast": 128, "default": 128, "thorough": 256}
"""On how many images the checks of each tier are made."""


def checked(
    run: Run,
    attacked: Run,
    plan: Plan,
    model: BlockModel,
    split: Split,
    verdicts: Verdicts,
    before: Snapshot,
    clean: CleanAccuracy | None,
    autocast: torch.autocast,
    before_pass: Callable[[], None],
) -> list[Check]:
    """What the checks of the tier that ``run`` asks for say, at its largest eps, by number.

    ``before`` is the model as it was when the attack began. ``before_pass`` is called before each
    prediction while its strength is checked; that of an attack with eps 0 is not.
    """
    config, manifest = run.manifest.config, run.manifest
    assert isinstance(config, AttackConfig)
    if config.checks == "off":
        return []
    rows, budget = probe_images(split.labels, plan), plan.budgets[-1]
    images = split.take(rows)
    device, classes = images.labels.device, len(manifest.model.classes)
    source = None if config.checks == "fast" else runs.read_source(attacked)
    probe = Probe(
        model=model,
        images=to_pixels(images.images).to(memory_format=torch.channels_last),
        labels=images.labels,
        budget=budget,
        losses=tuple(dict.fromkeys(OBJECTIVE[name] for name in plan.attacks)),
        seed=plan.seed,
        k=plan.k,
        autocast=autocast,
        adversarial=verdicts.adversarial_of(rows),
        fallen=~verdicts.worst(len(plan.budgets) - 1)[rows],
        source=source and source.to(device),
        ceiling=ceiling(manifest.data.name, classes, budget),
        allowed=allowed(plan, verdicts)[rows],
    )
    stored = None
    with suppress(CartlError):
        stored = runs.read_model(attacked).to(device)
    found = invariants(probe, before, snapshot(model), stored, classes, clean)
    if plan.attacks[0] == PAPERS:
        alone = [verdicts.stands_alone(eps, 0) for eps in range(len(plan.budgets))]
        found.append(best_iterate(torch.stack(alone), verdicts.last))
    if budget.eps > 0:
        found += strength(probe, config.checks, before_pass)
    return sorted(found, key=lambda check: (check.id[0] != "V", int(check.id[1:])))


def allowed(plan: Plan, verdicts: Verdicts) -> Tensor:
    """The eps at which each image (N,) fell, or the largest."""
    fell = (verdicts.fell_at >= 0).any(1)  # (E, N)
    first = torch.where(fell.any(0), fell.int().argmax(0), len(fell) - 1)
    radii = torch.tensor([budget.eps for budget in plan.budgets], device=first.device)
    return radii[first]
