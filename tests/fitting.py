"""``fit`` from its first step to its last, as tests watch it."""

from collections.abc import Callable

import torch

from cartl_cli.core.config import PretrainConfig, TrainingConfig
from cartl_cli.core.data.split import Split
from cartl_cli.core.method.objective import Objective
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.runs.manifest import Position
from cartl_cli.core.runtime.devices import autocast_for
from cartl_cli.core.runtime.ranks import ALONE, Ranks
from cartl_cli.core.training.loop import Progress, Take, Training, fit, sgd, take_step


def unseen(progress: Progress) -> None:
    """Look at nothing."""


def fitted(
    model: BlockModel,
    split: Split,
    config: TrainingConfig,
    objective: Objective,
    look: Callable[[Progress], None] = unseen,
    augment: tuple[str, ...] = (),
    wanted: Callable[[int], bool] = lambda step: True,
    optimizer: torch.optim.SGD | None = None,
    ranks: Ranks = ALONE,
    take: Take = take_step,
) -> Position:
    """Where a training in float32 ends, from its beginning on, with an optimizer of its own.

    ``wanted`` is asked after each step, by the steps done so far, whether to ``look`` at the
    progress, as is done at the end of each epoch anyway.
    """
    training = Training(
        model,
        optimizer or sgd(model, config),
        split,
        config,
        objective,
        autocast_for(torch.device("cpu"), "fp32"),
        augment,
        ranks,
        config.steps_per_batch if isinstance(config, PretrainConfig) else 1,
    )
    reached = Position()
    for step in fit(training, reached, take):
        if wanted(step.done) or step.epoch_ended:
            progress = step.look()
            reached = progress.position
            look(progress)
    return reached
