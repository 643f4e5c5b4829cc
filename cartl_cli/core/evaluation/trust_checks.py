"""The checks of trust, made on a finished attack."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor

from cartl_cli.core.data.split import Split, to_pixels
from cartl_cli.core.errors import CartlError
from cartl_cli.core.evaluation.targets import AttackSetup
from cartl_cli.core.evaluation.verdicts import Plan, Verdicts, probe_images
from cartl_cli.core.method import losses
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.registry.evaluation_attacks import EVALUATION_ATTACKS
from cartl_cli.core.runs import weights
from cartl_cli.core.runs.manifest import Run
from cartl_cli.core.runs.results import Check
from cartl_cli.core.trust.ceilings import ceiling
from cartl_cli.core.trust.invariants import (
    CleanAccuracy,
    Snapshot,
    best_iterate,
    clean_accuracy,
    invariants,
    provenance,
    snapshot,
)
from cartl_cli.core.trust.probe import Probe
from cartl_cli.core.trust.tiers import BeforePass, Tier, checks_of, ignore


def checked(
    run: Run,
    setup: AttackSetup,
    verdicts: Verdicts,
    before: Snapshot,
    clean: CleanAccuracy | None,
    before_pass: BeforePass,
) -> list[Check]:
    """What the checks of the tier that ``run`` asks for say, at its largest eps, by number.

    ``before`` is the model as it was when the attack began. ``before_pass``: see ``checks_of``.
    """
    config, manifest, plan = run.attack, run.manifest, setup.plan
    if config.checks == "off":
        return []
    classes, device = len(manifest.model.classes), setup.device
    source = None if config.checks == "fast" else weights.read_source(setup.attacked)
    probe = replace(
        probe_of(setup.model, setup.split, plan, verdicts, setup.autocast),
        source=source and source.to(device),
        ceiling=ceiling(manifest.data.name, classes, plan.budgets[-1]),
    )
    stored = None
    with suppress(CartlError):
        stored = weights.read_model(setup.attacked).to(device)
    found = [provenance(before, stored)]
    if clean is not None:
        found.append(clean_accuracy(clean))
    again = stored or setup.model
    found += made(probe, plan, verdicts, before, again, classes, config.checks, before_pass)
    return in_order(found)


def probe_of(
    model: BlockModel, split: Split, plan: Plan, verdicts: Verdicts, autocast: torch.autocast
) -> Probe:
    """The images that the checks are made on, and what the attack found of them."""
    rows = probe_images(split.labels, plan)
    images = split.take(rows)
    attacks = [EVALUATION_ATTACKS[name] for name in plan.attacks]
    return Probe(
        model=model,
        images=to_pixels(images.images).to(memory_format=torch.channels_last),
        labels=images.labels,
        budget=plan.budgets[-1],
        losses=tuple(dict.fromkeys(getattr(losses, attack.loss) for attack in attacks)),
        seed=plan.seed,
        k=plan.k,
        autocast=autocast,
        adversarial=verdicts.adversarial_of(rows),
        fallen=~verdicts.worst(len(plan.budgets) - 1)[rows],
        allowed=allowed(plan, verdicts)[rows],
    )


def made(
    probe: Probe,
    plan: Plan,
    verdicts: Verdicts,
    before: Snapshot,
    again: BlockModel,
    classes: int,
    tier: Tier,
    before_pass: BeforePass = ignore,
) -> list[Check]:
    """The checks that need no run: see ``invariants`` and ``checks_of``."""
    found = invariants(probe, before, snapshot(probe.model), again, classes)
    if plan.final_iterate:
        alone = [verdicts.stands_alone(eps, 0) for eps in range(len(plan.budgets))]
        found.append(best_iterate(torch.stack(alone), verdicts.last))
    return found + checks_of(probe, tier, before_pass)


def in_order(checks: Iterable[Check]) -> list[Check]:
    """By number, the invariants first."""
    return sorted(checks, key=lambda check: (check.id[0] != "V", int(check.id[1:])))


def allowed(plan: Plan, verdicts: Verdicts) -> Tensor:
    """The eps at which each image (N,) fell, or the largest; 0 if no attack says what it tried."""
    fell = (verdicts.fell_at >= 0).any(1)  # (E, N)
    first = torch.where(fell.any(0), fell.int().argmax(0), len(fell) - 1)
    radii = torch.tensor([budget.eps for budget in plan.budgets], device=first.device)[first]
    if all(EVALUATION_ATTACKS[name].iterates is None for name in plan.attacks):
        radii = torch.where(fell.any(0), radii, 0)
    return radii
