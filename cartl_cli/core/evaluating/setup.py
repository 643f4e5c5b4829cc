"""What an attack begins with: the model, the images, the plan."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cartl_cli.core.allocation import keep_freed_memory
from cartl_cli.core.attacks.autoattack import require_autoattack
from cartl_cli.core.attacks.pgd import Budget
from cartl_cli.core.config import AttackConfig, own_eps
from cartl_cli.core.data.split import DataSet, Split
from cartl_cli.core.devices import resolve_device
from cartl_cli.core.evaluating.evaluation import Plan
from cartl_cli.core.evaluating.targets import chosen_images, load_targets
from cartl_cli.core.evaluating.trusting import IMAGES
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.precision import autocast_for, resolve_precision
from cartl_cli.core.records import recording, runs
from cartl_cli.core.records.manifest import Run
from cartl_cli.core.records.recording import Session
from cartl_cli.core.values import shown_pixels

LARGE_EPS = 16 / 255  # above it, a change of a colour image is plain to see


@dataclass(frozen=True)
class Setup:
    """What an attack begins with; ``split`` holds the images to attack, ``indices`` of ``data``."""

    model: BlockModel
    data: DataSet
    indices: Tensor
    split: Split
    plan: Plan
    device: torch.device
    precision: Literal["fp32", "bf16"]
    compile: bool

    @property
    def autocast(self) -> torch.autocast:
        """The number format of the gradients."""
        return autocast_for(self.device, self.precision)


def set_up(config: AttackConfig, attacked: Run, session: Session) -> Setup:
    """Device, place, model and images of an attack, checked before any work.

    Raises UsageError, RunError or DataError.
    """
    if "autoattack" in config.attacks:
        require_autoattack()
    ranks = session.ranks
    device = resolve_device(config.device, ranks)
    keep_freed_memory()
    recording.check_place(session)
    model = runs.read_model(attacked).to(device)
    with ranks.in_turn():
        data = load_targets(config, attacked, session)
    indices = chosen_images(config, data.evaluation)
    return Setup(
        model=model,
        data=data,
        indices=indices,
        split=data.evaluation.take(indices).to(device),
        plan=plan_of(config, attacked.manifest.k),
        device=device,
        precision=resolve_precision(config.precision, device),
        compile=bool(config.compile),
    )


def plan_of(config: AttackConfig, k: int) -> Plan:
    """What the settings ask for, on a model with a sub-model of ``k`` blocks."""
    budgets = tuple(
        Budget(eps, config.step(eps), config.pgd_steps, config.norm) for eps in config.eps
    )
    return Plan(
        config.attacks,
        budgets,
        config.restarts,
        config.queries,
        k,
        config.seed,
        config.batch_size,
        IMAGES[config.checks],
        config.save_adversarial,
    )


def notes(config: AttackConfig, data: DataSet) -> list[str]:
    """What is unusual about an attack before it begins."""
    found, eps = [], config.eps[-1]
    if "apgd-t" in config.attacks and len(data.classes) < 4:
        found.append("with fewer than 4 classes apgd-t aims with the margin, not the DLR loss")
    if config.norm == "linf" and eps > max(LARGE_EPS, own_eps(data.name)):
        found.append(f"eps {shown_pixels(eps)} is unusual for images of this kind")
    return [f"note: {line}" for line in found]
