"""What a benchmark of training measures: the task, who takes part, how they are called."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from cartl_cli.core.config import PretrainConfig, TransferConfig
from cartl_cli.core.runtime.devices import autocast_for, resolve_precision

HELD_OUT = 0.05  # of the target's images: what a transfer is measured on, which is not timed
TARGET_IMAGES = 456  # of shapes-target without them
EPOCHS = 2  # of a transfer; the first may have more to do than the others
PASSES, OFFICIAL, ART = "passes alone", "official style", "ART"
NO_ITERATION, COMPILED = " without power iteration", " compiled"
SPEED, FIRST = "images a second", "first epoch"

Round = dict[str, float]
Go = Callable[[], Round]


@dataclass(frozen=True)
class Task:
    """Training in batches of ``images``, ``steps`` of them a round.

    A pre-training takes random images; a transfer starts from the run ``source`` and takes so many
    steps an epoch on images of the built-in target, or all there are.
    """

    kind: Literal["pretrain", "transfer"]
    arch: str
    images: int
    steps: int
    k: int
    device: str
    pgd_steps: int = 7
    fdm_lambda: float = 0.0
    neft_beta: float | None = None
    source: str = ""

    @property
    def where(self) -> torch.device:
        """The device."""
        return torch.device(self.device)

    @property
    def pretrain(self) -> PretrainConfig:
        """PGD at full eps from the first step on, for one epoch."""
        return PretrainConfig(
            arch=self.arch,
            k=self.k,
            fdm_lambda=self.fdm_lambda,
            pgd_steps=self.pgd_steps,
            eps_warmup=0,
            epochs=1,
            batch_size=self.images,
            lr=0.01,
        )

    @property
    def transfer(self) -> TransferConfig:
        """Whole epochs, without augmentation, as the data have it."""
        return TransferConfig(
            k=self.k,
            neft_beta=self.neft_beta,
            val_fraction=HELD_OUT,
            fraction=min(1.0, self.steps * self.images / TARGET_IMAGES),
            epochs=EPOCHS,
            batch_size=self.images,
            lr=0.001,
            device=self.device,
        )


def precisions(device: torch.device) -> list[str]:
    """``fp32``, and before it ``bf16`` where that is native."""
    return list(dict.fromkeys([resolve_precision("auto", device), "fp32"]))


def best(task: Task) -> str:
    """What ``--precision auto`` is here."""
    return f"cartl {precisions(task.where)[0]}"


def everybody(task: Task) -> list[str]:
    """Who takes part in a task."""
    names = [f"cartl {precision}" for precision in precisions(task.where)]
    if task.kind == "transfer":
        power = [best(task) + NO_ITERATION] if task.neft_beta is not None else []
        return [*names, *power, OFFICIAL]
    there = importlib.util.find_spec("art") is not None and task.fdm_lambda == 0
    bare = [PASSES, PASSES + COMPILED]
    return [*names, best(task) + COMPILED, *bare, OFFICIAL, *([ART] if there else [])]


def counted(task: Task) -> str:
    """The passes of a step in words."""
    attack = f"{task.pgd_steps} forward and backward to the images"
    if task.fdm_lambda > 0:
        return (
            f"{attack}, 2 forward and backward to the weights, one of them from block L−k on down"
        )
    return f"{attack}, 1 forward and backward to the weights, 1 forward for the clean accuracy"


def autocast_of(task: Task, precision: str) -> torch.autocast:
    """Automatic casting of ``bf16`` or of ``fp32``."""
    return autocast_for(task.where, "bf16" if precision == "bf16" else "fp32")
