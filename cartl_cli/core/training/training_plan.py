"""What a training begins with, and what it minimises."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from cartl_cli.core.config import TrainingConfig
from cartl_cli.core.data.split import DataSet, Split
from cartl_cli.core.method.objective import Objective
from cartl_cli.core.runtime.ranks import Ranks


@dataclass(frozen=True)
class TrainingSetup:
    """What a training begins with besides its model; ``split`` holds the images to train on.

    ``autocast`` is the number format of the forward passes, which ``precision`` names.
    """

    config: TrainingConfig
    data: DataSet
    split: Split
    augment: tuple[str, ...]
    device: torch.device
    precision: Literal["fp32", "bf16"]
    autocast: torch.autocast
    compile: bool
    total_steps: int
    replays: int
    ranks: Ranks


@dataclass(frozen=True)
class TrainingPlan:
    """What a training minimises, and what it does and keeps besides.

    ``state``: named tensors that are updated in place and are part of every checkpoint.
    ``step_done`` is called after each step with the steps done so far, ``epoch_done`` after the
    last of an epoch with the epochs and steps done, both before their state can be saved; what the
    second has measured joins the line of ``metrics.jsonl``. The first ``head_steps`` steps train
    the classifier alone. ``phase``: steps of one phase differ in nothing but tensors and what
    ``runtime.replays`` knows of, so that one of them can stand for the others as a graph.
    """

    objective: Objective
    state: dict[str, Tensor] = field(default_factory=dict)
    step_done: Callable[[int], None] = lambda step: None
    epoch_done: Callable[[int, int], dict[str, float]] = lambda epoch, step: {}
    head_steps: int = 0
    phase: Callable[[int], Hashable] = lambda step: None
