"""How a target model is made of a source model: vanilla, LwF and NEFT, the methods of the paper.

Each method is one function: a copy of the source model with a new head and frozen parts comes in,
what its training needs goes out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cartl_cli.core.choices import FreezeBatchNorm
from cartl_cli.core.method.adversarial_training import NaturalTraining
from cartl_cli.core.method.batch_norm import freeze, settled
from cartl_cli.core.method.losses import forgetting, right
from cartl_cli.core.method.neft import apply_neft, bake, spectral_norms
from cartl_cli.core.method.objective import Objective, StepLoss
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.runtime.ranks import EVERYTHING, Part

Settings = Mapping[str, Any]
"""The settings of a method by their names, such as ``neft_beta``."""


@dataclass(frozen=True)
class Tuned:
    """What a method makes of a model that is ready to be tuned.

    ``objective``: the loss on images. ``on_features``: the same on features at block L−k, if the
    extractor gives the same ones in every step; None if the method needs the images.
    ``finish``, if any, is called after the last step. ``convex_blocks``: how many of the last
    blocks have residual means instead of sums.
    """

    objective: Objective
    on_features: Objective | None = None
    finish: Callable[[], None] | None = None
    convex_blocks: int = 0


def replace_head(model: BlockModel, num_classes: int) -> None:
    """A new linear classifier with a normal linear initialisation (global random state)."""
    old = model.head
    head = nn.Linear(old.in_features, num_classes).to(old.weight.device)
    nn.init.zeros_(head.bias)
    model.blocks[-1].linear = head


def prepare(
    model: BlockModel,
    source: BlockModel,
    tune: Callable[[BlockModel, BlockModel, int, int, Settings], Tuned],
    k: int,
    freeze_bn: FreezeBatchNorm,
    num_classes: int,
    head_steps: int,
    settings: Settings,
) -> Tuned:
    """Make a copy of the source model ready to be tuned: a new head, frozen parts, a method's own.

    ``tune`` is one of the methods below; the first ``head_steps`` steps are to train the classifier
    alone. Draws from the global random state.
    """
    replace_head(model, num_classes)
    model.to(memory_format=torch.channels_last)
    freeze(model, k, freeze_bn)
    tuned = tune(model, source, k, head_steps, settings)
    return tuned if settled(model, k) else replace(tuned, on_features=None)


def finish(model: BlockModel, tuned: Tuned, k: int) -> dict[str, float]:
    """End the tuning; the spectral norm of each weight of the last k blocks, by its name."""
    if tuned.finish is not None:
        tuned.finish()
    return spectral_norms(model, k)


def vanilla(
    model: BlockModel, source: BlockModel, k: int, head_steps: int, settings: Settings
) -> Tuned:
    """Plain fine-tuning of the last k blocks on clean images."""
    return Tuned(NaturalTraining(model), NaturalTraining(_last_blocks(model, k)))


def non_expansive(
    model: BlockModel, source: BlockModel, k: int, head_steps: int, settings: Settings
) -> Tuned:
    """NEFT: every weight of the last k blocks has spectral norm ``neft_beta`` (Eq. 11).

    Raises RunError for an all-zero weight.
    """
    apply_neft(model, k, settings["neft_beta"])
    last_blocks = NaturalTraining(_last_blocks(model, k))
    return Tuned(NaturalTraining(model), last_blocks, partial(bake, model, k), convex_blocks=k)


def learning_without_forgetting(
    model: BlockModel, source: BlockModel, k: int, head_steps: int, settings: Settings
) -> Tuned:
    """LwF (Shafahi et al. 2020, arXiv 1905.08232), with the weight ``lwf_lambda``."""
    return Tuned(LearningWithoutForgetting(model, source, settings["lwf_lambda"], head_steps))


@dataclass(frozen=True)
class LearningWithoutForgetting:
    """Mean cross-entropy + λ · distance of the features to the source's (Shafahi et al. 2020).

    In the first ``head_steps`` steps the classifier alone is trained, on the source's own features:
    no other parameter has a gradient, and no batch-norm statistic is touched. ``source`` is in
    evaluation mode.
    """

    model: BlockModel
    source: BlockModel
    lwf_lambda: float
    head_steps: int

    def __call__(
        self, images: Tensor, labels: Tensor, step: int, part: Part = EVERYTHING
    ) -> StepLoss:
        """See ``Objective``."""
        with torch.no_grad():
            kept = self.source.embed(images)  # z₀ (B, d)
        features = kept if step < self.head_steps else self.model.embed(images)  # z (B, d)
        logits = self.model.head(features).float()  # (B, classes)
        loss = F.cross_entropy(logits, labels)
        if self.lwf_lambda:
            loss = loss + self.lwf_lambda * forgetting(features, kept)
        return StepLoss(loss, {"clean": right(logits, labels)})


def _last_blocks(model: BlockModel, k: int) -> Callable[[Tensor], Tensor]:
    """Features at block L−k (B, …) → logits (B, classes)."""
    # ``classify`` is looked up at each call: by then it may be the compiled one
    return lambda features: model.classify(features, len(model.blocks) - k)
